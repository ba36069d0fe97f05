//! Round trips and refusals of what waypoints are told.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    fixtures::service_name,
    model::{
        AppProtocol, PolicyAction, PolicyName, ServiceAccountMatch, StringMatch, WorkloadUid,
        l7::{
            AbortStatus, ConditionKey, DirectResponse, Fault, HeaderOps, HttpMatch, HttpRoute, L7Condition,
            L7Operation, L7Policy, L7Rule, L7Source, L7Target, LbAlgorithm, Redirect, RetryCondition,
            RetryPolicy, Rewrite, RouteAction, RouteMatch, ServiceRoutes, Subset, TcpRoute, TrafficPolicy,
            WeightedDestination, WorkloadLabels,
        },
    },
};

use crate::{
    api::culvert::l7::v1 as pb,
    wire::l7::{from_l7_policy, from_labels, from_routes, to_l7_policy, to_labels, to_routes},
};

fn text(text: &str) -> Arc<str> {
    text.into()
}

fn labels() -> std::collections::BTreeMap<Arc<str>, Arc<str>> {
    [(text("app"), text("web")), (text("empty"), text(""))].into()
}

fn headers(base: &str) -> HeaderOps {
    HeaderOps {
        set: vec![(text(base), text("1"))],
        add: vec![(text("x-a"), text("1")), (text("x-a"), text("2"))],
        remove: vec![text("x-gone")],
    }
}

fn destination(subset: Option<&str>) -> WeightedDestination {
    WeightedDestination {
        service: service_name("web"),
        subset: subset.map(text),
        port: subset.map(|_| 8080),
        weight: 90,
        request_headers: headers("x-request"),
        response_headers: HeaderOps::default(),
    }
}

fn full_match() -> HttpMatch {
    HttpMatch {
        name: text("m"),
        uri: Some(RouteMatch::Prefix(text("/api"))),
        ignore_uri_case: true,
        scheme: Some(RouteMatch::Exact(text("https"))),
        method: Some(RouteMatch::Regex(text("GET|PUT"))),
        authority: Some(RouteMatch::Presence),
        headers: vec![(text("x-user"), RouteMatch::Exact(text("me")))],
        without_headers: vec![(text("x-bot"), RouteMatch::Presence)],
        query: vec![(text("q"), RouteMatch::Regex(text("[0-9]+")))],
        port: Some(80),
        source_labels: labels(),
        source_namespace: Some(text("shop")),
    }
}

fn full_retries() -> RetryPolicy {
    use RetryCondition::{
        ConnectFailure, GatewayError, GrpcCancelled, GrpcDeadlineExceeded, GrpcInternal,
        GrpcResourceExhausted, GrpcUnavailable, RefusedStream, Reset, ResetBeforeRequest, Retriable4xx,
        Status, Status5xx,
    };
    RetryPolicy {
        attempts: 4,
        per_try_timeout: Some(Duration::from_millis(1500)),
        retry_on: vec![
            Status5xx,
            GatewayError,
            Reset,
            ResetBeforeRequest,
            ConnectFailure,
            RefusedStream,
            Retriable4xx,
            Status(503),
            GrpcCancelled,
            GrpcDeadlineExceeded,
            GrpcInternal,
            GrpcResourceExhausted,
            GrpcUnavailable,
        ],
        backoff: Duration::from_millis(40),
    }
}

fn route(action: RouteAction) -> HttpRoute {
    HttpRoute {
        name: text("r"),
        matches: vec![full_match(), HttpMatch::default()],
        action,
        rewrite: Some(Rewrite {
            uri: Some(text("/")),
            uri_regex: Some((text("^/a"), text("/b"))),
            authority: Some(text("else.example")),
        }),
        request_headers: headers("x-r"),
        response_headers: headers("x-s"),
        timeout: Some(Duration::from_secs(3)),
        retries: full_retries(),
        fault: Fault {
            delay: Some((Duration::from_millis(7), 500_000)),
            abort: Some((AbortStatus::Http(503), 1_000_000)),
        },
    }
}

