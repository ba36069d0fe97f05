//! The `culvert` command: what is wrong with a folder, what would happen to a connection, how the
//! mesh is. It reads folders and admin endpoints and changes nothing.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod args;
pub mod contract;
pub mod endpoint;
pub mod exit;
pub mod explain;
pub mod live;
pub mod offline;
pub mod status;
pub mod style;
pub mod table;

use std::io;

use args::{Args, Command};
use exit::{Exit, Failure};
use style::Style;

/// Carries a command out and writes its answer to `out`.
///
/// # Errors
/// The question could not be answered; nothing was written.
pub async fn run(args: &Args, style: Style, out: &mut impl io::Write) -> Result<Exit, Failure> {
    let (exit, text) = match &args.command {
        Command::Analyze(options) => analyze::run(options, args.json, style)?,
        Command::Explain(options) => explain::run(options, args.json, style).await?,
        Command::Status(options) => status::run(options, args.json, style).await?,
    };
    exit::write(out, &text)?;
    Ok(exit)
}
