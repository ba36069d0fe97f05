use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::{
    delta::Change,
    entropy::{Entropy, SplitMix64},
    explain::AtWaypoint,
    model::{
        PolicyAction, PolicyName, ServiceName, StringMatch,
        l7::{
            AbortStatus, ConditionKey, DirectResponse, Fault, HeaderOps, HttpMatch, HttpRoute, L7Condition,
            L7Operation, L7Policy, L7Rule, L7Source, L7Target, Redirect, RetryCondition, RetryPolicy,
            Rewrite, RouteAction, RouteMatch, ServiceRoutes, Subset, TrafficPolicy, WeightedDestination,
            WorkloadLabels,
        },
    },
    outcome::Reason,
    snapshot::Snapshot,
};

fn destination(subset: &str, weight: u32) -> WeightedDestination {
    WeightedDestination {
        service: ServiceName::new("default", "web"),
        subset: Some(subset.into()),
        port: None,
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
    }
}

fn http_route(name: &str, matches: Vec<HttpMatch>) -> HttpRoute {
    HttpRoute {
        name: name.into(),
        matches,
        action: RouteAction::Forward(vec![destination("v1", 1)]),
        rewrite: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retries: RetryPolicy::default(),
        fault: Fault::default(),
    }
}

fn compiled(http: Vec<HttpRoute>) -> Result<CompiledRoutes, PatternError> {
    CompiledRoutes::compile(Arc::new(ServiceRoutes {
        service: ServiceName::new("default", "web"),
        protocols: BTreeMap::new(),
        origin: "VirtualService default/web".into(),
        http,
        tcp: Vec::new(),
        traffic_policy: TrafficPolicy::default(),
        subsets: Vec::new(),
    }))
}

fn facts<'a>(path: &'a str, headers: &'a dyn HeaderView) -> RequestFacts<'a> {
    RequestFacts {
        client: Client {
            ip: "10.0.0.9".parse().unwrap(),
            principal: Some("cluster.local/ns/default/sa/client"),
            namespace: Some("default"),
            service_account: Some("client"),
            labels: None,
        },
        method: "GET",
        scheme: "http",
        authority: "Web:8000",
        path,
        query: "a=1&b&c=x%20y",
        headers,
        destination_ip: Some("10.96.0.1".parse().unwrap()),
        port: 8000,
    }
}

fn matches_with(m: HttpMatch, facts: &RequestFacts<'_>) -> bool {
    let routes = compiled(vec![http_route("r", vec![m])]).unwrap();
    matches!(route(&routes, facts, &mut SplitMix64::new(1)), RouteDecision::Forward(..))
}

#[test]
fn every_match_field_holds_and_fails_where_it_should() {
    let headers = BTreeMap::from([("x-user".to_owned(), "jason".to_owned())]);
    let facts = facts("/Api/v1", &headers);
    let exact = |t: &str| Some(RouteMatch::Exact(t.into()));
    let any = HttpMatch::default;
    let header = |name: &str, m| vec![(Arc::from(name), m)];
    let cases = [
        (HttpMatch { uri: exact("/Api/v1"), ..any() }, true),
        (HttpMatch { uri: exact("/api/v1"), ..any() }, false),
        (HttpMatch { uri: exact("/api/v1"), ignore_uri_case: true, ..any() }, true),
        (HttpMatch { uri: Some(RouteMatch::Prefix("/api".into())), ignore_uri_case: true, ..any() }, true),
        (HttpMatch { uri: Some(RouteMatch::Regex("/Api/v[0-9]".into())), ..any() }, true),
        (HttpMatch { uri: Some(RouteMatch::Regex("/Api".into())), ..any() }, false),
        (HttpMatch { method: exact("GET"), ..any() }, true),
        (HttpMatch { method: exact("get"), ..any() }, false),
        (HttpMatch { authority: exact("web:8000"), ..any() }, true),
        (HttpMatch { port: Some(80), ..any() }, false),
        (HttpMatch { headers: header("x-user", RouteMatch::Exact("jason".into())), ..any() }, true),
        (HttpMatch { headers: header("x-user", RouteMatch::Regex("*".into())), ..any() }, true),
        (HttpMatch { headers: header("x-none", RouteMatch::Presence), ..any() }, false),
        (HttpMatch { without_headers: header("x-user", RouteMatch::Presence), ..any() }, false),
        (HttpMatch { without_headers: header("x-none", RouteMatch::Exact("1".into())), ..any() }, true),
        (HttpMatch { query: header("a", RouteMatch::Exact("1".into())), ..any() }, true),
        (HttpMatch { query: header("b", RouteMatch::Presence), ..any() }, true),
        (HttpMatch { query: header("d", RouteMatch::Presence), ..any() }, false),
        (HttpMatch { source_namespace: Some("default".into()), ..any() }, true),
        (HttpMatch { source_labels: BTreeMap::from([("app".into(), "x".into())]), ..any() }, false),
    ];
    for (m, expected) in cases {
        assert_eq!(matches_with(m.clone(), &facts), expected, "{m:?}");
    }
}