fn bare_route() -> HttpRoute {
    let direct = DirectResponse { status: 404, body: text("gone") };
    HttpRoute {
        name: text(""),
        matches: vec![],
        action: RouteAction::Direct(direct),
        rewrite: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retries: RetryPolicy::default(),
        fault: Fault { delay: None, abort: Some((AbortStatus::Grpc(14), 3)) },
    }
}

fn traffic(lb: LbAlgorithm) -> TrafficPolicy {
    TrafficPolicy {
        lb,
        max_connections: Some(1),
        connect_timeout: Some(Duration::from_millis(250)),
        max_pending_requests: Some(2),
        max_requests: Some(3),
        max_retries: Some(4),
        max_requests_per_connection: Some(5),
    }
}

fn full_routes() -> ServiceRoutes {
    use AppProtocol::{Grpc, Http2, Http11, Tcp, Tls, Unknown};
    let redirect = Redirect {
        code: 308,
        uri: Some(text("/new")),
        authority: Some(text("new.example")),
        scheme: Some(text("https")),
        port: Some(8443),
    };
    let subset = |name: &str, lb| Subset { name: text(name), labels: labels(), traffic_policy: traffic(lb) };
    ServiceRoutes {
        service: service_name("web"),
        protocols: (80..).zip([Unknown, Http11, Http2, Grpc, Tcp, Tls]).collect(),
        origin: text("shop/web"),
        http: vec![
            route(RouteAction::Forward(vec![destination(Some("v2")), destination(None)])),
            route(RouteAction::Redirect(redirect)),
            bare_route(),
        ],
        tcp: vec![
            TcpRoute { port: Some(5432), destinations: vec![destination(None)] },
            TcpRoute { port: None, destinations: vec![] },
        ],
        traffic_policy: traffic(LbAlgorithm::RoundRobin),
        subsets: vec![subset("v1", LbAlgorithm::Random), subset("v2", LbAlgorithm::LeastRequest)],
    }
}

fn full_policy() -> L7Policy {
    let texts = |base: &str| {
        let forms = [StringMatch::Exact, StringMatch::Prefix, StringMatch::Suffix];
        let all = forms.into_iter().map(|form| form(text(base))).chain([StringMatch::Presence]);
        all.collect::<Vec<_>>()
    };
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let accounts = vec![ServiceAccountMatch { namespace: text("shop"), service_account: text("web") }];
    let source = L7Source {
        principals: texts("a"),
        not_principals: texts("b"),
        namespaces: texts("c"),
        not_namespaces: texts("d"),
        service_accounts: accounts.clone(),
        not_service_accounts: accounts,
        ip_blocks: nets(&["10.0.0.0/8", "fd00::/16"]),
        not_ip_blocks: nets(&["10.1.0.0/16"]),
        remote_ip_blocks: nets(&["10.2.0.0/16"]),
        not_remote_ip_blocks: nets(&["fd01::/16"]),
    };
    let operation = L7Operation {
        hosts: texts("e"),
        not_hosts: texts("f"),
        ports: vec![0, 65535],
        not_ports: vec![80],
        methods: texts("GET"),
        not_methods: texts("PUT"),
        paths: texts("/a"),
        not_paths: texts("/b"),
    };
    let keys = [
        ConditionKey::Header(text("x-user")),
        ConditionKey::SourceIp,
        ConditionKey::RemoteIp,
        ConditionKey::SourceNamespace,
        ConditionKey::SourcePrincipal,
        ConditionKey::DestinationIp,
        ConditionKey::DestinationPort,
    ];
    let condition = |key| L7Condition { key, values: texts("v"), not_values: texts("w") };
    let gateway = L7Target::Gateway { namespace: text("shop"), name: text("waypoint") };
    L7Policy {
        key: PolicyName::new("shop", "full"),
        targets: vec![gateway, L7Target::Service(service_name("web")), L7Target::AllWaypoints],
        action: PolicyAction::Deny,
        rules: vec![
            L7Rule {
                from: vec![source, L7Source::default()],
                to: vec![operation],
                when: keys.map(condition).into(),
            },
            L7Rule::default(),
        ],
        dry_run: true,
    }
}

