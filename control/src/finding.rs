//! What is wrong, or worth knowing, about an object: with file, line, field, reason and remedy.

use std::{cell::RefCell, fmt};

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document applies, but not all of what it says.
    Warning,
    /// Worth knowing.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// A problem at a field of one document, before it is placed in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Field path, for example `spec.http[0].timeout`.
    pub field: String,
    /// Stable code for tools, for example `bad-duration`.
    pub code: &'static str,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// The finding at a place: file, line and object.
    pub fn placed(self, file: &str, line: usize, object: &str) -> Finding {
        Finding {
            file: file.into(),
            line,
            object: object.into(),
            field: self.field,
            severity: self.severity,
            code: self.code,
            reason: self.reason,
            remedy: self.remedy,
        }
    }
}

/// A problem with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// File, relative to the folder.
    pub file: String,
    /// Line, from 1; 0 for an object of no file.
    pub line: usize,
    /// `Kind namespace/name`; empty when the document has none.
    pub object: String,
    /// Field path.
    pub field: String,
    /// How bad.
    pub severity: Severity,
    /// Stable code.
    pub code: &'static str,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}: ", self.severity)?;
        if !self.object.is_empty() {
            write!(f, "{} ", self.object)?;
        }
        write!(f, "{}: {} [{}]; {}", self.field, self.reason, self.code, self.remedy)
    }
}

/// Where problems of one document are collected.
#[derive(Debug, Default)]
pub struct Sink(RefCell<Vec<Problem>>);

impl Sink {
    /// Adds a problem.
    pub fn add(&self, severity: Severity, field: &str, code: &'static str, reason: String, remedy: &str) {
        self.0.borrow_mut().push(Problem {
            severity,
            field: field.into(),
            code,
            reason,
            remedy: remedy.into(),
        });
    }

    /// All problems so far.
    pub fn into_problems(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}
