//! Whose objects reach whose traffic, and which of two counts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{compile::Compiled, finding::Finding};
use mesh_core::model::{PolicyName, ServiceName, WorkloadUid, l7::L7Target};

const MESH: &str = r#"
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
"#;

fn compiled(documents: &[&str]) -> (Compiled, Vec<Finding>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), documents.join("\n---\n")).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    (compiled, report.findings)
}

fn codes(findings: &[Finding]) -> Vec<(&str, &str)> {
    let bad = findings.iter().filter(|f| !["waypoint-pending", "waypoint-unavailable"].contains(&f.code));
    bad.map(|f| (&*f.object, f.code)).collect()
}

fn web() -> ServiceName {
    ServiceName::new("shop", "web.shop.svc.cluster.local")
}

fn routes(namespace: &str, name: &str) -> String {
    format!(
        "kind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  hosts: [web.shop.svc.cluster.local]\n  \
         http: [{{route: [{{destination: {{host: web.shop.svc.cluster.local}}}}]}}]\n"
    )
}

fn rule(namespace: &str, name: &str, subset: &str) -> String {
    format!(
        "kind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  host: web.shop.svc.cluster.local\n  \
         subsets: [{{name: {subset}, labels: {{a: b}}}}]\n"
    )
}

#[test]
fn routes_count_from_the_namespace_of_the_service_or_of_its_waypoint_only() {
    let (own, findings) = compiled(&[MESH, &routes("shop", "a")]);
    assert_eq!((&*own.routes[&web()].origin, codes(&findings)), ("VirtualService shop/a", vec![]));
    let (foreign, findings) = compiled(&[MESH, &routes("other", "a")]);
    assert_eq!(&*foreign.routes[&web()].origin, "");
    assert!(foreign.waypoints.is_empty());
    assert_eq!(codes(&findings), [("VirtualService other/a", "not-allowed")]);
    assert!(findings[0].field == "spec.hosts[0]" && findings[0].reason.contains("namespace shop"));
    let shared = "{name: web, namespace: shop, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}}";
    let shared = MESH.replacen("{name: web, namespace: shop}", shared, 1);
    let (through, findings) = compiled(&[&shared, &routes("infra", "a")]);
    assert_eq!((&*through.routes[&web()].origin, codes(&findings)), ("VirtualService infra/a", vec![]));
    assert_eq!(
        codes(&compiled(&[&shared, &routes("other", "a")]).1),
        [("VirtualService other/a", "not-allowed")]
    );
}

#[test]
fn a_destination_rule_counts_from_the_namespace_of_the_service_then_from_the_root_namespace() {
    let used = |documents: &[&str]| {
        let (compiled, findings) = compiled(documents);
        let subsets: Vec<_> = compiled.routes[&web()].subsets.iter().map(|s| s.name.to_string()).collect();
        (
            subsets.join(","),
            codes(&findings).into_iter().map(|(o, c)| format!("{o}: {c}")).collect::<Vec<_>>(),
        )
    };
    let (own, root) = (rule("shop", "own", "own"), rule("istio-system", "a-root", "root"));
    assert_eq!(used(&[MESH, &own]), ("own".into(), vec![]));
    assert_eq!(used(&[MESH, &root]), ("root".into(), vec![]));
    assert_eq!(
        used(&[MESH, &own, &root]),
        ("own".into(), vec!["DestinationRule istio-system/a-root: conflict".into()])
    );
    assert_eq!(
        used(&[MESH, &rule("other", "x", "x")]),
        (String::new(), vec!["DestinationRule other/x: not-allowed".into()])
    );
}

#[test]
fn of_two_objects_for_one_service_the_older_counts_and_the_other_is_told() {
    let dated = |text: &str, year: &str| {
        text.replacen("namespace:", &format!("creationTimestamp: '{year}-01-01T00:00:00Z', namespace:"), 1)
    };
    let (first, second) =
        (dated(&rule("shop", "b", "old"), "2024"), dated(&rule("shop", "a", "new"), "2025"));
    let (compiled_, findings) = compiled(&[MESH, &first, &second]);
    assert_eq!(&*compiled_.routes[&web()].subsets[0].name, "old");
    assert_eq!(codes(&findings), [("DestinationRule shop/a", "conflict")]);
    let (first, second) = (dated(&routes("shop", "b"), "2024"), dated(&routes("shop", "a"), "2025"));
    let (compiled_, findings) = compiled(&[MESH, &first, &second]);
    assert_eq!(&*compiled_.routes[&web()].origin, "VirtualService shop/b");
    assert_eq!(codes(&findings), [("VirtualService shop/a", "conflict")]);
}

