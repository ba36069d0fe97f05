//! What became of a kernel.

use super::results::Step;

/// Three ends, and only one of them is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every step held, within its budget.
    Passed,
    /// A step did not, or the run broke off; why.
    Failed(String),
    /// It could not be tried; why.
    NotVerified(String),
}

impl Outcome {
    /// As the table and JSON name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "FAILED",
            Self::NotVerified(_) => "NOT VERIFIED",
        }
    }

    /// The reason, empty when it passed.
    pub fn why(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(why) | Self::NotVerified(why) => why,
        }
    }
}

/// A kernel and its results.
#[derive(Debug)]
pub struct Verified {
    /// As asked for: `6.1`.
    pub series: String,
    /// Debian package and version; empty when none was had.
    pub package: String,
    /// The verdict.
    pub outcome: Outcome,
    /// From QEMU's start to its end.
    pub seconds: f64,
    /// The guest's result lines.
    pub results: Vec<Step>,
}

impl Verified {
    /// A kernel that could not be tried.
    pub fn not_verified(series: &str, error: &anyhow::Error) -> Self {
        Self {
            series: series.to_string(),
            package: String::new(),
            outcome: Outcome::NotVerified(format!("{error:#}")),
            seconds: 0.0,
            results: Vec::new(),
        }
    }
}
