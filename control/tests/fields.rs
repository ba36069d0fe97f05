//! Every supported field: what the reference examples say arrives in the model and on the wire.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use control::compile::Compiled;
use mesh_core::model::{
    AppProtocol, Health, IpFamilies, LoadBalancing, LoadBalancingMode, Locality, PolicyAction, PolicyName,
    PolicyScope, PortMapping, Scope, Service, ServiceAccountMatch, ServiceName, StringMatch, Tunnel, Vip,
    Workload, WorkloadType, WorkloadUid,
    l7::{
        AbortStatus, ConditionKey, DirectResponse, Fault, HeaderOps, HttpMatch, HttpRoute, L7Condition,
        L7Operation, L7Policy, L7Rule, L7Source, L7Target, LbAlgorithm, Redirect, RetryCondition,
        RetryPolicy, Rewrite, RouteAction, RouteMatch, ServiceRoutes, Subset, TcpRoute, TrafficPolicy,
        WeightedDestination,
    },
};
use mesh_net::wire;

fn examples() -> Compiled {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/reference");
    let (compiled, report) = control::compile_folder(&folder);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    compiled
}

fn host(name: &str) -> ServiceName {
    let full = if name.contains('.') { name.into() } else { format!("{name}.default.svc.cluster.local") };
    ServiceName::new("default", full)
}

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(Arc<str>, Arc<str>)> {
    pairs.map(|(name, value)| (name.into(), value.into())).into()
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<Arc<str>, Arc<str>> {
    texts(pairs).into_iter().collect()
}

fn exact(text: &str) -> RouteMatch {
    RouteMatch::Exact(text.into())
}

fn regex(text: &str) -> RouteMatch {
    RouteMatch::Regex(text.into())
}

fn prefix(text: &str) -> RouteMatch {
    RouteMatch::Prefix(text.into())
}

fn set(name: &str, value: &str) -> HeaderOps {
    HeaderOps { set: texts([(name, value)]), ..HeaderOps::default() }
}

fn to(service: &str, subset: Option<&str>, weight: u32) -> WeightedDestination {
    WeightedDestination {
        service: host(service),
        subset: subset.map(Into::into),
        port: None,
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
    }
}

fn plain(name: &str, matches: Vec<HttpMatch>, action: RouteAction) -> HttpRoute {
    HttpRoute {
        name: name.into(),
        matches,
        action,
        rewrite: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retries: RetryPolicy::default(),
        fault: Fault::default(),
    }
}

fn path(uri: RouteMatch) -> Vec<HttpMatch> {
    vec![HttpMatch { uri: Some(uri), ..HttpMatch::default() }]
}

fn tested() -> HttpRoute {
    let by_path = HttpMatch {
        name: "by-path".into(),
        uri: Some(prefix("/api/")),
        ignore_uri_case: true,
        scheme: Some(exact("http")),
        method: Some(regex("GET|HEAD")),
        authority: Some(exact("reviews")),
        headers: vec![("x-any".into(), RouteMatch::Presence), ("x-user".into(), exact("tester"))],
        without_headers: vec![("x-internal".into(), prefix("yes"))],
        query: vec![("version".into(), regex("[0-9]+"))],
        port: Some(9080),
        source_labels: labels([("app", "frontend")]),
        source_namespace: Some("default".into()),
    };
    let debug = HttpMatch {
        uri: Some(regex("*")),
        headers: vec![("x-debug".into(), exact("1"))],
        ..HttpMatch::default()
    };
    let first = WeightedDestination {
        port: Some(9080),
        request_headers: set("x-try", "v1"),
        response_headers: set("x-from", "v1"),
        ..to("reviews", Some("v1"), 90)
    };
    use RetryCondition as On;
    HttpRoute {
        rewrite: Some(Rewrite {
            uri: Some("/".into()),
            uri_regex: None,
            authority: Some("reviews.internal".into()),
        }),
        request_headers: HeaderOps {
            set: texts([("host", "reviews.internal"), ("x-mesh", "culvert")]),
            add: texts([("x-hop", "waypoint")]),
            remove: vec!["x-secret".into()],
        },
        response_headers: HeaderOps {
            set: texts([("x-served", "yes")]),
            add: texts([("x-hop", "waypoint")]),
            remove: vec!["server".into()],
        },
        timeout: Some(Duration::from_secs(10)),
        retries: RetryPolicy {
            attempts: 3,
            per_try_timeout: Some(Duration::from_secs(2)),
            retry_on: vec![
                On::GatewayError,
                On::Reset,
                On::ConnectFailure,
                On::RefusedStream,
                On::GrpcUnavailable,
                On::Status(429),
            ],
            backoff: Duration::from_millis(50),
        },
        fault: Fault {
            delay: Some((Duration::from_millis(500), 5_000)),
            abort: Some((AbortStatus::Http(503), 10_000)),
        },
        ..plain(
            "tested",
            vec![by_path, debug],
            RouteAction::Forward(vec![first, to("reviews", Some("v2"), 10)]),
        )
    }
}

fn reviews() -> ServiceRoutes {
    let moved = Redirect {
        code: 308,
        uri: Some("/new".into()),
        authority: Some("reviews.example.com".into()),
        scheme: Some("https".into()),
        port: Some(8443),
    };
    let closed = DirectResponse { status: 403, body: "not here".into() };
    let renamed = plain("renamed", path(prefix("/v")), RouteAction::Forward(vec![to("ratings", None, 1)]));
    let policy = TrafficPolicy {
        lb: LbAlgorithm::RoundRobin,
        max_connections: Some(100),
        connect_timeout: Some(Duration::from_secs(3)),
        max_pending_requests: Some(50),
        max_requests: Some(200),
        max_retries: Some(5),
        max_requests_per_connection: Some(1000),
    };
    let second = TrafficPolicy { lb: LbAlgorithm::Random, max_connections: Some(10), ..policy.clone() };
    let subset = |name: &str, traffic_policy| Subset {
        name: name.into(),
        labels: labels([("version", name)]),
        traffic_policy,
    };
    ServiceRoutes {
        service: host("reviews"),
        protocols: [(9080, AppProtocol::Http11)].into(),
        origin: "VirtualService default/reviews".into(),
        http: vec![
            tested(),
            plain("moved", path(exact("/old")), RouteAction::Redirect(moved)),
            HttpRoute {
                response_headers: set("x-reason", "closed"),
                ..plain("closed", path(prefix("/private")), RouteAction::Direct(closed))
            },
            HttpRoute {
                rewrite: Some(Rewrite {
                    uri: None,
                    uri_regex: Some(("^/v([0-9]+)/".into(), r"/api/\1/".into())),
                    authority: None,
                }),
                retries: RetryPolicy { attempts: 0, ..RetryPolicy::default() },
                fault: Fault { delay: None, abort: Some((AbortStatus::Grpc(14), 0)) },
                ..renamed
            },
            plain("4", Vec::new(), RouteAction::Forward(vec![to("reviews", None, 1)])),
        ],
        tcp: Vec::new(),
        traffic_policy: policy.clone(),
        subsets: vec![subset("v1", policy), subset("v2", second)],
    }
}

#[test]
fn every_field_of_virtual_service_and_destination_rule_arrives() {
    let compiled = examples();
    assert_eq!(compiled.routes[&host("reviews")], reviews());
    let mysql = &compiled.routes[&host("mysql")];
    let destinations = vec![to("mysql", Some("blue"), 80), to("mysql", Some("green"), 20)];
    assert_eq!(mysql.tcp, [TcpRoute { port: Some(3306), destinations }]);
    assert_eq!(mysql.subsets[1].labels, labels([("color", "green")]));
}

#[test]
fn every_field_of_authorization_policy_arrives() {
    let compiled = examples();
    let m = |list: &[&str]| list.iter().map(|text| StringMatch::from_istio(text)).collect::<Vec<_>>();
    let nets = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    let when = |key, values: &[&str], not_values: &[&str]| L7Condition {
        key,
        values: m(values),
        not_values: m(not_values),
    };
    let rule = L7Rule {
        from: vec![
            L7Source {
                principals: m(&["cluster.local/ns/default/sa/frontend", "*/sa/batch"]),
                not_principals: m(&["cluster.local/ns/default/sa/admin"]),
                namespaces: m(&["default", "test-*"]),
                not_namespaces: m(&["test-private"]),
                ip_blocks: nets(&["10.0.0.0/8", "192.0.2.7/32"]),
                not_ip_blocks: nets(&["10.1.0.0/16"]),
                remote_ip_blocks: nets(&["203.0.113.0/24"]),
                not_remote_ip_blocks: nets(&["203.0.113.9/32"]),
                ..L7Source::default()
            },
            L7Source {
                service_accounts: vec![account("default", "frontend"), account("other", "backend")],
                not_service_accounts: vec![account("other", "admin")],
                ..L7Source::default()
            },
        ],
        to: vec![L7Operation {
            hosts: m(&["reviews", "*.example.com"]),
            not_hosts: m(&["private.example.com"]),
            ports: vec![9080, 8080],
            not_ports: vec![8081],
            methods: m(&["POST", "PUT"]),
            not_methods: m(&["HEAD"]),
            paths: m(&["/api/*", "*/admin"]),
            not_paths: m(&["/api/public"]),
        }],
        when: vec![
            when(ConditionKey::Header("x-token".into()), &["secret-*"], &["secret-old"]),
            when(ConditionKey::SourceIp, &[], &["10.9.0.0/16"]),
            when(ConditionKey::RemoteIp, &["203.0.113.0/24"], &[]),
            when(ConditionKey::SourceNamespace, &["default"], &[]),
            when(ConditionKey::SourcePrincipal, &["*"], &[]),
            when(ConditionKey::DestinationIp, &["10.96.0.0/16"], &[]),
            when(ConditionKey::DestinationPort, &["9080"], &[]),
        ],
    };
    let key = PolicyName::new("default", "reviews-l7");
    let want = L7Policy {
        key: key.clone(),
        targets: vec![L7Target::Service(host("reviews"))],
        action: PolicyAction::Deny,
        rules: vec![rule],
        dry_run: false,
    };
    assert_eq!(compiled.l7_policies[&key], want);
    let l4 = &compiled.policies[&PolicyName::new("default", "mysql-l4")];
    assert_eq!(
        (l4.action, l4.scope, l4.rules[0].clauses.len()),
        (PolicyAction::Allow, PolicyScope::Workload, 2)
    );
    let matches = |clause: usize| &l4.rules[0].clauses[clause].matches[0];
    assert_eq!(matches(0).destination_ports, [3306]);
    assert_eq!(matches(1).service_accounts, [account("default", "reviews")]);
}

#[test]
fn every_field_of_peer_authentication_arrives() {
    let compiled = examples();
    let strict = PolicyName::new("istio-system", "istio_converted_static_strict");
    let legacy = &compiled.workloads[&legacy().uid];
    assert_eq!(legacy.policies, [strict], "the namespace's");
    let except = &compiled.policies[&PolicyName::new("default", "converted_peer_authentication_mysql")];
    assert_eq!(except.rules[0].clauses[1].matches[0].not_destination_ports, [3307], "UNSET inherits STRICT");
}

fn legacy() -> Workload {
    let uid = WorkloadUid::new("Kubernetes/networking.istio.io/WorkloadEntry/default/legacy-1");
    let port = PortMapping { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http11 };
    Workload {
        addresses: vec!["192.0.2.30".parse().unwrap()],
        network: "vpn".into(),
        service_account: "legacy".into(),
        canonical_name: "legacy".into(),
        canonical_revision: "v2".into(),
        workload_name: "legacy-1".into(),
        policies: vec![PolicyName::new("istio-system", "istio_converted_static_strict")],
        services: [(host("legacy.example.com"), vec![port])].into_iter().collect(),
        locality: Locality { region: "eu".into(), zone: "eu-1".into(), subzone: "b".into() },
        capacity: 2,
        ..Workload::new(uid, "default", "legacy-1")
    }
}

#[test]
fn every_field_of_service_entry_and_workload_entry_arrives() {
    let compiled = examples();
    let vip = |range: &str| Vip { network: "".into(), range: range.parse().unwrap() };
    let port = |target_port| PortMapping { service_port: 443, target_port, app_protocol: AppProtocol::Tls };
    for name in ["payment.example.com", "payment.internal"] {
        let want = Service {
            vips: vec![vip("198.51.100.10/32"), vip("203.0.113.0/28")],
            ports: vec![port(8443)],
            subject_alt_names: vec!["spiffe://cluster.local/ns/payment/sa/server".parse().unwrap()],
            namespace_only: true,
            ..Service::new(host(name), "payment")
        };
        assert_eq!(compiled.services[&host(name)], want);
    }
    let uid = WorkloadUid::new("Kubernetes/networking.istio.io/ServiceEntry/default/payment/192.0.2.20");
    let endpoint = Workload {
        addresses: vec!["192.0.2.20".parse().unwrap()],
        network: "vpn".into(),
        service_account: "payment".into(),
        canonical_name: "payment".into(),
        canonical_revision: "v1".into(),
        workload_name: "payment".into(),
        policies: vec![PolicyName::new("istio-system", "istio_converted_static_strict")],
        services: [
            (host("payment.example.com"), vec![port(9443)]),
            (host("payment.internal"), vec![port(9443)]),
        ]
        .into_iter()
        .collect(),
        locality: Locality { region: "eu".into(), zone: "eu-1".into(), subzone: "a".into() },
        capacity: 3,
        ..Workload::new(uid.clone(), "default", "payment")
    };
    assert_eq!(compiled.workloads[&uid], endpoint);
    assert_eq!(compiled.workloads[&legacy().uid], legacy());
    let search = compiled.workloads.values().find(|w| &*w.hostname == "search.example.com").unwrap();
    assert!(search.addresses.is_empty() && search.services.contains_key(&host("search.example.com")));
    let partners = &compiled.services[&host("*.partners.example.com")];
    assert_eq!(partners.load_balancing.mode, LoadBalancingMode::Passthrough);
}

const CLUSTER: &str = r#"
kind: Namespace
metadata:
  name: shop
  labels: {istio.io/use-waypoint: gate, istio.io/ingress-use-waypoint: "true"}
  annotations: {networking.istio.io/traffic-distribution: PreferSameZone}
---
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}
---
kind: Service
metadata: {name: web, namespace: shop, annotations: {networking.istio.io/exportTo: "."}}
spec:
  selector: {app: web}
  clusterIPs: [10.96.0.9, "fd00::9"]
  ipFamilies: [IPv4, IPv6]
  publishNotReadyAddresses: true
  ports: [{name: http, port: 80, targetPort: page}, {name: db, port: 5432, appProtocol: tcp}]
