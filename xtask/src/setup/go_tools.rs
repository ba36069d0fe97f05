//! fortio, a second load generator: optional, built from its Go module when there is a Go compiler.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::line;
use crate::command::{cache, find, run};

/// The newest version whose dependencies the module proxies serve everywhere.
const FORTIO: &str = "v1.67.1";

/// Finds or builds it, and says so; its absence is no failure.
pub fn announce() {
    match fortio() {
        Ok(was_there) => line("fortio", was_there, &format!("{FORTIO} (optional)")),
        Err(error) => println!("{:14} {:10} optional: {error:#}", "fortio", "not here"),
    }
}

/// Whether it was there before.
fn fortio() -> Result<bool> {
    let folder: PathBuf = cache()?.join(format!("tools-fortio-{FORTIO}"));
    if find("fortio").is_some() || folder.join("fortio").is_file() {
        return Ok(true);
    }
    find("go").context("it needs Go; install one and run: cargo xtask setup")?;
    println!("setup: building fortio {FORTIO}");
    run(Command::new("go").env("GOBIN", &folder).args(["install", &format!("fortio.org/fortio@{FORTIO}")]))?;
    Ok(false)
}
