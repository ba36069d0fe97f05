//! Which endpoints of a service a client of some node uses: compiled from YAML, chosen by the code that
//! agents run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use control::finding::Severity;
use mesh_core::{
    balance::{NoLoad, Purpose, Wanted, pick},
    entropy::SplitMix64,
    model::{
        LoadBalancingMode::{self, Any, Failover, Strict},
        Scope::{self, Network, Node, Region, Subzone, Zone},
        ServiceName, WorkloadUid,
    },
};

/// Two zones of two nodes, and a region far away.
const NODES: [(&str, &str, &str); 5] =
    [("a1", "r", "a"), ("a2", "r", "a"), ("b1", "r", "b"), ("b2", "r", "b"), ("far", "elsewhere", "a")];

/// A pod of `web` on each of some nodes; `!node` has one that is not ready.
fn world(service: &str, namespace: &str, pods: &[&str]) -> String {
    let mut yaml = format!(
        "kind: Namespace\nmetadata: {{name: shop{namespace}}}\n---\nkind: Service\n\
         metadata: {{name: web, namespace: shop{service}, selector: {{app: web}}, \
         ports: [{{port: 80, targetPort: 8080}}]}}\n"
    );
    for (name, region, zone) in NODES {
        let labels = format!(
            "topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}, \
             topology.istio.io/subzone: s"
        );
        yaml += &format!("---\nkind: Node\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n");
    }
    for (n, node) in pods.iter().enumerate() {
        yaml += &pod(&format!("web-{n}"), "web", node, n + 10);
    }
    yaml + &pod("client", "client", "a1", 9)
}

fn pod(name: &str, app: &str, node: &str, host: usize) -> String {
    let (node, ready) = node.strip_prefix('!').map_or((node, "True"), |node| (node, "False"));
    format!(
        "---\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: {node}}}\n\
         status: {{podIP: 10.0.0.{host}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n"
    )
}

const PLAIN: &str = "}\nspec: {clusterIP: 10.96.0.1";

/// What follows a service's name and namespace in YAML, up to its selector.
fn spec(fields: &str) -> String {
    format!("{PLAIN}, {fields}")
}

fn annotated(distribution: &str) -> String {
    format!(", annotations: {{networking.istio.io/traffic-distribution: {distribution}}}")
}

fn compiled(yaml: &str) -> (control::compile::Compiled, Vec<control::finding::Finding>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), yaml).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    assert!(!report.has_errors(), "{yaml}\n{:?}", report.findings);
    (compiled, report.findings)
}

fn web() -> ServiceName {
    ServiceName::new("shop", "web.shop.svc.cluster.local")
}

/// The nodes that the client on `a1` uses in a hundred draws.
fn nodes(service: &str, namespace: &str, pods: &[&str]) -> BTreeSet<String> {
    let snapshot = compiled(&world(service, namespace, pods)).0.snapshot();
    let source = snapshot.workload(&WorkloadUid::pod("Kubernetes", "shop", "client")).unwrap().clone();
    let service = snapshot.service(&web()).unwrap();
    let wanted = Wanted { source: &source, service, port: 80, purpose: Purpose::Destination };
    let mut entropy = SplitMix64::new(1);
    let chosen = (0..100).filter_map(|_| pick(&snapshot, wanted, &mut entropy, &NoLoad));
    chosen.map(|endpoint| endpoint.workload.node.to_string()).collect()
}

const EVERYWHERE: [&str; 5] = ["a1", "a2", "b1", "b2", "far"];

#[test]
fn fields_and_annotations_of_a_service_become_load_balancing_as_istiod_says_it() {
    type Wanted = (LoadBalancingMode, Vec<Scope>, bool);
    let zone: Wanted = (Failover, vec![Network, Region, Zone], false);
    let node: Wanted = (Failover, vec![Network, Region, Zone, Subzone, Node], false);
    let local: Wanted = (Strict, vec![Node], false);
    let any: Wanted = (Any, vec![], false);
    let near = annotated("PreferClose");
    let field = |value: &str| spec(&format!("trafficDistribution: {value}"));
    for (service, namespace, wanted) in [
        (PLAIN.to_string(), "", &any),
        (field("PreferClose"), "", &zone),
        (field("PreferSameZone"), "", &zone),
        (field("PreferSameNode"), "", &node),
        (spec("internalTrafficPolicy: Local"), "", &local),
        (spec("internalTrafficPolicy: Cluster"), "", &any),
        (spec("internalTrafficPolicy: Local, trafficDistribution: PreferClose"), "", &local),
        (spec("publishNotReadyAddresses: true"), "", &(Any, vec![], true)),
        (annotated("PreferClose") + PLAIN, "", &zone),
        (annotated("PreferSameNode") + PLAIN, "", &node),
        (PLAIN.to_string(), &*near, &zone),
        (annotated("PreferSameNode") + PLAIN, &*near, &node),
        (annotated("PreferSameNode") + &field("PreferClose"), "", &zone),
    ] {
        let (compiled, findings) = compiled(&world(&service, namespace, &[]));
        let lb = &compiled.services[&web()].load_balancing;
        assert_eq!((lb.mode, lb.preference.clone(), lb.allow_unhealthy), *wanted, "{service}{namespace}");
        assert!(findings.is_empty(), "{service}{namespace}: {findings:?}");
    }
}

#[test]
fn a_distribution_that_is_not_supported_is_said_and_prefers_nothing() {
    for service in [annotated("PreferFar") + PLAIN, spec("trafficDistribution: PreferFar")] {
        let (compiled, findings) = compiled(&world(&service, "", &[]));
        assert_eq!(compiled.services[&web()].load_balancing.mode, Any);
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.severity, finding.code), (Severity::Warning, "unsupported-field"));
        assert!(finding.reason.contains("PreferFar"), "{finding}");
    }
}

#[test]
fn a_client_uses_the_nearest_endpoints_that_are_ready() {
    let near = spec("trafficDistribution: PreferClose");
    let same = spec("trafficDistribution: PreferSameNode");
    let local = spec("internalTrafficPolicy: Local");
    let unready = spec("publishNotReadyAddresses: true");
    let cases: [(&str, &[&str], &[&str]); 13] = [
        (PLAIN, &EVERYWHERE[..], &EVERYWHERE[..]),
        (PLAIN, &["a1", "!a2", "b1"], &["a1", "b1"]),
        (&near, &EVERYWHERE, &["a1", "a2"]),
        (&near, &["!a1", "!a2", "b1", "far"], &["b1"]),
        (&near, &["far"], &["far"]),
        (&near, &["!a1"], &[]),
        (&same, &EVERYWHERE, &["a1"]),
        (&same, &["!a1", "a2", "b1"], &["a2"]),
        (&same, &["b1", "b2", "far"], &["b1", "b2"]),
        (&local, &EVERYWHERE, &["a1"]),
        (&local, &["a2", "b1"], &[]),
        (&local, &["!a1", "a2"], &[]),
        (&unready, &["!a1", "b1"], &["a1", "b1"]),
    ];
    for (service, pods, used) in cases {
        let used: BTreeSet<String> = used.iter().map(ToString::to_string).collect();
        assert_eq!(nodes(service, "", pods), used, "{service} with {pods:?}");
    }
}
