//! Developer commands: `cargo xtask <verb>`.
#![forbid(unsafe_code)]

mod build;
mod ci;
mod codegen;
mod command;
mod setup;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

/// Culvert's developer commands. Each one installs or builds what it needs by itself.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Finds or installs every tool that building and testing need.
    Setup,
    /// Builds the eBPF object and the programs.
    Build {
        /// Optimised.
        #[arg(long)]
        release: bool,
    },
    /// Runs the tests; with a filter, only those whose name contains it.
    Test {
        /// Part of a test's name.
        filter: Option<String>,
    },
    /// Regenerates `mesh-net/src/api` from the protos.
    Codegen {
        /// Only compare.
        #[arg(long)]
        check: bool,
    },
    /// Checks crate edges, module cycles, the code map and generated files.
    Tidy,
    /// Everything that must hold before a change lands.
    Ci,
}

fn main() -> anyhow::Result<()> {
    let root = command::root()?;
    match Cli::parse().verb {
        Verb::Setup => setup::announce(),
        Verb::Build { release } => build::all(&root, release),
        Verb::Test { filter } => test::run_tests(&root, filter.as_deref()),
        Verb::Codegen { check } => codegen::run(&root, check),
        Verb::Tidy => tidy::run(&root),
        Verb::Ci => ci::run_gates(&root),
    }
}