#[test]
fn a_bad_expression_is_named_with_object_route_and_field() {
    let bad = HttpMatch { uri: Some(RouteMatch::Regex("a)(b".into())), ..HttpMatch::default() };
    let error = compiled(vec![http_route("first", vec![bad])]).unwrap_err();
    assert_eq!(
        (error.object.as_str(), error.route.as_str(), error.field),
        ("VirtualService default/web", "first", "match.uri")
    );
    let huge = HttpMatch { uri: Some(RouteMatch::Regex("(a{1000}){1000}".into())), ..HttpMatch::default() };
    assert!(compiled(vec![http_route("huge", vec![huge])]).is_err());
}

#[test]
fn rewrites_follow_what_matched() {
    let cases = [
        (Some(RouteMatch::Prefix("/api".into())), "/v2", "/v2/x"),
        (Some(RouteMatch::Prefix("/api/".into())), "/", "/x"),
        (Some(RouteMatch::Exact("/api/x".into())), "/only", "/only"),
        (None, "/base/", "/base/api/x"),
    ];
    for (uri, to, expected) in cases {
        let mut r = http_route("r", vec![HttpMatch { uri, ..HttpMatch::default() }]);
        r.rewrite = Some(Rewrite { uri: Some(to.into()), uri_regex: None, authority: None });
        let routes = compiled(vec![r]).unwrap();
        let facts = facts("/api/x", &NoHeaders);
        let RouteDecision::Forward(c, _, matched) = route(&routes, &facts, &mut SplitMix64::new(1)) else {
            panic!()
        };
        assert_eq!(rewrite(c, matched, &facts).path.unwrap(), expected);
    }
    let mut r = http_route("r", vec![]);
    r.rewrite = Some(Rewrite {
        uri: None,
        uri_regex: Some(("^/(\\w+)/(\\w+)".into(), "/\\2/\\1$".into())),
        authority: None,
    });
    let routes = compiled(vec![r]).unwrap();
    let facts = facts("/api/x", &NoHeaders);
    assert_eq!(rewrite(&routes.http()[0], Matched::Nothing, &facts).path.unwrap(), "/x/api$");
}

#[test]
fn redirects_keep_what_they_do_not_name() {
    let none = Redirect { code: 301, uri: None, authority: None, scheme: None, port: None };
    let facts = facts("/p", &NoHeaders);
    let cases = [
        (none.clone(), "http://Web:8000/p?a=1&b&c=x%20y"),
        (Redirect { scheme: Some("https".into()), ..none.clone() }, "https://Web/p?a=1&b&c=x%20y"),
        (
            Redirect { authority: Some("new".into()), uri: Some("/q?z".into()), ..none.clone() },
            "http://new/q?z",
        ),
        (Redirect { port: Some(80), ..none.clone() }, "http://Web/p?a=1&b&c=x%20y"),
        (Redirect { port: Some(81), ..none }, "http://Web:81/p?a=1&b&c=x%20y"),
    ];
    for (redirect, expected) in cases {
        assert_eq!(location(&redirect, &facts), expected);
    }
}