#[test]
fn of_two_peer_authentications_for_a_namespace_the_younger_is_told_and_ports_need_a_selector() {
    let peer = |name: &str, spec: &str| {
        format!("kind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
    };
    let (a, b) = (peer("a", "{mtls: {mode: STRICT}}"), peer("b", "{mtls: {mode: PERMISSIVE}}"));
    assert_eq!(codes(&compiled(&[MESH, &a, &b]).1), [("PeerAuthentication shop/b", "conflict")]);
    let selected =
        peer("b", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: PERMISSIVE}}}");
    assert!(codes(&compiled(&[MESH, &a, &selected]).1).is_empty());
    let ports = peer("a", "{portLevelMtls: {80: {mode: STRICT}}}");
    assert_eq!(codes(&compiled(&[MESH, &ports]).1), [("PeerAuthentication shop/a", "no-effect")]);
}

#[test]
fn only_a_policy_of_the_root_namespace_reaches_all_waypoints() {
    let policy = |namespace: &str| {
        format!(
            "kind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{action: DENY, targetRefs: [{{kind: GatewayClass, name: istio-waypoint}}], rules: [{{}}]}}\n"
        )
    };
    let (root, findings) = compiled(&[MESH, &policy("istio-system")]);
    assert_eq!(root.l7_policies[&PolicyName::new("istio-system", "p")].targets, [L7Target::AllWaypoints]);
    assert!(codes(&findings).is_empty());
    let (other, findings) = compiled(&[MESH, &policy("shop")]);
    assert!(other.l7_policies.values().all(|p| p.targets.is_empty()), "it reaches nobody");
    assert_eq!(codes(&findings), [("AuthorizationPolicy shop/p", "not-allowed")]);
}

#[test]
fn a_host_that_its_owner_keeps_is_found_in_its_own_namespace_only() {
    let entry = |namespace: &str, export: &str| {
        format!(
            "kind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}}}\nspec: {{hosts: [api.example.com], exportTo: ['{export}'], addresses: [198.51.100.9], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: 198.51.100.1}}]}}\n"
        )
    };
    let leads = "kind: VirtualService\nmetadata: {name: vs, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: api.example.com}}]}]}\n";
    let found =
        |documents: &[&str]| codes(&compiled(documents).1).iter().any(|(_, code)| *code == "unknown-host");
    assert!(!found(&[MESH, &entry("other", "*"), leads]));
    assert!(found(&[MESH, &entry("other", "."), leads]), "kept from others");
    assert!(!found(&[MESH, &entry("shop", "."), leads]));
}

#[test]
fn routes_and_policies_of_a_service_that_takes_no_waypoint_say_so() {
    let out = MESH.replacen(
        "{name: web, namespace: shop}",
        "{name: web, namespace: shop, labels: {istio.io/use-waypoint: none}}",
        1,
    );
    let policy = "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: web}], rules: [{}]}\n";
    let (compiled_, findings) = compiled(&[&out, &routes("shop", "a"), policy]);
    assert_eq!(
        codes(&findings),
        [("VirtualService shop/a", "no-waypoint"), ("AuthorizationPolicy shop/p", "no-waypoint")]
    );
    assert!(findings[1].reason.contains("closes it to everybody"));
    assert_eq!(
        compiled_.workloads[&WorkloadUid::pod("Kubernetes", "shop", "web-1")].policies.len(),
        1,
        "it does"
    );
    assert!(codes(&compiled(&[MESH, &routes("shop", "a"), policy]).1).is_empty());
}

#[test]
fn hosts_that_begin_alike_are_closed_each_by_its_own_policy() {
    let entry = |host: &str, ip: &str| {
        format!(
            "kind: ServiceEntry\nmetadata: {{name: {host}, namespace: shop}}\nspec: {{hosts: [{host}], addresses: [198.51.100.{ip}], resolution: STATIC, ports: [{{number: 80, name: http}}], endpoints: [{{address: 10.9.0.{ip}}}]}}\n"
        )
    };
    let policy = |host: &str| {
        format!(
            "kind: AuthorizationPolicy\nmetadata: {{name: {host}, namespace: shop}}\nspec: {{targetRefs: [{{kind: ServiceEntry, name: {host}}}], rules: [{{}}]}}\n"
        )
    };
    let (a, b) = ("api.a.com", "api.b.com");
    let (compiled, _) = compiled(&[&entry(a, "1"), &entry(b, "2"), &policy(a), &policy(b)]);
    let names: Vec<_> = compiled.policies.keys().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["culvert_require_waypoint_api.a.com", "culvert_require_waypoint_api.b.com"]);
}
