//! Services and endpoints that no pod stands for: ServiceEntry, WorkloadEntry, EndpointSlice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{compile::Compiled, finding::Finding};
use mesh_core::{
    explain::{explain, find_source},
    http::explain_routes,
    model::{
        AppProtocol, GatewayDestination, Health, LoadBalancingMode, PortMapping, Service, ServiceName,
        Tunnel, Workload, WorkloadUid, l7::L7Target,
    },
};

const CLIENT: &str = r#"
kind: Pod
metadata: {name: client-1, labels: {app: client}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: client}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
"#;

const STATIC: &str = r#"
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.com, db2.example.com]
  addresses: [192.0.2.10]
  ports: [{number: 5432, name: pg, protocol: TCP, targetPort: 6000}]
  resolution: STATIC
  subjectAltNames: ["spiffe://cluster.local/ns/db/sa/db"]
  endpoints:
    - address: 198.51.100.1
      weight: 3
      locality: r1/z1
      labels: {version: a}
    - {address: 198.51.100.2, ports: {pg: 7000}, labels: {networking.istio.io/tunnel: http}, serviceAccount: db}
"#;

fn all(documents: &[&str]) -> (Compiled, Vec<Finding>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    (compiled, report.findings)
}

fn host(host: &str) -> ServiceName {
    ServiceName::new("default", host)
}

fn service<'a>(compiled: &'a Compiled, name: &str) -> &'a Service {
    &compiled.services[&host(name)]
}

fn workload<'a>(compiled: &'a Compiled, uid: &str) -> &'a Workload {
    let known = || compiled.workloads.keys().map(ToString::to_string).collect::<Vec<_>>();
    compiled
        .workloads
        .get(&WorkloadUid::new(format!("Kubernetes/{uid}")))
        .unwrap_or_else(|| panic!("{:?}", known()))
}

fn targets(workload: &Workload, service: &str) -> Vec<(u16, u16)> {
    workload.services[&host(service)].iter().map(|p| (p.service_port, p.target_port)).collect()
}

/// What `client-1` is told about a destination, as one text.
fn told(compiled: &Compiled, to: &str) -> String {
    let snapshot = compiled.snapshot();
    let source = find_source(&snapshot, "client-1").unwrap();
    explain(&snapshot, source, to.parse().unwrap(), &explain_routes).to_string()
}

#[test]
fn a_static_service_entry_is_a_service_per_host_with_its_endpoints() {
    let (compiled, findings) = all(&[CLIENT, STATIC]);
    assert!(findings.is_empty(), "{findings:?}");
    for name in ["db.example.com", "db2.example.com"] {
        let service = service(&compiled, name);
        assert_eq!((&*service.name, service.vips[0].range.to_string().as_str()), ("db", "192.0.2.10/32"));
        let port = PortMapping { service_port: 5432, target_port: 6000, app_protocol: AppProtocol::Tcp };
        assert_eq!((service.ports[0], service.canonical), (port, false));
        assert_eq!(service.subject_alt_names[0].principal(), "cluster.local/ns/db/sa/db");
    }
    let first = workload(&compiled, "networking.istio.io/ServiceEntry/default/db/198.51.100.1");
    assert_eq!((first.capacity, first.tunnel, &*first.locality.zone), (3, Tunnel::None, "z1"));
    assert_eq!(targets(first, "db.example.com"), [(5432, 6000)]);
    assert_eq!(&*compiled.labels[&first.uid].labels["version"], "a");
    let second = workload(&compiled, "networking.istio.io/ServiceEntry/default/db/198.51.100.2");
    assert_eq!((second.tunnel, second.native_tunnel, &*second.service_account), (Tunnel::Hbone, true, "db"));
    assert_eq!(
        targets(second, "db2.example.com"),
        [(5432, 7000)],
        "its own number for the port of that name"
    );
}

#[test]
fn a_client_reaches_a_static_endpoint_at_its_target_port() {
    let one = STATIC.lines().filter(|l| !l.contains("198.51.100.2")).collect::<Vec<_>>().join("\n");
    let told = told(&all(&[CLIENT, &one]).0, "192.0.2.10:5432");
    assert!(told.contains("plain TCP to 198.51.100.1:6000"), "{told}");
}

#[test]
fn a_dns_service_entry_leaves_names_to_the_agent() {
    let entry = |endpoints: &str| {
        format!(
            "kind: ServiceEntry\nmetadata: {{name: api}}\nspec:\n  hosts: [API.example.com]\n  addresses: [192.0.2.7]\n  \
             ports: [{{number: 443, name: tls, protocol: TLS}}]\n  resolution: DNS\n{endpoints}"
        )
    };
    let (compiled, _) = all(&[CLIENT, &entry("")]);
    let own = workload(&compiled, "networking.istio.io/ServiceEntry/default/api/api.example.com");
    assert!(own.addresses.is_empty() && &*own.hostname == "api.example.com", "the host is its own endpoint");
    let told = told(&compiled, "192.0.2.7:443");
    assert!(told.contains("plain TCP to api.example.com:443"), "{told}");
    let (compiled, _) = all(&[&entry("  endpoints: [{address: eu.api.example.com}]\n")]);
    assert_eq!(compiled.workloads.len(), 1);
    let eu = workload(&compiled, "networking.istio.io/ServiceEntry/default/api/eu.api.example.com");
    assert_eq!(targets(eu, "api.example.com"), [(443, 443)]);
}