#[test]
fn zero_weights_get_nothing_and_a_single_destination_everything() {
    let mut entropy = SplitMix64::new(7);
    let list = [destination("v1", 0), destination("v2", 5)];
    for _ in 0..100 {
        assert_eq!(choose(&list, &mut entropy).unwrap().subset.as_deref(), Some("v2"));
    }
    assert!(choose(&list[..1], &mut entropy).is_some());
    assert!(choose(&[destination("a", 0), destination("b", 0)], &mut entropy).is_none());
}

#[test]
fn retries_follow_conditions_attempts_and_the_deadline() {
    let now = Instant::now();
    let mut entropy = SplitMix64::new(1);
    let default = RetryPolicy::default();
    let mut retry = Retry::new(&default);
    assert!(matches!(retry.after(Failure::Connect, true, now, None, &mut entropy), RetryStep::WaitUntil(_)));
    assert!(matches!(retry.after(Failure::Grpc(14), true, now, None, &mut entropy), RetryStep::WaitUntil(_)));
    assert_eq!(retry.attempt(), 3);
    assert_eq!(
        retry.after(Failure::Connect, true, now, None, &mut entropy),
        RetryStep::GiveUp { exhausted: true }
    );
    let give_up = RetryStep::GiveUp { exhausted: false };
    assert_eq!(Retry::new(&default).after(Failure::Status(503), true, now, None, &mut entropy), give_up);
    assert_eq!(Retry::new(&default).after(Failure::Connect, false, now, None, &mut entropy), give_up);
    assert_eq!(Retry::new(&default).after(Failure::Connect, true, now, Some(now), &mut entropy), give_up);
    let off = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
    assert_eq!(Retry::new(&off).after(Failure::Connect, true, now, None, &mut entropy), give_up);
}

#[test]
fn retry_conditions_cover_what_envoy_says_they_cover() {
    use RetryCondition as C;
    let cases = [
        (C::Status5xx, Failure::Status(500), true),
        (C::Status5xx, Failure::Reset { sent: true }, true),
        (C::Status5xx, Failure::Status(404), false),
        (C::GatewayError, Failure::Status(500), false),
        (C::GatewayError, Failure::Status(504), true),
        (C::ResetBeforeRequest, Failure::Reset { sent: true }, false),
        (C::ResetBeforeRequest, Failure::Reset { sent: false }, true),
        (C::ConnectFailure, Failure::Reset { sent: false }, false),
        (C::Retriable4xx, Failure::Status(409), true),
        (C::Status(418), Failure::Status(418), true),
        (C::RefusedStream, Failure::RefusedStream, true),
        (C::GrpcCancelled, Failure::Grpc(1), true),
        (C::GrpcInternal, Failure::Grpc(14), false),
    ];
    for (condition, failure, expected) in cases {
        let policy = RetryPolicy { retry_on: vec![condition], ..RetryPolicy::default() };
        let step = Retry::new(&policy).after(failure, true, Instant::now(), None, &mut SplitMix64::new(1));
        assert_eq!(matches!(step, RetryStep::WaitUntil(_)), expected, "{condition:?} {failure:?}");
    }
}

#[test]
fn faults_hit_their_share() {
    let rule =
        Fault { delay: Some((Duration::from_secs(1), 100_000)), abort: Some((AbortStatus::Http(500), 0)) };
    let mut entropy = SplitMix64::new(3);
    let delayed = (0..10_000).filter(|_| fault(&rule, &mut entropy).delay.is_some()).count();
    assert!((850..1150).contains(&delayed), "{delayed}");
    assert!((0..1000).all(|_| fault(&rule, &mut entropy).abort.is_none()));
}

fn policy(name: &str, action: PolicyAction, rules: Vec<L7Rule>) -> L7Policy {
    let targets = vec![L7Target::AllWaypoints];
    L7Policy { key: PolicyName::new("default", name), targets, action, rules, dry_run: false }
}