---
kind: Service
metadata: {name: near, namespace: shop, labels: {istio.io/use-waypoint: none, istio.io/ingress-use-waypoint: "false"}}
spec: {clusterIP: 10.96.0.10, ipFamilies: [IPv4], sessionAffinity: ClientIP, trafficDistribution: PreferSameNode, ports: [{port: 80}]}
---
kind: Service
metadata: {name: local, namespace: shop}
spec: {clusterIP: 10.96.0.11, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web, app.kubernetes.io/version: "7", istio.io/use-waypoint: own, networking.istio.io/tunnel: http}
  ownerReferences: [{kind: Job, name: web-28001234}]
spec:
  nodeName: n1
  serviceAccountName: web
  hostNetwork: true
  containers: [{ports: [{name: page, containerPort: 8080}]}]
status:
  podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]
  conditions: [{type: Ready, status: "False"}]
"#;

fn cluster() -> (Compiled, Vec<control::finding::Finding>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), CLUSTER).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    (compiled, report.findings)
}

fn gateway(name: &str) -> mesh_core::model::GatewayAddress {
    let destination = mesh_core::model::GatewayDestination::Hostname(ServiceName::new(
        "shop",
        format!("{name}.shop.svc.cluster.local"),
    ));
    mesh_core::model::GatewayAddress { destination, hbone_port: 15008 }
}

