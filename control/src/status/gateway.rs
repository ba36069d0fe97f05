//! Gateways and GatewayClasses of ours.

use mesh_core::model::{Health, ServiceName};
use serde_json::{Value, json};

use super::{CONTROLLER, Condition, Told, istio::said};
use crate::{
    finding::{Finding, Severity},
    object::Key,
    publish::Published,
    source::api::About,
};

/// The class that is ours without being defined.
const CLASS: &str = "culvert-waypoint";

/// What a Gateway or a GatewayClass is told; none when it is somebody else's.
pub(super) fn told(published: &Published, key: &Key, about: &About, findings: &[&Finding]) -> Option<Told> {
    match &*key.kind {
        "GatewayClass" => is_ours(about).then(class),
        _ => {
            let name = about.detail["class"].as_str()?;
            let class = Key { kind: "GatewayClass".into(), namespace: "".into(), name: name.into() };
            let ours = match published.about.get(&class) {
                Some(class) => is_ours(class),
                None => name == CLASS,
            };
            ours.then(|| gateway(published, key, about, findings))
        }
    }
}

fn is_ours(class: &About) -> bool {
    class.detail["controller"] == CONTROLLER
}

fn class() -> Told {
    let conditions =
        vec![Condition::new("Accepted", true, "Accepted", "Culvert makes waypoints of this class")];
    Told { conditions, ..Told::default() }
}

fn gateway(published: &Published, key: &Key, about: &About, findings: &[&Finding]) -> Told {
    let refused = findings.iter().any(|f| f.severity == Severity::Error);
    let text = said(findings);
    let accepted = match refused {
        true => Condition::new("Accepted", false, "Invalid", text),
        false => Condition::new("Accepted", true, "Accepted", "is a waypoint"),
    };
    let host = format!("{}.{}.svc.cluster.local", key.name, key.namespace);
    let name = ServiceName::new(key.namespace.clone(), host.clone());
    let serves = published.compiled.workloads.values().any(|workload| {
        workload.health == Health::Healthy && workload.services.iter().any(|(service, _)| *service == name)
    });
    let programmed = match (refused, serves) {
        (true, _) => Condition::new("Programmed", false, "Invalid", "the Gateway is refused"),
        (_, true) => Condition::new("Programmed", true, "Programmed", "the waypoint takes connections"),
        (_, false) => {
            let why = findings.iter().find(|f| f.code == "not-made").map(|f| f.reason.clone());
            let why = why.unwrap_or_else(|| "no instance of the waypoint is ready yet".into());
            Condition::new("Programmed", false, "Pending", why)
        }
    };
    let programmed_reason = programmed.reason;
    let one = |listener: &Value| -> Value {
        let of = |(name, holds, reason): (&str, bool, &str)| {
            json!({"type": name, "status": if holds { "True" } else { "False" }, "reason": reason, "message": "",
                   "observedGeneration": about.generation, "lastTransitionTime": about.detail["created"]})
        };
        let conditions = [
            of(("Accepted", true, "Accepted")),
            of(("ResolvedRefs", true, "ResolvedRefs")),
            of(("Programmed", serves, programmed_reason)),
        ];
        json!({"name": listener, "attachedRoutes": 0, "supportedKinds": [], "conditions": conditions})
    };
    let listeners = about.detail["listeners"].as_array().map_or(&[][..], Vec::as_slice);
    let listed: Vec<Value> = if refused { Vec::new() } else { listeners.iter().map(one).collect() };
    let addresses = if serves { vec![json!({"type": "Hostname", "value": host})] } else { Vec::new() };
    let mut told = Told { conditions: vec![accepted, programmed], ..Told::default() };
    told.fields.insert("listeners".into(), listed.into());
    told.fields.insert("addresses".into(), addresses.into());
    told
}