fn reason_of(policies: &[L7Policy], facts: &RequestFacts<'_>) -> Option<Reason> {
    authorise(policies.iter(), facts).err().map(|refusal| refusal.reason)
}

fn rule_of(operation: L7Operation) -> L7Rule {
    L7Rule { to: vec![operation], ..L7Rule::default() }
}

#[test]
fn deny_wins_over_allow_and_an_allow_that_does_not_match_denies() {
    let facts = facts("/x", &NoHeaders);
    let everything = || vec![L7Rule::default()];
    let allow = policy("allow", PolicyAction::Allow, everything());
    let deny = policy("deny", PolicyAction::Deny, everything());
    assert_eq!(reason_of(&[], &facts), None);
    assert_eq!(reason_of(std::slice::from_ref(&allow), &facts), None);
    assert_eq!(reason_of(&[allow.clone(), deny.clone()], &facts), Some(Reason::PolicyDenied));
    let nothing = policy("nothing", PolicyAction::Allow, vec![]);
    assert_eq!(reason_of(std::slice::from_ref(&nothing), &facts), Some(Reason::NoAllowMatched));
    assert_eq!(reason_of(&[nothing, allow], &facts), None);
    let dry = L7Policy { dry_run: true, ..deny };
    let verdict = authorise([&dry].into_iter(), &facts).unwrap();
    assert_eq!(verdict.would_deny, Some(dry.key.clone()));
    let refusal =
        authorise([&policy("named", PolicyAction::Deny, everything())].into_iter(), &facts).unwrap_err();
    assert!(refusal.detail.contains("default/named"));
}

#[test]
fn operations_sources_and_conditions_match_as_istio_documents() {
    let headers = BTreeMap::from([("x-token".to_owned(), "admin-1".to_owned())]);
    let facts = facts("/api/users/7", &headers);
    let text = |t: &str| vec![StringMatch::from_istio(t)];
    let op = L7Operation::default;
    let source = L7Source::default;
    let when = |key, values, not_values| L7Rule {
        when: vec![L7Condition { key, values, not_values }],
        ..L7Rule::default()
    };
    let header = || ConditionKey::Header("x-token".into());
    let from = |s| L7Rule { from: vec![s], ..L7Rule::default() };
    let cases = [
        (rule_of(L7Operation { paths: text("/api/*"), ..op() }), true),
        (rule_of(L7Operation { paths: text("/api/users/{*}"), ..op() }), true),
        (rule_of(L7Operation { paths: text("/{**}"), ..op() }), true),
        (rule_of(L7Operation { paths: text("/api/{*}"), ..op() }), false),
        (rule_of(L7Operation { paths: text("/api/*"), not_paths: text("*/7"), ..op() }), false),
        (rule_of(L7Operation { hosts: text("WEB"), ..op() }), true),
        (rule_of(L7Operation { hosts: text("web:8000"), ..op() }), true),
        (rule_of(L7Operation { hosts: text("web:80"), ..op() }), false),
        (rule_of(L7Operation { methods: text("GET"), ports: vec![8000], ..op() }), true),
        (rule_of(L7Operation { methods: text("GET"), ports: vec![80], ..op() }), false),
        (from(L7Source { principals: text("*/sa/client"), ..source() }), true),
        (from(L7Source { namespaces: text("other"), ..source() }), false),
        (from(L7Source { ip_blocks: vec!["10.0.0.0/8".parse().unwrap()], ..source() }), true),
        (from(L7Source { not_ip_blocks: vec!["10.0.0.0/8".parse().unwrap()], ..source() }), false),
        (when(header(), text("admin-*"), vec![]), true),
        (when(header(), vec![], text("admin-*")), false),
        (when(ConditionKey::Header("x-none".into()), text("*"), vec![]), false),
        (when(ConditionKey::SourceIp, text("10.0.0.0/24"), vec![]), true),
        (when(ConditionKey::RemoteIp, text("10.0.0.0/24"), vec![]), true),
        (when(ConditionKey::RemoteIp, vec![], text("10.0.0.0/24")), false),
        (from(L7Source { remote_ip_blocks: vec!["10.0.0.0/8".parse().unwrap()], ..source() }), true),
        (from(L7Source { not_remote_ip_blocks: vec!["10.0.0.0/8".parse().unwrap()], ..source() }), false),
        (when(ConditionKey::DestinationIp, text("10.96.0.1"), vec![]), true),
        (when(ConditionKey::DestinationPort, text("8000"), vec![]), true),
        (when(ConditionKey::SourceNamespace, text("default"), vec![]), true),
    ];
    for (rule, expected) in cases {
        let denied = reason_of(&[policy("p", PolicyAction::Deny, vec![rule.clone()])], &facts).is_some();
        assert_eq!(denied, expected, "{rule:?}");
    }
}