#[test]
fn every_field_of_routes_survives_the_wire() {
    assert_eq!(from_routes(to_routes(&full_routes())), Ok(full_routes()));
}

#[test]
fn every_field_of_an_l7_policy_survives_the_wire() {
    assert_eq!(from_l7_policy(to_l7_policy(&full_policy())), Ok(full_policy()));
    let allow = L7Policy { action: PolicyAction::Allow, dry_run: false, ..full_policy() };
    assert_eq!(from_l7_policy(to_l7_policy(&allow)), Ok(allow));
}

#[test]
fn labels_survive_the_wire_and_need_a_workload() {
    let full = WorkloadLabels { uid: WorkloadUid::new("c//Pod/n/p"), labels: labels() };
    assert_eq!(from_labels(to_labels(&full)), Ok(full));
    assert_eq!(from_labels(pb::WorkloadLabels::default()).unwrap_err().field, "uid");
}

#[test]
fn routes_that_cannot_be_valid_are_refused_with_the_field() {
    let refused = |change: &dyn Fn(&mut pb::ServiceRoutes)| {
        let mut wire = to_routes(&full_routes());
        change(&mut wire);
        from_routes(wire).unwrap_err().field
    };
    assert_eq!(refused(&|r| r.hostname.clear()), "hostname");
    assert_eq!(refused(&|r| r.ports[0].port = 65536), "ports.port");
    assert_eq!(refused(&|r| r.tcp[0].port = Some(65536)), "tcp.port");
    assert_eq!(refused(&|r| r.traffic_policy.as_mut().unwrap().lb = 9), "traffic_policy.lb");
    assert_eq!(refused(&|r| r.http[0].action = None), "http.action");
    assert_eq!(refused(&|r| r.http[0].rewrite.as_mut().unwrap().uri_regex = None), "http.rewrite.uri_regex");
    let retry = |r: &mut pb::ServiceRoutes| r.http[0].retries.as_mut().unwrap().retry_on.push("never".into());
    assert_eq!(refused(&retry), "http.retries.retry_on");
    let timeout = prost_types::Duration { seconds: -1, nanos: 0 };
    assert_eq!(refused(&|r| r.http[0].timeout = Some(timeout)), "http.timeout");
    let kind = |r: &mut pb::ServiceRoutes| r.http[0].matches[0].uri = Some(pb::RouteMatch::default());
    assert_eq!(refused(&kind), "http.matches.uri");
    let header = |r: &mut pb::ServiceRoutes| r.http[0].matches[0].headers[0].r#match = None;
    assert_eq!(refused(&header), "http.matches.headers");
    let abort = pb::fault::Abort::AbortHttpStatus(99);
    let fault = |r: &mut pb::ServiceRoutes| r.http[0].fault.as_mut().unwrap().abort = Some(abort);
    assert_eq!(refused(&fault), "http.fault.abort_http_status");
}

#[test]
fn an_l7_policy_that_cannot_be_valid_is_refused_with_the_field() {
    let refused = |change: &dyn Fn(&mut pb::Policy)| {
        let mut wire = to_l7_policy(&full_policy());
        change(&mut wire);
        from_l7_policy(wire).unwrap_err().field
    };
    assert_eq!(refused(&|p| p.action = 9), "action");
    assert_eq!(refused(&|p| p.targets.push(pb::Target::default())), "targets");
    assert_eq!(refused(&|p| p.rules[0].when[0].key = "request.auth.claims[x]".into()), "when.key");
    assert_eq!(refused(&|p| p.rules[0].from[0].ip_blocks.push("10.0.0.0/33".into())), "from.ip_blocks");
    assert_eq!(refused(&|p| p.rules[0].to[0].ports.push(65536)), "to.ports");
    let kind = |p: &mut pb::Policy| p.rules[0].to[0].paths.push(pb::StringMatch::default());
    assert_eq!(refused(&kind), "to.paths");
}
