//! Questions that the API server did not answer.

use std::time::Duration;

use kube::Error;
use mesh_core::error::chain;

use crate::exit::Failure;

/// Why a question to the API server has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {message}")]
pub struct ApiError {
    /// What was asked.
    pub what: String,
    /// HTTP status; 0 when there was no answer at all.
    pub status: u16,
    /// What the API server says.
    pub message: String,
}

impl ApiError {
    /// From the client's error.
    pub fn new(what: &str, error: &Error) -> Self {
        let (status, message) = match error {
            Error::Api(status) => (status.code, status.message.clone()),
            other => (0, chain(other)),
        };
        Self { what: what.to_owned(), status, message }
    }

    /// No answer in time.
    pub fn timeout(what: &str, limit: Duration) -> Self {
        let message = format!("no answer within {} s", limit.as_secs());
        Self { what: what.to_owned(), status: 0, message }
    }

    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self.status {
            0 => {
                "is the API server reachable? `kubectl version` asks it the same way; --kubeconfig and --context choose another"
            }
            401 => "your credentials are not accepted: renew them, or choose others with --context",
            403 => "you lack that right: ask for cluster-admin, or for the rights that `culvert check` lists",
            404 => "the API server does not know it: is a CRD missing? `culvert check` names those",
            409 => "somebody else changed it meanwhile: run the command again",
            400 | 422 => {
                "the API server refuses this object: use a culvert that fits the cluster's version, see `culvert check`"
            }
            429 | 500.. => {
                "the API server is overloaded or not healthy: try again, look at `kubectl get --raw /readyz?verbose`"
            }
            _ => "look at the API server's log",
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::new(error.to_string(), error.next())
    }
}
