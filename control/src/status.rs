//! What objects are told about themselves in their status (pure): conditions, and Istio's messages that
//! istioctl and Kiali read (decision 0036).

mod gateway;
mod istio;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{finding::Finding, object::Key, publish::Published, source::api::About};

/// Who answers for our gateway classes.
pub const CONTROLLER: &str = "culvert.dev/waypoint-controller";
/// Longest message of a condition in bytes; the API server takes 32 KiB.
const MESSAGE: usize = 2048;

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Its type.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Condition {
    fn new(name: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE {
            let end = (0..=MESSAGE - 4).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
            message.truncate(end);
            message.push('…');
        }
        Self { name, holds, reason, message }
    }
}

/// What an object is told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Told {
    /// Our conditions, by which others of the object are left alone.
    pub conditions: Vec<Condition>,
    /// Conditions that are ours and do not apply: they are removed.
    pub without: Vec<&'static str>,
    /// Other fields of the status.
    pub fields: Map<String, Value>,
    /// Counts the generation at the status itself too, as Istio's kinds do.
    pub observed: bool,
}

/// What every object of the API server is to be told.
pub fn told(published: &Published) -> BTreeMap<Key, Told> {
    let mut findings: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in &published.findings {
        findings.entry(&finding.object).or_default().push(finding);
    }
    let of = |key: &Key| findings.get(key.to_string().as_str()).map_or(&[][..], Vec::as_slice);
    let one = |(key, about): (&Key, &std::sync::Arc<About>)| {
        let told = match &*key.kind {
            "Gateway" | "GatewayClass" => gateway::told(published, key, about, of(key)),
            "HTTPRoute" | "GRPCRoute" => None,
            "Service" => istio::bound(published, key),
            _ => Some(istio::told(published, key, about, of(key))),
        };
        Some((key.clone(), told?))
    };
    published.about.iter().filter_map(one).collect()
}

/// The status to write for an object; none when it says so already. Times of conditions that stay as they
/// are do not change.
pub fn patch(told: &Told, about: &About, now: &str) -> Option<Value> {
    let empty = Vec::new();
    let before = about.status["conditions"].as_array().unwrap_or(&empty);
    let names: Vec<&str> =
        told.conditions.iter().map(|c| c.name).chain(told.without.iter().copied()).collect();
    let ours = |name: &Value| name.as_str().is_some_and(|name| names.contains(&name));
    let mut after: Vec<Value> = before.iter().filter(|c| !ours(&c["type"])).cloned().collect();
    let mut same = before.iter().filter(|c| ours(&c["type"])).count() == told.conditions.len();
    for condition in &told.conditions {
        let status = if condition.holds { "True" } else { "False" };
        let old = before.iter().find(|c| c["type"] == condition.name);
        let since = old.filter(|c| c["status"] == status).map(|c| &c["lastTransitionTime"]);
        let mut next = json!({"type": condition.name, "status": status, "reason": condition.reason,
                              "message": condition.message,
                              "lastTransitionTime": since.cloned().unwrap_or_else(|| now.into())});
        // Services have no generation.
        if about.generation > 0 {
            next["observedGeneration"] = observed(about, old);
        }
        same &= old == Some(&next);
        after.push(next);
    }
    let mut status = told.fields.clone();
    if told.observed && about.generation > 0 {
        status.insert("observedGeneration".into(), observed(about, Some(&about.status)));
    }
    same &= status
        .iter()
        .all(|(field, value)| about.status[field] == *value || is_nothing(&about.status[field], value));
    status.insert("conditions".into(), after.into());
    (!same).then(|| json!({ "status": status }))
}

/// Istio's kinds have the number as a text there when Istio wrote it: equal is equal.
fn observed(about: &About, old: Option<&Value>) -> Value {
    let said = old.map_or(&Value::Null, |old| &old["observedGeneration"]);
    match said.as_str() == Some(about.generation.to_string().as_str()) {
        true => said.clone(),
        false => about.generation.into(),
    }
}

fn is_nothing(before: &Value, wanted: &Value) -> bool {
    before.is_null() && wanted.as_array().is_some_and(Vec::is_empty)
}
