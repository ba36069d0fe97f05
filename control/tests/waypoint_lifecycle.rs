//! When a service goes through its waypoint: before the first is ready, while it fails, and after.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{
    compile::{self, Compiled, Options},
    memory::Memory,
    source::Store,
};
use mesh_core::model::{ServiceName, Tunnel};

const WEB: &str = r#"
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: plain}
spec: {selector: {app: web}, ports: [{name: http, port: 81}]}
"#;

const POD: &str = r#"
kind: Pod
metadata: {name: web-1, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
"#;

const ROUTES: &str = "kind: VirtualService\nmetadata: {name: vs}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n";

const POLICY: &str = "kind: AuthorizationPolicy\nmetadata: {name: get}\nspec:\n  targetRefs: [{kind: Service, name: web}]\n  \
                      rules: [{to: [{operation: {methods: [GET]}}]}]\n";

fn waypoint(ready: bool) -> String {
    let labels = "labels: {gateway.networking.k8s.io/gateway-name: waypoint}";
    let selector = "{gateway.networking.k8s.io/gateway-name: waypoint}";
    let status = if ready { "True" } else { "False" };
    format!(
        "kind: Service\nmetadata: {{name: waypoint, {labels}}}\nspec: {{selector: {selector}, ports: [{{port: 15008}}]}}\n---\n\
         kind: Pod\nmetadata: {{name: waypoint-1, {labels}}}\nspec: {{nodeName: n1, serviceAccountName: waypoint}}\n\
         status: {{podIP: 10.0.0.9, conditions: [{{type: Ready, status: '{status}'}}]}}\n"
    )
}

struct Cluster {
    folder: tempfile::TempDir,
    store: Store,
    memory: Memory,
    codes: Vec<&'static str>,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("cluster")).unwrap();
        let memory = Memory::new(control::SERVICE_CIDR, Some(folder.path()));
        Self { folder, store: Store::default(), memory, codes: Vec::new() }
    }

    fn restart(&mut self) {
        self.store = Store::default();
        self.memory = Memory::new(control::SERVICE_CIDR, Some(self.folder.path()));
    }

    fn compile(&mut self, documents: &[&str]) -> Compiled {
        let folder = self.folder.path().join("cluster");
        std::fs::write(folder.join("all.yaml"), documents.join("\n---\n")).unwrap();
        self.store.load(&folder);
        let compiled = compile::compile(&self.store, &Options::default(), &mut self.memory);
        self.codes = control::all_findings(&self.store, &compiled).iter().map(|f| f.code).collect();
        compiled
    }

    /// Whether clients of `web` are sent to its waypoint.
    fn routed(&mut self, documents: &[&str]) -> bool {
        let compiled = self.compile(documents);
        let service = |name: &str| ServiceName::new("default", format!("{name}.default.svc.cluster.local"));
        assert!(compiled.services[&service("plain")].waypoint.is_none(), "nothing asks for L7 there");
        compiled.services[&service("web")].waypoint.is_some()
    }
}

#[test]
fn a_service_stays_direct_until_its_first_waypoint_is_ready_and_the_routes_say_so() {
    let mut cluster = Cluster::new();
    assert!(!cluster.routed(&[WEB, POD, ROUTES]));
    assert_eq!(cluster.codes, ["waypoint-pending"]);
    assert!(!cluster.routed(&[WEB, POD, ROUTES, &waypoint(false)]));
    assert!(cluster.routed(&[WEB, POD, ROUTES, &waypoint(true)]));
    assert!(cluster.codes.is_empty(), "{:?}", cluster.codes);
}

#[test]
fn a_waypoint_that_fails_or_vanishes_is_not_gone_around() {
    let mut cluster = Cluster::new();
    assert!(cluster.routed(&[WEB, POD, ROUTES, &waypoint(true)]));
    assert!(cluster.routed(&[WEB, POD, ROUTES, &waypoint(false)]));
    assert_eq!(cluster.codes, ["waypoint-unavailable"]);
    assert!(cluster.routed(&[WEB, POD, ROUTES]), "service and pod of the waypoint are gone");
    cluster.restart();
    assert!(cluster.routed(&[WEB, POD, ROUTES]), "a restart of the control plane forgets nothing");
    assert!(!cluster.routed(&[WEB, POD]), "nothing wants it any more");
    assert!(!cluster.routed(&[WEB, POD, ROUTES]), "and it begins again");
}

#[test]
fn a_service_under_an_l7_policy_is_never_reached_around_its_waypoint() {
    let mut cluster = Cluster::new();
    assert!(cluster.routed(&[WEB, POD, POLICY]));
    assert_eq!(cluster.codes, ["waypoint-unavailable"]);
    let dry_run = POLICY.replace("{name: get}", "{name: get, annotations: {istio.io/dry-run: 'true'}}");
    assert!(!Cluster::new().routed(&[WEB, POD, &dry_run]), "what only logs protects nothing");
}

#[test]
fn a_service_without_endpoints_for_a_moment_keeps_its_waypoint() {
    let mut cluster = Cluster::new();
    cluster.routed(&[WEB, POD, ROUTES, &waypoint(true)]);
    let scaled_down = cluster.compile(&[WEB, ROUTES, &waypoint(true)]);
    assert_eq!(scaled_down.waypoints.len(), 1);
    let left = POD.replace("redirection: enabled", "redirection: disabled");
    let compiled = cluster.compile(&[WEB, &left, ROUTES, &waypoint(true)]);
    assert!(compiled.workloads.values().all(|w| &*w.name != "web-1" || w.tunnel == Tunnel::None));
    assert_eq!(compiled.waypoints.len(), 0, "what left the mesh needs none");
}

#[test]
fn what_was_routed_stays_routed_while_its_routes_cannot_be_read() {
    let unreadable = ROUTES.replace("spec: {", "spec: {http: [");
    let refused = ROUTES.replace("http: [{", "http: [{timeout: soon, ");
    for broken in [unreadable, refused] {
        let mut cluster = Cluster::new();
        cluster.routed(&[WEB, POD, ROUTES, &waypoint(true)]);
        cluster.restart();
        assert!(cluster.routed(&[WEB, POD, &broken, &waypoint(true)]), "{broken}");
        assert!(cluster.routed(&[WEB, POD, ROUTES, &waypoint(true)]));
        assert!(!Cluster::new().routed(&[WEB, POD, &broken, &waypoint(true)]), "nothing is made up");
    }
}
