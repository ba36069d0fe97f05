//! Runs a world's owner as a child, so that Ctrl-C, a crash and SIGTERM all end in a clean machine:
//! when the child is gone, for whatever reason, its world has no owner and is swept.

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::janitor;

/// The argument by which the child knows that it is watched over.
pub const SUPERVISED: &str = "--supervised";

/// Starts this program again with [`SUPERVISED`] added, waits for its end, and cleans up.
pub fn supervise() -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(child());
    janitor::sweep()?;
    outcome
}

async fn child() -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut child = tokio::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg(SUPERVISED)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start this program again")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        status = child.wait() => {
            let code = status?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("interrupted: cleaning up");
    child.kill().await?;
    Ok(ExitCode::from(130))
}