#[test]
fn every_field_of_a_pod_arrives() {
    let (compiled, _) = cluster();
    let port =
        |service_port, target_port, app_protocol| PortMapping { service_port, target_port, app_protocol };
    let ports = vec![port(80, 8080, AppProtocol::Http11), port(5432, 5432, AppProtocol::Tcp)];
    let uid = WorkloadUid::pod("Kubernetes", "shop", "web-1");
    let want = Workload {
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        tunnel: Tunnel::Hbone,
        service_account: "web".into(),
        waypoint: Some(gateway("own")),
        node: "n1".into(),
        canonical_name: "web".into(),
        canonical_revision: "7".into(),
        workload_type: WorkloadType::Cronjob,
        workload_name: "web".into(),
        native_tunnel: true,
        health: Health::Unhealthy,
        services: [(ServiceName::new("shop", "web.shop.svc.cluster.local"), ports)].into_iter().collect(),
        locality: Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() },
        host_network: true,
        ..Workload::new(uid.clone(), "shop", "web-1")
    };
    assert_eq!(compiled.workloads[&uid], want);
}

#[test]
fn every_field_of_a_service_arrives() {
    let (compiled, _) = cluster();
    let service =
        |name: &str| &compiled.services[&ServiceName::new("shop", format!("{name}.shop.svc.cluster.local"))];
    let vip = |range: &str| Vip { network: "".into(), range: range.parse().unwrap() };
    let port =
        |service_port, target_port, app_protocol| PortMapping { service_port, target_port, app_protocol };
    let zone = vec![Scope::Network, Scope::Region, Scope::Zone];
    let want = Service {
        vips: vec![vip("10.96.0.9/32"), vip("fd00::9/128")],
        ports: vec![port(80, 0, AppProtocol::Http11), port(5432, 5432, AppProtocol::Tcp)],
        waypoint: Some(gateway("gate")),
        load_balancing: LoadBalancing {
            mode: LoadBalancingMode::Failover,
            preference: zone.clone(),
            allow_unhealthy: true,
            sticky: false,
        },
        ip_families: IpFamilies::Dual,
        canonical: true,
        namespace_only: true,
        ingress_use_waypoint: true,
        ..Service::new(service("web").key.clone(), "web")
    };
    assert_eq!(*service("web"), want);
    let near = service("near");
    assert_eq!(
        (near.ip_families, near.waypoint.is_none(), near.namespace_only),
        (IpFamilies::V4, true, false)
    );
    assert_eq!(near.load_balancing.preference, [zone, vec![Scope::Subzone, Scope::Node]].concat());
    assert!(near.load_balancing.sticky, "sessionAffinity");
    assert!(!near.ingress_use_waypoint, "the object comes before its namespace");
    let local = &service("local").load_balancing;
    assert_eq!((local.mode, &local.preference[..]), (LoadBalancingMode::Strict, &[Scope::Node][..]));
}

