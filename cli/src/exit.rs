//! How a command ends: exit status, and failures with what to do about them.

use std::{io, process::ExitCode};

use serde_json::json;

/// Exit status of a command that could answer, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: answered, and all is well.
    Well,
    /// 1: answered, and something is not well: an error, a refusal, a part that is not ready.
    NotWell,
    /// 2: the question could not be answered.
    NoAnswer,
}

impl Exit {
    /// [`Exit::Well`] or [`Exit::NotWell`].
    pub fn well_if(well: bool) -> Self {
        if well { Self::Well } else { Self::NotWell }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Well => 0,
            Exit::NotWell => 1,
            Exit::NoAnswer => 2,
        })
    }
}

/// Why a question could not be answered, and the next step for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What went wrong, with its object and cause.
    pub reason: String,
    /// What to do.
    pub next: String,
}

impl Failure {
    /// Builds a failure.
    pub fn new(reason: impl Into<String>, next: impl Into<String>) -> Self {
        Self { reason: reason.into(), next: next.into() }
    }

    /// Says it on standard error, and as JSON on `out` for programs.
    pub fn report(&self, as_json: bool, out: &mut impl io::Write) -> Exit {
        eprintln!("culvert: {}\nnext: {}", self.reason, self.next);
        if as_json {
            let value = json!({"error": self.reason, "next": self.next});
            // Standard error has it already.
            let _ = writeln!(out, "{value:#}");
        }
        Exit::NoAnswer
    }
}

/// Writes an answer. A reader that went away (`| head`) is no failure.
///
/// # Errors
/// The output cannot be written.
pub fn write(out: &mut impl io::Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("the answer cannot be written: {error}"), "check standard output"))
        }
        _ => Ok(()),
    }
}