#[test]
fn an_entry_without_resolution_passes_what_the_client_dials() {
    let none = "kind: ServiceEntry\nmetadata: {name: net}\nspec:\n  hosts: ['*.example.com']\n  \
                addresses: [203.0.113.0/24]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  exportTo: [.]\n";
    let (compiled, findings) = all(&[CLIENT, none]);
    assert!(findings.is_empty(), "{findings:?}");
    let service = service(&compiled, "*.example.com");
    assert_eq!(service.load_balancing.mode, LoadBalancingMode::Passthrough);
    assert!(service.load_balancing.allow_unhealthy && service.namespace_only);
    let told = told(&compiled, "203.0.113.9:80");
    assert!(told.contains("plain TCP to 203.0.113.9:80") && told.contains("*.example.com"), "{told}");
    let (compiled, findings) = all(&[&none.replace("  addresses: [203.0.113.0/24]\n", "")]);
    assert!(compiled.services.values().all(|s| s.vips.is_empty()));
    assert_eq!((findings[0].code, &*findings[0].field), ("no-address", "spec.addresses"));
}

#[test]
fn a_host_without_address_is_given_one_that_stays_and_the_finding_says_which() {
    let entry = "kind: ServiceEntry\nmetadata: {name: x}\nspec:\n  hosts: [x.example.com]\n  resolution: STATIC\n  \
                 ports: [{number: 80, name: http}]\n  endpoints: [{address: 198.51.100.1}]\n";
    let (compiled, findings) = all(&[entry]);
    let given = service(&compiled, "x.example.com").vips[0].range.addr();
    assert!(given.to_string().starts_with("240.240."), "{given}");
    assert!(findings[0].code == "given-address" && findings[0].reason.contains(&given.to_string()));
    assert_eq!(service(&all(&[entry]).0, "x.example.com").vips[0].range.addr(), given);
}

#[test]
fn a_workload_selector_selects_pods_and_workload_entries_of_its_namespace() {
    let entry = "kind: ServiceEntry\nmetadata: {name: legacy}\nspec:\n  hosts: [legacy.example.com]\n  \
                 addresses: [192.0.2.1]\n  ports: [{number: 80, name: web, targetPort: 8080}]\n  resolution: STATIC\n  \
                 workloadSelector: {labels: {app: client}}\n";
    let vm = "kind: WorkloadEntry\nmetadata: {name: vm}\nspec: {address: 198.51.100.3, labels: {app: client}, ports: {web: 9090}}\n";
    let elsewhere = vm.replace("{name: vm}", "{name: vm2, namespace: other}").replace("100.3", "100.4");
    let (compiled, findings) = all(&[CLIENT, entry, vm, &elsewhere]);
    assert!(findings.is_empty(), "{findings:?}");
    let pod = workload(&compiled, "/Pod/default/client-1");
    assert_eq!(targets(pod, "legacy.example.com"), [(80, 8080)]);
    let vm = workload(&compiled, "networking.istio.io/WorkloadEntry/default/vm");
    assert_eq!(targets(vm, "legacy.example.com"), [(80, 9090)]);
    let other = workload(&compiled, "networking.istio.io/WorkloadEntry/other/vm2");
    assert!(other.services.is_empty());
}

#[test]
fn a_workload_entry_backs_services_with_its_place_network_and_health() {
    let service = "kind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: page}]}\n";
    let vm = "kind: WorkloadEntry\nmetadata: {name: vm, labels: {istio.io/use-waypoint: w}}\nspec:\n  address: vm.example.com\n  \
              labels: {app: web, networking.istio.io/tunnel: http}\n  ports: {page: 8080}\n  network: n2\n  \
              locality: r/z/s\n  weight: 5\n  serviceAccount: vm\nstatus:\n  conditions: [{type: Healthy, status: 'False'}]\n";
    let (compiled, findings) = all(&[service, vm]);
    assert!(findings.is_empty(), "{findings:?}");
    let vm = workload(&compiled, "networking.istio.io/WorkloadEntry/default/vm");
    assert_eq!((&*vm.hostname, &*vm.network, &*vm.locality.subzone), ("vm.example.com", "n2", "s"));
    assert_eq!((vm.capacity, vm.health, vm.tunnel), (5, Health::Unhealthy, Tunnel::Hbone));
    assert_eq!(targets(vm, "web.default.svc.cluster.local"), [(80, 8080)], "the named target");
    assert!(vm.waypoint.is_some() && &*vm.service_account == "vm");
}

