//! Which L7 resources each client is given.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{
    auth::Caller,
    compile::{self, Options},
    memory::Memory,
    publish::Published,
    source::Store,
};
use mesh_net::wire::{ADDRESS_TYPE, L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE};

/// Three services: a behind waypoint `one`, b behind `two`, c behind none; a's routes lead to c.
const MESH: &str = r#"
kind: Service
metadata: {name: a, labels: {istio.io/use-waypoint: one}}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {name: b, labels: {istio.io/use-waypoint: two}}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {name: c}
spec: {ports: [{port: 80}]}
---
kind: VirtualService
metadata: {name: a}
spec: {hosts: [a], http: [{route: [{destination: {host: c}}]}]}
---
kind: AuthorizationPolicy
metadata: {name: on-a}
spec: {targetRefs: [{kind: Service, name: a}]}
---
kind: AuthorizationPolicy
metadata: {name: on-b}
spec: {targetRefs: [{kind: Service, name: b}]}
---
kind: AuthorizationPolicy
metadata: {name: on-two}
spec: {targetRefs: [{kind: Gateway, name: two}]}
---
kind: AuthorizationPolicy
metadata: {name: everywhere, namespace: istio-system}
spec: {targetRefs: [{kind: GatewayClass, name: istio-waypoint}]}
---
kind: Service
metadata: {name: two, labels: {gateway.networking.k8s.io/gateway-name: two}}
spec: {selector: {gateway.networking.k8s.io/gateway-name: two}, ports: [{port: 15008}]}
---
kind: Pod
metadata: {name: two-1, labels: {gateway.networking.k8s.io/gateway-name: two}}
spec: {nodeName: n1, serviceAccountName: another-name}
status: {podIP: 10.0.0.9, conditions: [{type: Ready, status: "True"}]}
"#;

fn published() -> Published {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    let mut store = Store::default();
    store.load(folder.path());
    let mut memory = Memory::new(control::SERVICE_CIDR, None);
    let compiled = compile::compile(&store, &Options::default(), &mut memory);
    Published::next(&Published::default(), &store, compiled, Vec::new())
}

fn names(published: &Published, type_url: &str, caller: &Caller) -> Vec<String> {
    let short = |name: &String| name.split_once('/').unwrap().1.split('.').next().unwrap().to_string();
    published.view(type_url, caller).keys().map(short).collect()
}

fn waypoint(account: &str) -> Caller {
    Caller::Waypoint("default".into(), account.into())
}

#[test]
fn a_waypoint_is_given_routes_of_its_services_and_of_what_they_lead_to() {
    let published = published();
    assert_eq!(names(&published, ROUTES_TYPE, &waypoint("one")), ["a", "c"]);
    assert_eq!(names(&published, ROUTES_TYPE, &waypoint("another-name")), ["b"], "known by its pods");
    assert!(names(&published, ROUTES_TYPE, &waypoint("stranger")).is_empty());
    let elsewhere = Caller::Waypoint("other".into(), "one".into());
    assert!(names(&published, ROUTES_TYPE, &elsewhere).is_empty(), "same name, other namespace");
}

#[test]
fn a_waypoint_is_given_policies_of_its_services_its_gateway_and_all_waypoints() {
    let published = published();
    assert_eq!(names(&published, L7_POLICY_TYPE, &waypoint("one")), ["on-a", "everywhere"]);
    assert_eq!(
        names(&published, L7_POLICY_TYPE, &waypoint("another-name")),
        ["on-b", "on-two", "everywhere"]
    );
    assert_eq!(names(&published, L7_POLICY_TYPE, &waypoint("stranger")), ["everywhere"]);
}

#[test]
fn an_agent_is_given_addresses_and_nothing_of_l7() {
    let (published, agent) = (published(), Caller::Node("n1".into()));
    assert_eq!(published.view(ADDRESS_TYPE, &agent).len(), 5);
    for type_url in [ROUTES_TYPE, L7_POLICY_TYPE, LABELS_TYPE] {
        assert!(published.view(type_url, &agent).is_empty(), "{type_url}");
    }
}