#[test]
fn a_host_is_denied_however_servers_let_it_be_written() {
    let rule = rule_of(L7Operation {
        hosts: vec![StringMatch::Exact("secret.example".into())],
        ..L7Operation::default()
    });
    let deny = [policy("p", PolicyAction::Deny, vec![rule])];
    let reason = |authority| reason_of(&deny, &RequestFacts { authority, ..facts("/", &NoHeaders) });
    for authority in
        ["secret.example", "Secret.Example:80", "secret.example:", "secret.example.", "secret.example.:80"]
    {
        assert_eq!(reason(authority), Some(Reason::PolicyDenied), "{authority}");
    }
    for authority in ["public.example", "secret.example.org", "secret.example:x"] {
        assert_eq!(reason(authority), None, "{authority}");
    }
}

#[test]
fn an_empty_block_fails_closed_both_ways() {
    let facts = facts("/", &NoHeaders);
    let rule = rule_of(L7Operation::default());
    assert!(reason_of(&[policy("d", PolicyAction::Deny, vec![rule.clone()])], &facts).is_some());
    assert!(reason_of(&[policy("a", PolicyAction::Allow, vec![rule])], &facts).is_some());
}

fn tcp<'a>() -> RequestFacts<'a> {
    RequestFacts { method: "", scheme: "", authority: "", path: "", query: "", ..facts("", &NoHeaders) }
}

#[test]
fn what_a_rule_asks_of_http_denies_plain_tcp_and_never_allows_it() {
    let text = |t: &str| vec![StringMatch::from_istio(t)];
    let op = L7Operation::default;
    let header = |values, not_values| L7Rule {
        when: vec![L7Condition { key: ConditionKey::Header("x-token".into()), values, not_values }],
        ..L7Rule::default()
    };
    for rule in [
        rule_of(L7Operation { paths: text("/admin*"), ..op() }),
        rule_of(L7Operation { not_paths: text("/public*"), ..op() }),
        rule_of(L7Operation { methods: text("DELETE"), ..op() }),
        rule_of(L7Operation { not_methods: text("GET"), ports: vec![8000], ..op() }),
        rule_of(L7Operation { hosts: text("admin"), ..op() }),
        rule_of(L7Operation { not_hosts: text("web"), ..op() }),
        header(text("*"), vec![]),
        header(vec![], text("good")),
    ] {
        let of = |action, rule: &L7Rule| reason_of(&[policy("p", action, vec![rule.clone()])], &tcp());
        assert_eq!(of(PolicyAction::Deny, &rule), Some(Reason::PolicyDenied), "{rule:?}");
        assert_eq!(of(PolicyAction::Allow, &rule), Some(Reason::NoAllowMatched), "{rule:?}");
        let from = vec![L7Source { namespaces: text("other"), ..L7Source::default() }];
        assert_eq!(of(PolicyAction::Deny, &L7Rule { from, ..rule }), None, "other clients are not denied");
    }
    let elsewhere = rule_of(L7Operation { paths: text("/admin*"), ports: vec![81], ..op() });
    assert_eq!(reason_of(&[policy("d", PolicyAction::Deny, vec![elsewhere])], &tcp()), None);
    let port = rule_of(L7Operation { ports: vec![8000], ..op() });
    assert_eq!(reason_of(&[policy("a", PolicyAction::Allow, vec![port])], &tcp()), None);
}