#[test]
fn what_is_compiled_is_the_same_after_the_wire() {
    for compiled in [examples(), cluster().0] {
        for routes in compiled.routes.values() {
            assert_eq!(wire::l7::from_routes(wire::l7::to_routes(routes)).unwrap(), *routes);
        }
        for policy in compiled.l7_policies.values() {
            assert_eq!(wire::l7::from_l7_policy(wire::l7::to_l7_policy(policy)).unwrap(), *policy);
        }
        for policy in compiled.policies.values() {
            let sent = wire::policy::to_authorization(policy);
            assert_eq!(wire::policy::from_authorization(&policy.key.to_string(), sent).unwrap(), *policy);
        }
        for labels in compiled.labels.values() {
            assert_eq!(wire::l7::from_labels(wire::l7::to_labels(labels)).unwrap(), *labels);
        }
        for workload in compiled.workloads.values() {
            let came = wire::workload::from_address(wire::workload::workload_address(workload)).unwrap();
            assert_eq!(came, wire::workload::Address::Workload(workload.clone()));
        }
        for service in compiled.services.values() {
            let came = wire::workload::from_address(wire::workload::service_address(service)).unwrap();
            assert_eq!(came, wire::workload::Address::Service(service.clone()));
        }
    }
}

/// Fields of Istio that are not supported, each below the spec of a document that is good otherwise.
const UNSUPPORTED: [(&str, &str, &str); 20] = [
    ("VirtualService", "http[0].corsPolicy", "{allowOrigins: [{exact: x}]}"),
    ("VirtualService", "http[0].delegate", "{name: x}"),
    ("VirtualService", "http[0].mirror", "{host: web}"),
    ("VirtualService", "http[0].mirrors", "[{destination: {host: web}}]"),
    ("VirtualService", "http[0].mirrorPercentage", "{value: 1}"),
    ("VirtualService", "tls", "[{match: [{sniHosts: [x]}]}]"),
    ("VirtualService", "exportTo", "[.]"),
    ("VirtualService", "http[0].match[0].gateways", "[mesh]"),
    ("VirtualService", "http[0].match[0].statPrefix", "x"),
    ("VirtualService", "http[0].retries.retryOn", "5xx,x"),
    ("VirtualService", "http[0].retries.retryRemoteLocalities", "true"),
    ("VirtualService", "http[0].fault.delay.exponentialDelay", "1s"),
    ("DestinationRule", "trafficPolicy.outlierDetection", "{consecutive5xxErrors: 1}"),
    ("DestinationRule", "trafficPolicy.portLevelSettings", "[{port: {number: 80}}]"),
    ("DestinationRule", "trafficPolicy.tls", "{mode: ISTIO_MUTUAL}"),
    ("DestinationRule", "trafficPolicy.loadBalancer.consistentHash", "{useSourceIp: true}"),
    ("DestinationRule", "trafficPolicy.connectionPool.http.idleTimeout", "1s"),
    ("DestinationRule", "exportTo", "[.]"),
    ("DestinationRule", "workloadSelector", "{matchLabels: {a: b}}"),
    ("ServiceEntry", "resolutionScope", "x"),
];

