//! Results and errors as the specification wants them on standard output.

use serde_json::{Value, json};

/// Versions of the specification that the plugin speaks. Results before 1.0 are passed on as they came.
pub const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.3.0"];

/// An error of the specification (section 5): the runtime shows it as the pod's event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Failure {
    /// Code; from 100 on it is the plugin's own.
    pub code: u32,
    /// What failed.
    pub message: String,
    /// Why, and what to do.
    pub details: String,
}

impl Failure {
    fn new(code: u32, message: &str, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// The environment is not one of the specification.
    pub fn environment(details: impl Into<String>) -> Self {
        Self::new(4, "invalid environment", details)
    }

    /// The input cannot be understood.
    pub fn decoding(details: impl Into<String>) -> Self {
        Self::new(6, "configuration cannot be decoded", details)
    }

    /// The configuration lacks something.
    pub fn configuration(details: impl Into<String>) -> Self {
        Self::new(7, "invalid configuration", details)
    }

    /// The runtime does it again after a while.
    pub fn not_closed(details: impl Into<String>) -> Self {
        Self::new(11, "the pod may belong into the mesh and cannot be blocked", details)
    }

    /// The sandbox is not as it should be.
    pub fn check(details: impl Into<String>) -> Self {
        Self::new(100, "the pod is not as the mesh needs it", details)
    }

    /// As the runtime reads it.
    pub fn show(&self, version: &str) -> Value {
        let version = if version.is_empty() { "1.0.0" } else { version };
        json!({"cniVersion": version, "code": self.code, "msg": self.message, "details": self.details})
    }
}

/// The answer to VERSION.
pub fn versions() -> Value {
    let mut supported = VERSIONS;
    supported.sort_unstable();
    json!({"cniVersion": "1.1.0", "supportedVersions": supported})
}
