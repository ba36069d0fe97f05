//! One thing that was checked.

use serde::Serialize;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Fine,
    /// Something will not work, or may not.
    Warning,
    /// Culvert does not work like this.
    Error,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: `cluster`, `nodes`, `installation`, …
    pub area: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub what: String,
    /// What to do; none when it is fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn fine(area: &'static str, what: impl Into<String>) -> Self {
        Self { area, state: State::Fine, what: what.into(), next: None }
    }

    /// Something will not work, or may not.
    pub fn warning(area: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { area, state: State::Warning, what: what.into(), next: Some(next.into()) }
    }

    /// Culvert does not work like this.
    pub fn error(area: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { area, state: State::Error, what: what.into(), next: Some(next.into()) }
    }
}