/// The good part of each kind as JSON, into which a field is put.
fn good(kind: &str) -> serde_json::Value {
    let to = serde_json::json!([{"destination": {"host": "web"}}]);
    let spec = match kind {
        "VirtualService" => serde_json::json!({"hosts": ["web"], "http": [{
            "match": [{"port": 80}], "route": to, "retries": {"attempts": 1}, "fault": {"delay": {"fixedDelay": "1s"}}}]}),
        "DestinationRule" => serde_json::json!({"host": "web", "trafficPolicy": {
            "loadBalancer": {"simple": "RANDOM"}, "connectionPool": {"http": {}}}}),
        _ => {
            serde_json::json!({"hosts": ["a.example.com"], "addresses": ["192.0.2.1"], "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http"}], "endpoints": [{"address": "192.0.2.2"}]})
        }
    };
    serde_json::json!({"kind": kind, "metadata": {"name": "x"}, "spec": spec})
}

fn findings_of(document: &serde_json::Value) -> Vec<(String, &'static str)> {
    let folder = tempfile::tempdir().unwrap();
    let web = "kind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80}]}\n";
    std::fs::write(folder.path().join("a.yaml"), format!("{web}---\n{document}\n")).unwrap();
    let findings = control::analyze(folder.path()).findings;
    findings.into_iter().map(|f| (f.field, f.code)).collect()
}