/// Rules over few values, so that they match often.
fn any_rule() -> impl Strategy<Value = L7Rule> {
    let texts = |of: &'static [&'static str]| {
        let one = proptest::sample::select(of).prop_map(StringMatch::from_istio);
        proptest::collection::vec(one, 0..2)
    };
    let (paths, methods) = (texts(&["/a", "/b*"]), texts(&["GET", "POST"]));
    let (not_paths, values) = (texts(&["/a", "*"]), texts(&["x", "*"]));
    let ports = proptest::collection::vec(proptest::sample::select(&[8000_u16, 81][..]), 0..2);
    let operation = (paths, not_paths, methods, ports).prop_map(|(paths, not_paths, methods, ports)| {
        L7Operation { paths, not_paths, methods, ports, ..L7Operation::default() }
    });
    let condition = (values, texts(&["x", "y"])).prop_map(|(values, not_values)| L7Condition {
        key: ConditionKey::Header("h".into()),
        values,
        not_values,
    });
    let some = |count| count..2_usize;
    (proptest::collection::vec(operation, some(0)), proptest::collection::vec(condition, some(0)))
        .prop_map(|(to, when)| L7Rule { to, when, ..L7Rule::default() })
}

proptest! {
    #[test]
    fn plain_tcp_passes_only_where_every_request_would(
        rules in proptest::collection::vec((any_rule(), any::<bool>()), 1..4),
        path in "/[ab]{1,2}",
        method in proptest::sample::select(&["GET", "POST", "PUT"][..]),
        header in proptest::option::of("[xy]"),
    ) {
        let policies: Vec<L7Policy> = rules
            .into_iter()
            .map(|(rule, allow)| {
                let action = if allow { PolicyAction::Allow } else { PolicyAction::Deny };
                policy("p", action, vec![rule])
            })
            .collect();
        let headers: BTreeMap<_, _> = header.map(|value| ("h".to_owned(), value)).into_iter().collect();
        let request = RequestFacts { method, ..facts(&path, &headers) };
        if reason_of(&policies, &tcp()).is_none() {
            prop_assert_eq!(reason_of(&policies, &request), None);
        }
    }
}

#[test]
fn policies_reach_their_targets_only() {
    let service = ServiceName::new("default", "web");
    let at = Applies { namespace: "default", name: "waypoint", service: Some(&service) };
    let with = |target| L7Policy { targets: vec![target], ..policy("p", PolicyAction::Deny, vec![]) };
    let gateway = |name: &str| L7Target::Gateway { namespace: "default".into(), name: name.into() };
    assert!(applies(&with(L7Target::AllWaypoints), at));
    assert!(applies(&with(gateway("waypoint")), at));
    assert!(!applies(&with(gateway("other")), at));
    assert!(applies(&with(L7Target::Service(service.clone())), at));
    assert!(!applies(&with(L7Target::Service(ServiceName::new("x", "web"))), at));
    assert!(!applies(&with(L7Target::Service(service.clone())), Applies { service: None, ..at }));
}

#[test]
fn normalisation_resolves_dots_and_decodes_unreserved_characters() {
    for (path, expected) in [
        ("/a/b", Some("/a/b")),
        ("/a/../b", Some("/b")),
        ("/a/./b/.", Some("/a/b/")),
        ("/a/..", Some("/")),
        ("/..", None),
        ("relative", None),
        ("/%61%2e%2E/x", Some("/a../x")),
        ("/a/%2e%2e/b", Some("/b")),
        ("/a%2Fb", Some("/a%2Fb")),
        ("/a\\..\\b", Some("/b")),
        ("/%zz%4", Some("/%zz%4")),
        ("*", Some("*")),
    ] {
        assert_eq!(normalise(path).as_deref(), expected, "{path}");
    }
}

