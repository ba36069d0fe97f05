//! Istio's kinds, and the waypoint that a Service is bound to.

use mesh_core::model::{GatewayDestination, ServiceName};
use serde_json::{Map, Value, json};

use super::{Condition, Told};
use crate::{
    finding::{Finding, Severity},
    object::Key,
    publish::Published,
    source::api::About,
};

/// Condition that says which waypoint a service goes through, as Istio's.
const BOUND: &str = "istio.io/WaypointBound";
const ZTUNNEL: &str = "ZtunnelAccepted";
const WAYPOINT: &str = "WaypointAccepted";

/// What an object of one of Istio's kinds is told.
pub(super) fn told(published: &Published, key: &Key, about: &About, findings: &[&Finding]) -> Told {
    let (holds, reason) = verdict(about.refused, findings);
    let message = match said(findings) {
        text if text.is_empty() => "in effect".to_string(),
        text => text,
    };
    let mut told = Told { observed: true, ..Told::default() };
    told.conditions.push(Condition::new("Accepted", holds, reason, message.clone()));
    match &*key.kind {
        "AuthorizationPolicy" | "PeerAuthentication" => {
            let at_waypoint = published.compiled.l7_policies.keys().any(|name| {
                name.namespace == key.namespace
                    && name.name == key.name
                    && &*key.kind == "AuthorizationPolicy"
            });
            let (is, not) = if at_waypoint { (WAYPOINT, ZTUNNEL) } else { (ZTUNNEL, WAYPOINT) };
            let reason = if holds { reason } else { "Invalid" };
            told.conditions.push(Condition::new(is, holds, reason, message));
            told.without.push(not);
        }
        "ServiceEntry" => {
            let own = |name: &&ServiceName| name.namespace == key.namespace;
            let bound =
                published.compiled.services.values().find(|service| {
                    own(&&service.key) && service.name == key.name && service.waypoint.is_some()
                });
            match bound {
                Some(service) => told.conditions.push(waypoint_bound(&service.waypoint)),
                None => told.without.push(BOUND),
            }
        }
        _ => {}
    }
    let messages: Vec<Value> =
        findings.iter().filter(|f| f.code != "last-good").map(|f| message_of(f)).collect();
    told.fields = Map::from_iter([("validationMessages".to_string(), messages.into())]);
    told
}

/// What a Service is told: which waypoint its connections go through, if any.
pub(super) fn bound(published: &Published, key: &Key) -> Option<Told> {
    let host = format!("{}.{}.svc.cluster.local", key.name, key.namespace);
    let service = published.compiled.services.get(&ServiceName::new(key.namespace.clone(), host));
    let waypoint = service.and_then(|service| service.waypoint.as_ref());
    Some(match waypoint {
        Some(_) => Told { conditions: vec![waypoint_bound(&waypoint.cloned())], ..Told::default() },
        None => Told { without: vec![BOUND], ..Told::default() },
    })
}

fn waypoint_bound(waypoint: &Option<mesh_core::model::GatewayAddress>) -> Condition {
    let name = match waypoint.as_ref().map(|address| &address.destination) {
        Some(GatewayDestination::Hostname(name)) => {
            let short = name.hostname.split('.').next().unwrap_or_default();
            format!("{}/{short}", name.namespace)
        }
        _ => String::new(),
    };
    Condition::new(BOUND, true, WAYPOINT, format!("Successfully attached to waypoint {name}"))
}

fn verdict(refused: bool, findings: &[&Finding]) -> (bool, &'static str) {
    let unsupported = findings.iter().any(|f| f.code == "unsupported-kind");
    let partly = findings.iter().any(|f| f.severity == Severity::Warning);
    match (refused, unsupported, partly) {
        (true, ..) => (false, "Invalid"),
        (_, true, _) => (false, "UnsupportedValue"),
        (_, _, true) => (true, "PartiallyInvalid"),
        _ => (true, "Accepted"),
    }
}

/// Findings as one text.
pub(super) fn said(findings: &[&Finding]) -> String {
    let one = |f: &&Finding| {
        let field = if f.field.is_empty() { String::new() } else { format!("{}: ", f.field) };
        format!("{field}{}; {}", f.reason, f.remedy)
    };
    findings.iter().map(one).collect::<Vec<_>>().join(". ")
}

/// Istio's message type that is nearest to a finding.
fn message_of(finding: &Finding) -> Value {
    let (code, name) = match finding.code {
        "unknown-host" | "unknown-target" | "unknown-service" | "unknown-subset" => {
            ("IST0101", "ReferencedResourceNotFound")
        }
        "conflict" => ("IST0109", "ConflictingMeshGatewayVirtualServiceHosts"),
        "not-enrolled" | "no-waypoint" | "closed" => ("IST0167", "IneffectivePolicy"),
        "no-address" => ("IST0134", "ServiceEntryAddressesRequired"),
        _ if finding.severity == Severity::Error => ("IST0106", "SchemaValidationError"),
        _ => ("IST0133", "SchemaWarning"),
    };
    let level = match finding.severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    let page = format!("https://istio.io/latest/docs/reference/config/analysis/{}/", code.to_lowercase());
    json!({"type": {"code": code, "name": name}, "level": level, "documentationUrl": page})
}