#[test]
fn every_unsupported_field_is_reported_by_name() {
    for (kind, field, value) in UNSUPPORTED {
        let mut document = good(kind);
        assert_eq!(findings_of(&document), [], "{kind}");
        let pointer = format!("/spec/{}", field.replace('[', "/").replace(']', "").replace('.', "/"));
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
        parent[name] = serde_norway::from_str(value).unwrap();
        assert_eq!(
            findings_of(&document),
            [(format!("spec.{field}"), "unsupported-field")],
            "{kind} {field}"
        );
    }
}

#[test]
fn labels_and_annotations_without_effect_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = "kind: Service\nmetadata:\n  name: web\n  labels: {istio.io/use-waypoint-canary: x}\n  annotations:\n    \
                networking.istio.io/traffic-distribution: Nearest\n    networking.istio.io/exportTo: '~'\nspec: {ports: [{port: 80}], ipFamilies: [IPv5]}\n";
    std::fs::write(folder.path().join("a.yaml"), text).unwrap();
    let found: Vec<_> =
        control::analyze(folder.path()).findings.into_iter().map(|f| (f.line, f.code)).collect();
    assert!(found.contains(&(4, "unsupported-label")) && found.contains(&(8, "bad-value")), "{found:?}");
    std::fs::write(folder.path().join("a.yaml"), text.replace("IPv5", "IPv6")).unwrap();
    let found: Vec<_> =
        control::analyze(folder.path()).findings.into_iter().map(|f| (f.line, f.code)).collect();
    assert_eq!(found, [(4, "unsupported-label"), (5, "unsupported-field"), (5, "unsupported-field")]);
}
