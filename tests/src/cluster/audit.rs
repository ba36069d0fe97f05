//! The API server's audit log: who did what to which kind of object.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;

/// A kind of request, as RBAC grants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// API group; empty for the core's.
    pub group: String,
    /// Resource with its subresource: `pods/status`.
    pub resource: String,
    /// `get`, `list`, `watch`, …
    pub verb: String,
    /// Whether it was allowed and carried out.
    pub allowed: bool,
}

impl Cluster {
    pub(super) fn audit_file(&self) -> PathBuf {
        self.root.join("logs/audit.log")
    }

    /// Every request so far, as the API server logged it.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.audit_file()).context("no audit log")?;
        // The last line may be half written.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// What a user did so far; a service account's name is `system:serviceaccount:NAMESPACE:NAME`.
    pub fn uses(&self, user: &str) -> Result<BTreeSet<Use>> {
        let events = self.audit()?;
        Ok(events.iter().filter(|event| event["user"]["username"] == user).filter_map(used).collect())
    }
}

fn used(event: &Value) -> Option<Use> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let object = &event["objectRef"];
    let resource = text(&object["resource"]);
    let sub = text(&object["subresource"]);
    if resource.is_empty() {
        return None;
    }
    Some(Use {
        group: text(&object["apiGroup"]),
        resource: if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
        verb: text(&event["verb"]),
        allowed: event["annotations"]["authorization.k8s.io/decision"] == "allow",
    })
}
