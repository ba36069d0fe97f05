//! What the user may do with the API server.

use serde_json::{Value, json};

use super::{ApiError, Cluster};

/// A right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// Verb.
    pub verb: String,
    /// API group; empty is the core one.
    pub group: String,
    /// Resource.
    pub resource: String,
    /// Namespace; empty is all.
    pub namespace: String,
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{} {}{dot}{}", self.verb, self.resource, self.group)?;
        match self.namespace.as_str() {
            "" => Ok(()),
            namespace => write!(f, " in {namespace}"),
        }
    }
}

/// Whether the user has a right.
///
/// # Errors
/// The API server does not answer that question.
pub async fn may(cluster: &Cluster, right: &Right) -> Result<bool, ApiError> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "verb": right.verb, "group": right.group, "resource": right.resource, "namespace": right.namespace,
        }},
    });
    let answer = cluster.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?;
    Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false))
}