/// The steps that are told of a request of `client` to service `web`, and the endpoints or the refusal.
fn told(changes: impl IntoIterator<Item = Change>) -> (Vec<String>, Result<Vec<String>, Reason>) {
    let mut web = crate::model::Service::new(ServiceName::new("default", "web"), "web");
    web.ports = vec![crate::fixtures::port(8000, 80)];
    let mut world = vec![Change::Service(Arc::new(web.clone()))];
    for (version, ip) in [("v1", 1), ("v2", 2)] {
        let pod = crate::fixtures::backing(crate::fixtures::pod(version, [10, 0, 0, ip]), &web);
        let labels = BTreeMap::from([("version".into(), version.into())]);
        world.push(Change::Labels(Arc::new(WorkloadLabels { uid: pod.uid.clone(), labels })));
        world.push(Change::Workload(Arc::new(pod)));
    }
    let at = AtWaypoint {
        snapshot: &Snapshot::of(world.into_iter().chain(changes)),
        waypoint: &crate::fixtures::pod("waypoint", [10, 0, 0, 8]),
        service: &web,
        dialled: "10.96.0.1:8000".parse().unwrap(),
        client: &crate::fixtures::pod("client", [10, 0, 0, 9]),
        from: "10.0.0.9".parse().unwrap(),
    };
    let mut steps = Vec::new();
    let found = explain_routes(&at, &mut steps);
    let names = found.map(|list| list.iter().map(|endpoint| endpoint.workload.name.to_string()).collect());
    (steps.iter().map(ToString::to_string).collect(), names.map_err(|refusal| refusal.reason))
}

/// Routes of `web` with the subsets v1 and v2.
fn web_routes(action: RouteAction) -> Change {
    let mut canary = http_route("canary", vec![]);
    canary.action = action;
    let mut routes = (*compiled(vec![canary]).unwrap().source).clone();
    routes.subsets = ["v1", "v2"].map(subset).into();
    Change::Routes(Arc::new(routes))
}

fn subset(name: &str) -> Subset {
    let labels = BTreeMap::from([("version".into(), name.into())]);
    Subset { name: name.into(), labels, traffic_policy: TrafficPolicy::default() }
}

