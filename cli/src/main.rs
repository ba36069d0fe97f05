//! The `culvert` binary.

use std::{
    io::{IsTerminal, stdout},
    process::ExitCode,
};

use clap::Parser;
use cli::{args::Args, run, style::Style};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let style = Style::new(stdout().is_terminal() && !args.no_color && !args.json);
    match run(&args, style, &mut stdout().lock()).await {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(args.json, &mut stdout().lock()).into(),
    }
}