#[test]
fn a_service_entry_goes_through_the_waypoint_that_its_label_names_and_has_policies() {
    let labelled = STATIC.replace("{name: db}", "{name: db, labels: {istio.io/use-waypoint: egress}}");
    let policy = "kind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: ServiceEntry, name: db}]}\n";
    let (compiled, _) = all(&[CLIENT, &labelled, policy]);
    let gateway = service(&compiled, "db.example.com").waypoint.as_ref().unwrap();
    assert!(
        matches!(&gateway.destination, GatewayDestination::Hostname(n) if n.hostname.starts_with("egress."))
    );
    let policy = compiled.l7_policies.values().next().unwrap();
    let reached: Vec<_> = ["db.example.com", "db2.example.com"].map(|h| L7Target::Service(host(h))).into();
    assert_eq!(policy.targets, reached);
    let routes = "kind: VirtualService\nmetadata: {name: r}\nspec: {hosts: [db.example.com], http: [{route: [{destination: {host: db.example.com}}]}]}\n";
    let (compiled, findings) = all(&[&STATIC.replace("tunnel: http", "tunnel: none"), routes]);
    assert!(compiled.waypoints.is_empty(), "nothing of it is in the mesh");
    assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["not-enrolled"]);
}

const SLICE: &str = r#"
kind: Service
metadata: {name: out}
spec: {clusterIP: 10.96.0.77, ports: [{name: http, port: 80, targetPort: 1234}, {name: other, port: 81}]}
---
kind: EndpointSlice
metadata: {name: out-1, labels: {kubernetes.io/service-name: out}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
  - {addresses: [198.51.100.5], zone: z9, nodeName: n9}
  - {addresses: [198.51.100.6], conditions: {ready: false}}
  - {addresses: [10.0.0.1], targetRef: {kind: Pod, name: client-1}}
"#;

#[test]
fn explicit_slices_are_the_endpoints_of_a_service_without_selector() {
    let (compiled, findings) = all(&[CLIENT, SLICE]);
    assert!(findings.is_empty(), "{findings:?}");
    let out = "out.default.svc.cluster.local";
    let first = workload(&compiled, "discovery.k8s.io/EndpointSlice/default/out-1/198.51.100.5");
    assert_eq!(targets(first, out), [(80, 8080)], "the slice's number; the port that it lacks is not served");
    assert_eq!((first.health, &*first.locality.zone, &*first.node), (Health::Healthy, "z9", "n9"));
    let second = workload(&compiled, "discovery.k8s.io/EndpointSlice/default/out-1/198.51.100.6");
    assert_eq!(second.health, Health::Unhealthy);
    let pod = workload(&compiled, "/Pod/default/client-1");
    assert_eq!(targets(pod, out), [(80, 8080)], "a pod stays one workload");
    assert_eq!(compiled.workloads.len(), 3);
}

#[test]
fn slices_of_a_service_with_selector_change_nothing_and_of_none_are_findings() {
    let selecting = SLICE.replace("spec: {clusterIP", "spec: {selector: {app: nobody}, clusterIP");
    let (compiled, findings) = all(&[&selecting]);
    assert!(compiled.workloads.is_empty() && findings.is_empty(), "{findings:?}");
    let lost = SLICE.replace("service-name: out}", "service-name: gone}");
    assert_eq!(all(&[&lost]).1[0].code, "unknown-service");
    let names = SLICE.replace("addressType: IPv4", "addressType: FQDN");
    let (compiled, findings) = all(&[&names]);
    assert!(compiled.workloads.is_empty() && findings[0].field == "addressType");
}

#[test]
fn what_is_wrong_with_an_entry_is_named_by_field() {
    let entry =
        |spec: &str| format!("kind: ServiceEntry\nmetadata: {{name: x}}\nspec:\n  hosts: [x.io]\n{spec}");
    for (spec, field, code) in [
        ("  resolution: DYNAMIC_DNS\n", "spec.resolution", "bad-value"),
        ("  resolution: STATIC\n  endpoints: [{address: a.b}]\n", "spec.endpoints[0].address", "bad-address"),
        (
            "  resolution: STATIC\n  endpoints: [{address: 'unix:///a'}]\n",
            "spec.endpoints[0].address",
            "bad-address",
        ),
        ("  addresses: [300.1.1.1]\n", "spec.addresses[0]", "bad-cidr"),
        ("  ports: [{name: x}]\n", "spec.ports[0].number", "missing-field"),
        ("  exportTo: [team-a]\n", "spec.exportTo", "unsupported-field"),
        ("  portz: []\n", "spec.portz", "unsupported-field"),
        ("  subjectAltNames: [x]\n", "spec.subjectAltNames[0]", "unsupported-field"),
        ("  ports: [{number: 53, protocol: UDP}]\n", "spec.ports[0].protocol", "unsupported-field"),
    ] {
        let findings = all(&[&entry(spec)]).1;
        assert!(findings.iter().any(|f| f.field == field && f.code == code), "{spec}: {findings:?}");
    }
    let alias = "kind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: x.io}\n";
    let (compiled, findings) = all(&[alias]);
    assert!(compiled.services.is_empty());
    assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["external-name"]);
}