#[test]
fn explain_names_the_endpoints_that_the_routes_may_lead_to_and_no_others() {
    let endpoints = |action| told([web_routes(action)]).1;
    let to =
        |list: &[(&str, u32)]| RouteAction::Forward(list.iter().map(|(s, w)| destination(s, *w)).collect());
    let names = |list: &[&str]| Ok(list.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(told([]).1, names(&["v1", "v2"]), "without routes, the service itself");
    assert_eq!(endpoints(to(&[("v1", 90), ("v2", 10)])), names(&["v1", "v2"]));
    assert_eq!(endpoints(to(&[("v1", 100), ("v2", 0)])), names(&["v1"]));
    assert_eq!(
        endpoints(to(&[("v1", 1), ("v3", 1)])),
        names(&["v1"]),
        "a subset that is not there is a step"
    );
    assert_eq!(endpoints(to(&[("v3", 1)])), Err(Reason::UnknownDestination));
    let direct = DirectResponse { status: 204, body: "".into() };
    assert_eq!(endpoints(RouteAction::Direct(direct)), names(&[]), "the waypoint answers by itself");
}

#[test]
fn explain_names_route_shares_and_policies() {
    let routes = || web_routes(RouteAction::Forward(vec![destination("v1", 90), destination("v2", 10)]));
    let source = |account: &str| L7Source {
        principals: vec![StringMatch::Suffix(format!("sa/{account}").into())],
        ..L7Source::default()
    };
    let from = |account: &str| L7Rule { from: vec![source(account)], ..L7Rule::default() };
    let get = L7Operation { methods: vec![StringMatch::Exact("GET".into())], ..L7Operation::default() };
    let port = |port| L7Operation { ports: vec![port], ..L7Operation::default() };
    let told = |policies: &[L7Policy]| {
        let changes = policies.iter().cloned().map(|p| Change::L7Policy(Arc::new(p)));
        let (steps, found) = told([routes()].into_iter().chain(changes));
        (steps, found.err())
    };
    let (steps, refusal) = told(&[]);
    assert!(steps[0].contains(
        "VirtualService default/web route canary: every request: 90 % to web subset v1, 10 % to web subset v2"
    ));
    assert_eq!(refusal, None);
    use PolicyAction::{Allow, Deny};
    let (denied, unmatched) = (Some(Reason::PolicyDenied), Some(Reason::NoAllowMatched));
    for (action, rule, says, expected) in [
        (Deny, from("client"), "denies every request", denied),
        (Deny, from("other"), "denies no request", None),
        (Deny, rule_of(get.clone()), "denies those requests", None),
        (Deny, rule_of(port(8000)), "denies every request", denied),
        (Deny, rule_of(port(80)), "denies no request", None),
        (Deny, L7Rule { to: vec![get.clone()], ..from("other") }, "denies no request", None),
        (Allow, from("client"), "allows every request", None),
        (Allow, from("other"), "allows no request", unmatched),
        (Allow, rule_of(get), "allows those requests", None),
    ] {
        let (steps, refusal) = told(&[policy("p", action, vec![rule.clone()])]);
        assert!(steps[1].contains("AuthorizationPolicy default/p: "), "{steps:?}");
        assert!(steps[1].contains(says), "{rule:?}: {steps:?}");
        assert_eq!(refusal, expected, "{rule:?}");
        let (_, refusal) = told(&[L7Policy { dry_run: true, ..policy("p", action, vec![rule]) }]);
        assert_eq!(refusal, None, "a dry run refuses nothing");
    }
    let elsewhere = L7Target::Gateway { namespace: "default".into(), name: "another".into() };
    let (steps, refusal) =
        told(&[L7Policy { targets: vec![elsewhere], ..policy("p", Deny, vec![from("client")]) }]);
    assert_eq!((steps.len(), refusal), (1, None), "another waypoint's policy is no step");
}

proptest! {
    #[test]
    fn normalising_twice_changes_nothing_more_when_no_escapes_are_left(path in "/[a-z./]{0,24}") {
        if let Some(once) = normalise(&path) {
            let twice = normalise(&once).map(|t| t.into_owned());
            prop_assert_eq!(twice.as_deref(), Some(&*once));
            prop_assert!(!once.split('/').any(|s| s == ".." || s == "."));
        }
    }

    #[test]
    fn normalise_never_panics(path in "\\PC{0,40}") {
        let _ = normalise(&path);
    }

    #[test]
    fn adding_a_deny_never_admits_more(path in "/[ab]{0,3}", deny in "/[ab]{0,3}", allow in "/[ab]{0,3}") {
        let facts = facts(&path, &NoHeaders);
        let on = |text: &str| vec![rule_of(L7Operation { paths: vec![StringMatch::Prefix(text.into())], ..L7Operation::default() })];
        let allow = policy("allow", PolicyAction::Allow, on(&allow));
        let deny = policy("deny", PolicyAction::Deny, on(&deny));
        let without = reason_of(std::slice::from_ref(&allow), &facts).is_none();
        let with = reason_of(&[allow, deny], &facts).is_none();
        prop_assert!(!with || without);
    }

    #[test]
    fn a_drawn_destination_always_has_weight(weights in proptest::collection::vec(0_u32..5, 2..6), seed: u64) {
        let list: Vec<_> = weights.iter().map(|w| destination("v", *w)).collect();
        let mut entropy = SplitMix64::new(seed);
        entropy.next_u64();
        match choose(&list, &mut entropy) {
            Some(chosen) => prop_assert!(chosen.weight > 0),
            None => prop_assert_eq!(weights.iter().sum::<u32>(), 0),
        }
    }
}
