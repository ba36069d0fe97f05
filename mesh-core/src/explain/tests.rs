use std::sync::Arc;

use super::*;
use crate::{
    delta::Change,
    fixtures::{backing, pod, port, service, service_name, strict, waypoint, workloads},
    model::{L4Match, PolicyAction, PolicyScope, StringMatch},
};

fn world() -> Snapshot {
    let nginx = service("nginx", [10, 96, 0, 1], &[port(8000, 80)]);
    let mut changes = workloads([pod("client", [10, 0, 0, 1]), backing(pod("web", [10, 0, 0, 2]), &nginx)]);
    changes.push(Change::Service(Arc::new(nginx)));
    Snapshot::of(changes)
}

fn ask(snapshot: &Snapshot, to: &str) -> Explanation {
    let source = find_source(snapshot, "client").unwrap();
    let destination = find_destination(snapshot, source, to).unwrap();
    explain(snapshot, source, destination, &any_endpoint)
}

#[test]
fn names_service_endpoint_tunnel_and_verdict_in_order() {
    let told = ask(&world(), "nginx:8000");
    let kinds: Vec<_> = told.steps.iter().map(|s| s.kind).collect();
    use StepKind::*;
    assert_eq!(kinds, [Source, Lookup, Endpoint, Tunnel, Admission, Verdict]);
    assert!(told.carried);
    assert!(told.to_string().contains("CONNECT 10.0.0.2:80"), "{told}");
}

#[test]
fn names_the_policy_that_denies() {
    let mut snapshot = world();
    let block = L4Match { principals: vec![StringMatch::Suffix("sa/client".into())], ..L4Match::default() };
    let deny = crate::fixtures::policy("no-client", PolicyScope::Namespace, PolicyAction::Deny, block);
    snapshot.apply([Change::Policy(Arc::new(deny))]);
    let told = ask(&snapshot, "nginx.default.svc.cluster.local:8000");
    assert!(!told.carried);
    let refusal = told.refusal.unwrap();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert!(refusal.detail.contains("default/no-client"));
}

#[test]
fn goes_through_the_waypoint_and_on_to_the_endpoints() {
    let mut snapshot = world();
    let mut nginx = service("nginx", [10, 96, 0, 1], &[port(8000, 80)]);
    nginx.waypoint = Some(waypoint("waypoint"));
    let front = service("waypoint", [10, 96, 0, 9], &[port(15008, 15008)]);
    let mut instance = backing(pod("waypoint-1", [10, 0, 0, 9]), &front);
    instance.tunnel = Tunnel::None;
    let mut changes = workloads([instance]);
    changes.extend([Change::Service(Arc::new(nginx)), Change::Service(Arc::new(front))]);
    snapshot.apply(changes);
    let told = ask(&snapshot, "nginx:8000");
    assert!(told.carried, "{told}");
    assert!(told.steps.iter().any(|s| s.kind == StepKind::Waypoint && s.object.contains("waypoint")));
    assert!(told.steps.iter().any(|s| s.detail.contains("sa/waypoint-1")), "{told}");
    assert!(snapshot.service(&service_name("nginx")).unwrap().waypoint.is_some());
}

#[test]
fn a_client_outside_the_mesh_is_refused_by_strict() {
    let mut snapshot = world();
    let mut outsider = pod("outsider", [10, 0, 0, 7]);
    outsider.tunnel = Tunnel::None;
    let mut changes = workloads([outsider]);
    changes.push(Change::Policy(Arc::new(strict(PolicyScope::Namespace))));
    snapshot.apply(changes);
    let source = find_source(&snapshot, "outsider").unwrap();
    let told = explain(&snapshot, source, "10.0.0.2:80".parse().unwrap(), &any_endpoint);
    assert_eq!(told.refusal.unwrap().reason, Reason::MtlsRequired);
}
