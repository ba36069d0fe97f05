//! The reasons of a decision, step by step, for `culvert explain`: collected only when asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a step of a decision is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The kernel's part: captured, bypassed, left alone.
    Kernel,
    /// Which workload the client is.
    Source,
    /// What the dialled address belongs to.
    Lookup,
    /// Whether a waypoint is in the way.
    Waypoint,
    /// Which L7 route applies.
    Route,
    /// Which endpoint is chosen.
    Endpoint,
    /// How the bytes travel.
    Tunnel,
    /// The destination's checks before policy.
    Admission,
    /// Which policy allows or denies.
    Policy,
    /// The end: carried or refused.
    Verdict,
}

/// One step: what was asked, which object answered, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Subject.
    pub kind: StepKind,
    /// The object that decided, as `kind namespace/name`; empty when none exists.
    pub object: String,
    /// What it decided, one sentence.
    pub detail: String,
}

impl Step {
    /// Builds a step.
    pub fn new(kind: StepKind, object: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, object: object.into(), detail: detail.into() }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = format!("{:?}", self.kind).to_lowercase();
        match self.object.is_empty() {
            true => write!(f, "{kind:<9} {}", self.detail),
            false => write!(f, "{kind:<9} {}: {}", self.object, self.detail),
        }
    }
}

/// Receives the steps of a decision. The closure runs only if somebody listens, so that the data
/// path formats nothing.
pub trait Trace {
    /// Records a step.
    fn step(&mut self, step: impl FnOnce() -> Step);
}

/// Nobody listens: the data path.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Trace for Silent {
    #[inline]
    fn step(&mut self, _step: impl FnOnce() -> Step) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}
