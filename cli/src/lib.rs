//! The `culvert` command: what is wrong with a folder, what would happen to a connection, how the
//! mesh is; and installing, changing and removing a mesh on Kubernetes.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod args;
pub mod check;
pub mod cluster;
pub mod contract;
pub mod endpoint;
pub mod exit;
pub mod explain;
pub mod install;
pub mod live;
pub mod manifest;
pub mod offline;
pub mod record;
pub mod status;
pub mod style;
pub mod table;
pub mod uninstall;
pub mod upgrade;
pub mod waypoint;

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
        Command::Install(options) => install::run(options, args.json, style).await?,
        Command::Upgrade(options) => upgrade::run(options, args.json, style).await?,
        Command::Check(options) => check::run(options, args.json, style).await?,
        Command::Uninstall(options) => uninstall::run(options, args.json, style).await?,
        Command::Waypoint(options) => waypoint::run(options, args.json, style).await?,
        Command::Manifests(options) => manifest::write::run(&options.out)?,
    };
    exit::write(out, &text)?;
    Ok(exit)
}
