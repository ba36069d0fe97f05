//! What objects become: waypoints, policies, workloads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use control::compile::Compiled;
use mesh_core::model::{GatewayDestination, PolicyAction, PolicyName, PolicyScope, Tunnel, WorkloadUid};

const BASE: &str = r#"
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}
---
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 8000, targetPort: page}]}
---
kind: Pod
metadata:
  name: web-1
  labels: {app: web, version: A, pod-template-hash: abc}
  annotations: {ambient.istio.io/redirection: enabled}
  ownerReferences: [{kind: ReplicaSet, name: web-abc}]
spec: {nodeName: n1, serviceAccountName: web, containers: [{ports: [{name: page, containerPort: 80}]}]}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
"#;

const WAYPOINT: &str = r#"
kind: Service
metadata: {name: waypoint, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{port: 15008}]}
---
kind: Pod
metadata: {name: waypoint-1, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {nodeName: n1, serviceAccountName: waypoint}
status: {podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
"#;

const ROUTES: &str = r#"
kind: VirtualService
metadata: {name: vs}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
"#;

fn compiled(documents: &[&str]) -> Compiled {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    assert!(!report.has_errors(), "{:?}", report.findings);
    compiled
}

fn web() -> WorkloadUid {
    WorkloadUid::pod("Kubernetes", "default", "web-1")
}

fn waypoint_of_web(compiled: &Compiled) -> Option<String> {
    let service = compiled.services.values().find(|s| &*s.name == "web").unwrap();
    service.waypoint.as_ref().map(|gateway| match &gateway.destination {
        GatewayDestination::Hostname(name) => name.to_string(),
        GatewayDestination::Address(at) => at.address.to_string(),
    })
}

#[test]
fn a_pod_becomes_a_workload_as_istiod_says_it() {
    let compiled = compiled(&[BASE]);
    let w = &compiled.workloads[&web()];
    assert_eq!((&*w.workload_name, &*w.canonical_name, &*w.canonical_revision), ("web", "web", "A"));
    assert_eq!((w.tunnel, &*w.locality.zone, &*w.service_account), (Tunnel::Hbone, "z", "web"));
    assert_eq!(w.services.values().next().unwrap()[0].target_port, 80, "the named port is the container's");
}

#[test]
fn routes_bring_a_waypoint_that_is_used_once_it_is_ready() {
    assert_eq!(compiled(&[BASE]).waypoints.len(), 0);
    let wanted = compiled(&[BASE, ROUTES]);
    assert_eq!((wanted.waypoints.len(), waypoint_of_web(&wanted)), (1, None));
    let ready = compiled(&[BASE, ROUTES, WAYPOINT]);
    assert_eq!(waypoint_of_web(&ready).unwrap(), "default/waypoint.default.svc.cluster.local");
    let unmeshed = BASE.replace("redirection: enabled", "redirection: disabled");
    assert_eq!(compiled(&[&unmeshed, ROUTES]).waypoints.len(), 0, "nothing is enrolled");
}

#[test]
fn what_a_label_asks_for_is_used_even_when_it_is_not_there() {
    let labelled = BASE.replace("{name: web}", "{name: web, labels: {istio.io/use-waypoint: mine}}");
    let compiled = compiled(&[&labelled, ROUTES]);
    assert_eq!(waypoint_of_web(&compiled).unwrap(), "default/mine.default.svc.cluster.local");
    assert_eq!(compiled.waypoints.len(), 0);
}

#[test]
fn a_service_with_an_l7_policy_is_closed_to_everybody_but_its_waypoint() {
    let policy = "kind: AuthorizationPolicy\nmetadata: {name: get}\nspec:\n  targetRefs: [{kind: Service, name: web}]\n  \
                  rules: [{to: [{operation: {methods: [GET]}}]}]\n";
    let compiled = compiled(&[BASE, WAYPOINT, policy]);
    let name = PolicyName::new("default", "culvert_require_waypoint_web.default.svc.cluster.local");
    assert_eq!(compiled.workloads[&web()].policies, std::slice::from_ref(&name));
    let deny = &compiled.policies[&name];
    assert_eq!((deny.action, deny.scope), (PolicyAction::Deny, PolicyScope::Workload));
    let allowed = &deny.rules[0].clauses[0].matches[0].not_principals;
    assert!(allowed[0].matches("cluster.local/ns/default/sa/waypoint") && allowed.len() == 1);
    assert_eq!(compiled.l7_policies.len(), 1);
}

#[test]
fn strictness_is_attached_by_name_and_a_port_exception_replaces_it() {
    let mesh = "kind: PeerAuthentication\nmetadata: {name: mesh, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
    let strict = compiled(&[BASE, mesh]);
    let name = PolicyName::new("istio-system", "istio_converted_static_strict");
    assert_eq!(strict.workloads[&web()].policies, std::slice::from_ref(&name));
    assert_eq!(strict.policies.len(), 1);
    let except = "kind: PeerAuthentication\nmetadata: {name: page}\nspec:\n  selector: {matchLabels: {app: web}}\n  \
                  portLevelMtls: {80: {mode: PERMISSIVE}}\n";
    let excepted = compiled(&[BASE, mesh, except]);
    let name = PolicyName::new("default", "converted_peer_authentication_page");
    assert_eq!(excepted.workloads[&web()].policies, std::slice::from_ref(&name));
    assert_eq!(excepted.policies[&name].rules[0].clauses.len(), 2);
    assert!(compiled(&[BASE]).policies.is_empty());
}

#[test]
fn l7_attributes_in_an_l4_policy_never_let_more_in() {
    let policy = |action: &str| {
        format!(
            "kind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  action: {action}\n  \
             rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]\n"
        )
    };
    let name = PolicyName::new("default", "p");
    let allow = compiled(&[BASE, &policy("ALLOW")]);
    assert!(allow.policies[&name].rules.is_empty(), "allows nothing");
    let deny = compiled(&[BASE, &policy("DENY")]);
    assert!(deny.policies[&name].rules[0].clauses.is_empty(), "denies everything");
    assert!(allow.notes.len() == 1 && deny.notes.len() == 1);
}

/// A pod of service web with an address, as the API server shows it.
fn endpoint(name: &str, meta: &str, ip: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}, {meta}}}\nspec: {{nodeName: n1}}\n\
         status: {{podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

#[test]
fn an_address_belongs_to_the_pod_that_stays_and_of_two_to_the_newer() {
    let old = endpoint("old", "creationTimestamp: '2026-01-01T00:00:00Z'", "10.0.0.7");
    let new = endpoint("new", "creationTimestamp: '2026-01-02T00:00:00Z'", "10.0.0.7");
    let going = "creationTimestamp: '2026-01-03T00:00:00Z', deletionTimestamp: '2026-01-03T00:00:00Z'";
    let going = endpoint("going", going, "10.0.0.7");
    let names = |documents: &[&str]| -> Vec<String> {
        let compiled = compiled(documents);
        let with_address = compiled.workloads.values().filter(|w| !w.addresses.is_empty());
        with_address.map(|w| w.name.to_string()).collect()
    };
    assert_eq!(names(&[&old, &new]), ["new"]);
    assert_eq!(names(&[&new, &going]), ["new"]);
    assert_eq!(names(&[&going, &old]), ["old"]);
    assert_eq!(names(&[&going]), ["going"], "it is known until it is gone, for its own connections");
}
