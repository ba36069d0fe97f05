//! `culvert.l7.v1` ⇄ [`mesh_core::model::l7`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use mesh_core::model::{
    AppProtocol, PolicyAction, PolicyName, ServiceAccountMatch, ServiceName, StringMatch, WorkloadUid,
    l7::{
        AbortStatus, ConditionKey, DirectResponse, Fault, HeaderOps, HttpMatch, HttpRoute, L7Condition,
        L7Operation, L7Policy, L7Rule, L7Source, L7Target, LbAlgorithm, Redirect, RetryCondition,
        RetryPolicy, Rewrite, RouteAction, RouteMatch, ServiceRoutes, Subset, TcpRoute, TrafficPolicy,
        WeightedDestination, WorkloadLabels,
    },
};

use super::{WireError, port};
use crate::api::culvert::l7::v1 as pb;

/// Parses the routes of a service.
pub fn from_routes(r: pb::ServiceRoutes) -> Result<ServiceRoutes, WireError> {
    Ok(ServiceRoutes {
        service: service_name("hostname", r.namespace, r.hostname)?,
        protocols: r
            .ports
            .into_iter()
            .map(|p| Ok((port("ports.port", p.port)?, from_protocol(p.protocol))))
            .collect::<Result<_, WireError>>()?,
        origin: r.origin.into(),
        http: r.http.into_iter().map(from_http_route).collect::<Result<_, _>>()?,
        tcp: r.tcp.into_iter().map(from_tcp_route).collect::<Result<_, _>>()?,
        traffic_policy: r.traffic_policy.map(from_traffic_policy).transpose()?.unwrap_or_default(),
        subsets: r
            .subsets
            .into_iter()
            .map(|s| {
                Ok(Subset {
                    name: s.name.into(),
                    labels: labels(s.labels),
                    traffic_policy: s
                        .traffic_policy
                        .map(from_traffic_policy)
                        .transpose()?
                        .unwrap_or_default(),
                })
            })
            .collect::<Result<_, WireError>>()?,
    })
}

/// Wire form of the routes of a service.
pub fn to_routes(r: &ServiceRoutes) -> pb::ServiceRoutes {
    pb::ServiceRoutes {
        namespace: r.service.namespace.to_string(),
        hostname: r.service.hostname.to_string(),
        ports: r
            .protocols
            .iter()
            .map(|(port, protocol)| pb::PortProtocol {
                port: (*port).into(),
                protocol: to_protocol(*protocol) as i32,
            })
            .collect(),
        origin: r.origin.to_string(),
        http: r.http.iter().map(to_http_route).collect(),
        tcp: r.tcp.iter().map(to_tcp_route).collect(),
        traffic_policy: Some(to_traffic_policy(&r.traffic_policy)),
        subsets: r
            .subsets
            .iter()
            .map(|s| pb::Subset {
                name: s.name.to_string(),
                labels: text_map(&s.labels),
                traffic_policy: Some(to_traffic_policy(&s.traffic_policy)),
            })
            .collect(),
    }
}

/// Parses the labels of a workload.
pub fn from_labels(l: pb::WorkloadLabels) -> Result<WorkloadLabels, WireError> {
    if l.uid.is_empty() {
        return Err(WireError::new("uid", "is empty"));
    }
    Ok(WorkloadLabels { uid: WorkloadUid::new(l.uid), labels: labels(l.labels) })
}

/// Wire form of the labels of a workload.
pub fn to_labels(l: &WorkloadLabels) -> pb::WorkloadLabels {
    pb::WorkloadLabels { uid: l.uid.to_string(), labels: text_map(&l.labels) }
}

/// Parses an L7 policy.
pub fn from_l7_policy(p: pb::Policy) -> Result<L7Policy, WireError> {
    let action = match pb::policy::Action::try_from(p.action) {
        Ok(pb::policy::Action::Allow) => PolicyAction::Allow,
        Ok(pb::policy::Action::Deny) => PolicyAction::Deny,
        Err(_) => return Err(WireError::new("action", format!("{} is unknown", p.action))),
    };
    Ok(L7Policy {
        key: PolicyName::new(p.namespace, p.name),
        targets: from_targets(p.targets)?,
        action,
        rules: p.rules.into_iter().map(from_rule).collect::<Result<_, _>>()?,
        dry_run: p.dry_run,
    })
}

/// Wire form of an L7 policy.
pub fn to_l7_policy(p: &L7Policy) -> pb::Policy {
    pb::Policy {
        namespace: p.key.namespace.to_string(),
        name: p.key.name.to_string(),
        targets: p.targets.iter().map(to_target).collect(),
        action: match p.action {
            PolicyAction::Allow => pb::policy::Action::Allow,
            PolicyAction::Deny => pb::policy::Action::Deny,
        } as i32,
        rules: p.rules.iter().map(to_rule).collect(),
        dry_run: p.dry_run,
    }
}

fn service_name(field: &str, namespace: String, hostname: String) -> Result<ServiceName, WireError> {
    if namespace.is_empty() || hostname.is_empty() {
        return Err(WireError::new(field, "namespace and host name must both be set"));
    }
    Ok(ServiceName::new(namespace, hostname))
}

fn labels(map: std::collections::HashMap<String, String>) -> BTreeMap<Arc<str>, Arc<str>> {
    map.into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

fn text_map(map: &BTreeMap<Arc<str>, Arc<str>>) -> std::collections::HashMap<String, String> {
    map.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn duration(field: &str, d: prost_types::Duration) -> Result<Duration, WireError> {
    Duration::try_from(d).map_err(|_| WireError::new(field, "is negative or out of range"))
}

fn optional_duration(field: &str, d: Option<prost_types::Duration>) -> Result<Option<Duration>, WireError> {
    d.map(|d| duration(field, d)).transpose()
}

/// Durations of configuration are far below the proto's limit of 10,000 years; the cap is never met.
fn to_duration(d: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(d.subsec_nanos()).unwrap_or(0),
    }
}

fn from_protocol(value: i32) -> AppProtocol {
    match pb::Protocol::try_from(value) {
        Ok(pb::Protocol::Http11) => AppProtocol::Http11,
        Ok(pb::Protocol::Http2) => AppProtocol::Http2,
        Ok(pb::Protocol::Grpc) => AppProtocol::Grpc,
        Ok(pb::Protocol::Tcp) => AppProtocol::Tcp,
        Ok(pb::Protocol::Tls) => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn to_protocol(protocol: AppProtocol) -> pb::Protocol {
    match protocol {
        AppProtocol::Unknown => pb::Protocol::Unknown,
        AppProtocol::Http11 => pb::Protocol::Http11,
        AppProtocol::Http2 => pb::Protocol::Http2,
        AppProtocol::Grpc => pb::Protocol::Grpc,
        AppProtocol::Tcp => pb::Protocol::Tcp,
        AppProtocol::Tls => pb::Protocol::Tls,
    }
}

fn from_traffic_policy(p: pb::TrafficPolicy) -> Result<TrafficPolicy, WireError> {
    let lb = match pb::traffic_policy::Lb::try_from(p.lb) {
        Ok(pb::traffic_policy::Lb::LeastRequest) => LbAlgorithm::LeastRequest,
        Ok(pb::traffic_policy::Lb::RoundRobin) => LbAlgorithm::RoundRobin,
        Ok(pb::traffic_policy::Lb::Random) => LbAlgorithm::Random,
        Err(_) => return Err(WireError::new("traffic_policy.lb", format!("{} is unknown", p.lb))),
    };
    Ok(TrafficPolicy {
        lb,
        max_connections: p.max_connections,
        connect_timeout: optional_duration("traffic_policy.connect_timeout", p.connect_timeout)?,
        max_pending_requests: p.max_pending_requests,
        max_requests: p.max_requests,
        max_retries: p.max_retries,
        max_requests_per_connection: p.max_requests_per_connection,
    })
}

fn to_traffic_policy(p: &TrafficPolicy) -> pb::TrafficPolicy {
    pb::TrafficPolicy {
        lb: match p.lb {
            LbAlgorithm::LeastRequest => pb::traffic_policy::Lb::LeastRequest,
            LbAlgorithm::RoundRobin => pb::traffic_policy::Lb::RoundRobin,
            LbAlgorithm::Random => pb::traffic_policy::Lb::Random,
        } as i32,
        max_connections: p.max_connections,
        connect_timeout: p.connect_timeout.map(to_duration),
        max_pending_requests: p.max_pending_requests,
        max_requests: p.max_requests,
        max_retries: p.max_retries,
        max_requests_per_connection: p.max_requests_per_connection,
    }
}

fn from_match(field: &str, m: pb::RouteMatch) -> Result<RouteMatch, WireError> {
    use pb::route_match::Match;
    match m.r#match {
        Some(Match::Exact(text)) => Ok(RouteMatch::Exact(text.into())),
        Some(Match::Prefix(text)) => Ok(RouteMatch::Prefix(text.into())),
        Some(Match::Regex(text)) => Ok(RouteMatch::Regex(text.into())),
        Some(Match::Presence(())) => Ok(RouteMatch::Presence),
        None => Err(WireError::new(field, "a match has no kind")),
    }
}

fn to_match(m: &RouteMatch) -> pb::RouteMatch {
    use pb::route_match::Match;
    pb::RouteMatch {
        r#match: Some(match m {
            RouteMatch::Exact(text) => Match::Exact(text.to_string()),
            RouteMatch::Prefix(text) => Match::Prefix(text.to_string()),
            RouteMatch::Regex(text) => Match::Regex(text.to_string()),
            RouteMatch::Presence => Match::Presence(()),
        }),
    }
}

fn from_named(field: &str, values: Vec<pb::NamedMatch>) -> Result<Vec<(Arc<str>, RouteMatch)>, WireError> {
    values
        .into_iter()
        .map(|n| {
            let m = n.r#match.ok_or_else(|| WireError::new(field, format!("{:?} has no match", n.name)))?;
            Ok((n.name.into(), from_match(field, m)?))
        })
        .collect()
}

fn to_named(values: &[(Arc<str>, RouteMatch)]) -> Vec<pb::NamedMatch> {
    values
        .iter()
        .map(|(name, m)| pb::NamedMatch { name: name.to_string(), r#match: Some(to_match(m)) })
        .collect()
}

fn optional_match(field: &str, m: Option<pb::RouteMatch>) -> Result<Option<RouteMatch>, WireError> {
    m.map(|m| from_match(field, m)).transpose()
}

fn from_http_match(m: pb::HttpMatch) -> Result<HttpMatch, WireError> {
    Ok(HttpMatch {
        name: m.name.into(),
        uri: optional_match("http.matches.uri", m.uri)?,
        ignore_uri_case: m.ignore_uri_case,
        scheme: optional_match("http.matches.scheme", m.scheme)?,
        method: optional_match("http.matches.method", m.method)?,
        authority: optional_match("http.matches.authority", m.authority)?,
        headers: from_named("http.matches.headers", m.headers)?,
        without_headers: from_named("http.matches.without_headers", m.without_headers)?,
        query: from_named("http.matches.query", m.query)?,
        port: m.port.map(|p| port("http.matches.port", p)).transpose()?,
        source_labels: labels(m.source_labels),
        source_namespace: m.source_namespace.map(Into::into),
    })
}

fn to_http_match(m: &HttpMatch) -> pb::HttpMatch {
    pb::HttpMatch {
        name: m.name.to_string(),
        uri: m.uri.as_ref().map(to_match),
        ignore_uri_case: m.ignore_uri_case,
        scheme: m.scheme.as_ref().map(to_match),
        method: m.method.as_ref().map(to_match),
        authority: m.authority.as_ref().map(to_match),
        headers: to_named(&m.headers),
        without_headers: to_named(&m.without_headers),
        query: to_named(&m.query),
        port: m.port.map(Into::into),
        source_labels: text_map(&m.source_labels),
        source_namespace: m.source_namespace.as_ref().map(ToString::to_string),
    }
}

fn from_header_ops(ops: Option<pb::HeaderOps>) -> HeaderOps {
    let Some(ops) = ops else { return HeaderOps::default() };
    let pairs =
        |list: Vec<pb::HeaderOp>| list.into_iter().map(|op| (op.name.into(), op.value.into())).collect();
    HeaderOps {
        set: pairs(ops.set),
        add: pairs(ops.add),
        remove: ops.remove.into_iter().map(Into::into).collect(),
    }
}

fn to_header_ops(ops: &HeaderOps) -> Option<pb::HeaderOps> {
    let pairs = |list: &[(Arc<str>, Arc<str>)]| {
        list.iter().map(|(n, v)| pb::HeaderOp { name: n.to_string(), value: v.to_string() }).collect()
    };
    (*ops != HeaderOps::default()).then(|| pb::HeaderOps {
        set: pairs(&ops.set),
        add: pairs(&ops.add),
        remove: ops.remove.iter().map(ToString::to_string).collect(),
    })
}

fn from_destination(d: pb::WeightedDestination) -> Result<WeightedDestination, WireError> {
    Ok(WeightedDestination {
        service: service_name("http.forward.destinations", d.namespace, d.hostname)?,
        subset: d.subset.map(Into::into),
        port: d.port.map(|p| port("http.forward.destinations.port", p)).transpose()?,
        weight: d.weight,
        request_headers: from_header_ops(d.request_headers),
        response_headers: from_header_ops(d.response_headers),
    })
}

fn to_destination(d: &WeightedDestination) -> pb::WeightedDestination {
    pb::WeightedDestination {
        namespace: d.service.namespace.to_string(),
        hostname: d.service.hostname.to_string(),
        subset: d.subset.as_ref().map(ToString::to_string),
        port: d.port.map(Into::into),
        weight: d.weight,
        request_headers: to_header_ops(&d.request_headers),
        response_headers: to_header_ops(&d.response_headers),
    }
}

fn from_action(action: Option<pb::http_route::Action>) -> Result<RouteAction, WireError> {
    use pb::http_route::Action;
    let status = |field: &str, value: u32| {
        u16::try_from(value)
            .ok()
            .filter(|code| (100..600).contains(code))
            .ok_or_else(|| WireError::new(field, format!("{value} is no HTTP status")))
    };
    match action {
        Some(Action::Forward(forward)) => {
            let destinations =
                forward.destinations.into_iter().map(from_destination).collect::<Result<_, _>>()?;
            Ok(RouteAction::Forward(destinations))
        }
        Some(Action::Redirect(r)) => Ok(RouteAction::Redirect(Redirect {
            code: status("http.redirect.code", r.code)?,
            uri: r.uri.map(Into::into),
            authority: r.authority.map(Into::into),
            scheme: r.scheme.map(Into::into),
            port: r.port.map(|p| port("http.redirect.port", p)).transpose()?,
        })),
        Some(Action::Direct(d)) => Ok(RouteAction::Direct(DirectResponse {
            status: status("http.direct.status", d.status)?,
            body: d.body.into(),
        })),
        None => Err(WireError::new("http.action", "is not set")),
    }
}

fn to_action(action: &RouteAction) -> pb::http_route::Action {
    use pb::http_route::Action;
    match action {
        RouteAction::Forward(destinations) => {
            Action::Forward(pb::Forward { destinations: destinations.iter().map(to_destination).collect() })
        }
        RouteAction::Redirect(r) => Action::Redirect(pb::Redirect {
            code: r.code.into(),
            uri: r.uri.as_ref().map(ToString::to_string),
            authority: r.authority.as_ref().map(ToString::to_string),
            scheme: r.scheme.as_ref().map(ToString::to_string),
            port: r.port.map(Into::into),
        }),
        RouteAction::Direct(d) => {
            Action::Direct(pb::DirectResponse { status: d.status.into(), body: d.body.to_string() })
        }
    }
}

fn from_rewrite(r: pb::Rewrite) -> Result<Rewrite, WireError> {
    let uri_regex = match (r.uri_regex, r.uri_regex_substitution) {
        (Some(pattern), Some(substitution)) => Some((pattern.into(), substitution.into())),
        (None, None) => None,
        _ => {
            return Err(WireError::new("http.rewrite.uri_regex", "pattern and substitution belong together"));
        }
    };
    Ok(Rewrite { uri: r.uri.map(Into::into), uri_regex, authority: r.authority.map(Into::into) })
}

fn to_rewrite(r: &Rewrite) -> pb::Rewrite {
    pb::Rewrite {
        uri: r.uri.as_ref().map(ToString::to_string),
        uri_regex: r.uri_regex.as_ref().map(|(pattern, _)| pattern.to_string()),
        uri_regex_substitution: r.uri_regex.as_ref().map(|(_, substitution)| substitution.to_string()),
        authority: r.authority.as_ref().map(ToString::to_string),
    }
}

const RETRY_NAMES: &[(RetryCondition, &str)] = &[
    (RetryCondition::Status5xx, "5xx"),
    (RetryCondition::GatewayError, "gateway-error"),
    (RetryCondition::Reset, "reset"),
    (RetryCondition::ResetBeforeRequest, "reset-before-request"),
    (RetryCondition::ConnectFailure, "connect-failure"),
    (RetryCondition::RefusedStream, "refused-stream"),
    (RetryCondition::Retriable4xx, "retriable-4xx"),
    (RetryCondition::GrpcCancelled, "cancelled"),
    (RetryCondition::GrpcDeadlineExceeded, "deadline-exceeded"),
    (RetryCondition::GrpcInternal, "internal"),
    (RetryCondition::GrpcResourceExhausted, "resource-exhausted"),
    (RetryCondition::GrpcUnavailable, "unavailable"),
];

/// One condition as Istio's `retryOn` spells it; none for a name that is not supported.
pub fn retry_condition(name: &str) -> Option<RetryCondition> {
    if let Ok(status) = name.parse::<u16>() {
        return (100..600).contains(&status).then_some(RetryCondition::Status(status));
    }
    RETRY_NAMES.iter().find(|(_, text)| *text == name).map(|(condition, _)| *condition)
}

/// The name of a condition in Istio's `retryOn`.
pub fn retry_condition_name(condition: RetryCondition) -> String {
    if let RetryCondition::Status(status) = condition {
        return status.to_string();
    }
    RETRY_NAMES
        .iter()
        .find(|(known, _)| *known == condition)
        .map(|(_, text)| (*text).to_string())
        .unwrap_or_default()
}

fn from_retries(r: pb::RetryPolicy) -> Result<RetryPolicy, WireError> {
    let retry_on = r
        .retry_on
        .iter()
        .map(|name| {
            retry_condition(name)
                .ok_or_else(|| WireError::new("http.retries.retry_on", format!("{name:?} is not supported")))
        })
        .collect::<Result<_, _>>()?;
    Ok(RetryPolicy {
        attempts: r.attempts,
        per_try_timeout: optional_duration("http.retries.per_try_timeout", r.per_try_timeout)?,
        retry_on,
        backoff: optional_duration("http.retries.backoff", r.backoff)?.unwrap_or(Duration::from_millis(25)),
    })
}

fn to_retries(r: &RetryPolicy) -> pb::RetryPolicy {
    pb::RetryPolicy {
        attempts: r.attempts,
        per_try_timeout: r.per_try_timeout.map(to_duration),
        retry_on: r.retry_on.iter().map(|c| retry_condition_name(*c)).collect(),
        backoff: Some(to_duration(r.backoff)),
    }
}

fn from_fault(f: pb::Fault) -> Result<Fault, WireError> {
    let delay = optional_duration("http.fault.delay", f.delay)?.map(|delay| (delay, f.delay_ppm));
    let abort = match f.abort {
        Some(pb::fault::Abort::AbortHttpStatus(status)) => {
            let status =
                u16::try_from(status).ok().filter(|code| (200..600).contains(code)).ok_or_else(|| {
                    WireError::new("http.fault.abort_http_status", format!("{status} is no HTTP status"))
                })?;
            Some((AbortStatus::Http(status), f.abort_ppm))
        }
        Some(pb::fault::Abort::AbortGrpcStatus(status)) => Some((AbortStatus::Grpc(status), f.abort_ppm)),
        None => None,
    };
    Ok(Fault { delay, abort })
}

fn to_fault(f: &Fault) -> pb::Fault {
    pb::Fault {
        delay: f.delay.map(|(delay, _)| to_duration(delay)),
        delay_ppm: f.delay.map_or(0, |(_, ppm)| ppm),
        abort: f.abort.map(|(status, _)| match status {
            AbortStatus::Http(status) => pb::fault::Abort::AbortHttpStatus(status.into()),
            AbortStatus::Grpc(status) => pb::fault::Abort::AbortGrpcStatus(status),
        }),
        abort_ppm: f.abort.map_or(0, |(_, ppm)| ppm),
    }
}

fn from_http_route(r: pb::HttpRoute) -> Result<HttpRoute, WireError> {
    Ok(HttpRoute {
        name: r.name.into(),
        matches: r.matches.into_iter().map(from_http_match).collect::<Result<_, _>>()?,
        action: from_action(r.action)?,
        rewrite: r.rewrite.map(from_rewrite).transpose()?,
        request_headers: from_header_ops(r.request_headers),
        response_headers: from_header_ops(r.response_headers),
        timeout: optional_duration("http.timeout", r.timeout)?,
        retries: r.retries.map(from_retries).transpose()?.unwrap_or_default(),
        fault: r.fault.map(from_fault).transpose()?.unwrap_or_default(),
    })
}

fn to_http_route(r: &HttpRoute) -> pb::HttpRoute {
    pb::HttpRoute {
        name: r.name.to_string(),
        matches: r.matches.iter().map(to_http_match).collect(),
        action: Some(to_action(&r.action)),
        rewrite: r.rewrite.as_ref().map(to_rewrite),
        request_headers: to_header_ops(&r.request_headers),
        response_headers: to_header_ops(&r.response_headers),
        timeout: r.timeout.map(to_duration),
        retries: Some(to_retries(&r.retries)),
        fault: (r.fault != Fault::default()).then(|| to_fault(&r.fault)),
    }
}

fn from_tcp_route(r: pb::TcpRoute) -> Result<TcpRoute, WireError> {
    Ok(TcpRoute {
        port: r.port.map(|p| port("tcp.port", p)).transpose()?,
        destinations: r.destinations.into_iter().map(from_destination).collect::<Result<_, _>>()?,
    })
}

fn to_tcp_route(r: &TcpRoute) -> pb::TcpRoute {
    pb::TcpRoute {
        port: r.port.map(Into::into),
        destinations: r.destinations.iter().map(to_destination).collect(),
    }
}

/// Parses what an L7 policy is for.
pub fn from_targets(targets: Vec<pb::Target>) -> Result<Vec<L7Target>, WireError> {
    targets.into_iter().map(from_target).collect()
}

fn from_target(t: pb::Target) -> Result<L7Target, WireError> {
    match t.target {
        Some(pb::target::Target::Gateway(g)) => {
            Ok(L7Target::Gateway { namespace: g.namespace.into(), name: g.name.into() })
        }
        Some(pb::target::Target::Service(s)) => {
            Ok(L7Target::Service(service_name("targets.service", s.namespace, s.name)?))
        }
        Some(pb::target::Target::AllWaypoints(())) => Ok(L7Target::AllWaypoints),
        None => Err(WireError::new("targets", "a target has no kind")),
    }
}

fn to_target(t: &L7Target) -> pb::Target {
    let object = |namespace: &Arc<str>, name: &Arc<str>| pb::ObjectName {
        namespace: namespace.to_string(),
        name: name.to_string(),
    };
    pb::Target {
        target: Some(match t {
            L7Target::Gateway { namespace, name } => pb::target::Target::Gateway(object(namespace, name)),
            L7Target::Service(s) => pb::target::Target::Service(object(&s.namespace, &s.hostname)),
            L7Target::AllWaypoints => pb::target::Target::AllWaypoints(()),
        }),
    }
}

fn from_strings(field: &str, values: Vec<pb::StringMatch>) -> Result<Vec<StringMatch>, WireError> {
    use pb::string_match::Match;
    values
        .into_iter()
        .map(|value| match value.r#match {
            Some(Match::Exact(text)) => Ok(StringMatch::Exact(text.into())),
            Some(Match::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
            Some(Match::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
            Some(Match::Presence(())) => Ok(StringMatch::Presence),
            None => Err(WireError::new(field, "a string match has no kind")),
        })
        .collect()
}

fn to_strings(values: &[StringMatch]) -> Vec<pb::StringMatch> {
    use pb::string_match::Match;
    let kind = |value: &StringMatch| match value {
        StringMatch::Exact(text) => Match::Exact(text.to_string()),
        StringMatch::Prefix(text) => Match::Prefix(text.to_string()),
        StringMatch::Suffix(text) => Match::Suffix(text.to_string()),
        StringMatch::Presence => Match::Presence(()),
    };
    values.iter().map(|value| pb::StringMatch { r#match: Some(kind(value)) }).collect()
}

fn from_cidrs(field: &str, values: Vec<String>) -> Result<Vec<IpNet>, WireError> {
    values
        .into_iter()
        .map(|text| text.parse().map_err(|_| WireError::new(field, format!("{text:?} is no CIDR"))))
        .collect()
}

fn from_ports(field: &str, values: Vec<u32>) -> Result<Vec<u16>, WireError> {
    values.into_iter().map(|value| port(field, value)).collect()
}

fn from_accounts(values: Vec<pb::ObjectName>) -> Vec<ServiceAccountMatch> {
    values
        .into_iter()
        .map(|a| ServiceAccountMatch { namespace: a.namespace.into(), service_account: a.name.into() })
        .collect()
}

fn to_accounts(values: &[ServiceAccountMatch]) -> Vec<pb::ObjectName> {
    values
        .iter()
        .map(|a| pb::ObjectName { namespace: a.namespace.to_string(), name: a.service_account.to_string() })
        .collect()
}

fn from_source(s: pb::Source) -> Result<L7Source, WireError> {
    Ok(L7Source {
        principals: from_strings("from.principals", s.principals)?,
        not_principals: from_strings("from.not_principals", s.not_principals)?,
        namespaces: from_strings("from.namespaces", s.namespaces)?,
        not_namespaces: from_strings("from.not_namespaces", s.not_namespaces)?,
        service_accounts: from_accounts(s.service_accounts),
        not_service_accounts: from_accounts(s.not_service_accounts),
        ip_blocks: from_cidrs("from.ip_blocks", s.ip_blocks)?,
        not_ip_blocks: from_cidrs("from.not_ip_blocks", s.not_ip_blocks)?,
        remote_ip_blocks: from_cidrs("from.remote_ip_blocks", s.remote_ip_blocks)?,
        not_remote_ip_blocks: from_cidrs("from.not_remote_ip_blocks", s.not_remote_ip_blocks)?,
    })
}

fn to_source(s: &L7Source) -> pb::Source {
    let cidrs = |list: &[IpNet]| list.iter().map(ToString::to_string).collect();
    pb::Source {
        principals: to_strings(&s.principals),
        not_principals: to_strings(&s.not_principals),
        namespaces: to_strings(&s.namespaces),
        not_namespaces: to_strings(&s.not_namespaces),
        service_accounts: to_accounts(&s.service_accounts),
        not_service_accounts: to_accounts(&s.not_service_accounts),
        ip_blocks: cidrs(&s.ip_blocks),
        not_ip_blocks: cidrs(&s.not_ip_blocks),
        remote_ip_blocks: cidrs(&s.remote_ip_blocks),
        not_remote_ip_blocks: cidrs(&s.not_remote_ip_blocks),
    }
}

fn from_operation(o: pb::Operation) -> Result<L7Operation, WireError> {
    Ok(L7Operation {
        hosts: from_strings("to.hosts", o.hosts)?,
        not_hosts: from_strings("to.not_hosts", o.not_hosts)?,
        ports: from_ports("to.ports", o.ports)?,
        not_ports: from_ports("to.not_ports", o.not_ports)?,
        methods: from_strings("to.methods", o.methods)?,
        not_methods: from_strings("to.not_methods", o.not_methods)?,
        paths: from_strings("to.paths", o.paths)?,
        not_paths: from_strings("to.not_paths", o.not_paths)?,
    })
}

fn to_operation(o: &L7Operation) -> pb::Operation {
    let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect();
    pb::Operation {
        hosts: to_strings(&o.hosts),
        not_hosts: to_strings(&o.not_hosts),
        ports: ports(&o.ports),
        not_ports: ports(&o.not_ports),
        methods: to_strings(&o.methods),
        not_methods: to_strings(&o.not_methods),
        paths: to_strings(&o.paths),
        not_paths: to_strings(&o.not_paths),
    }
}

/// A `when` key as Istio spells it; none for one that is not supported.
pub fn condition_key(key: &str) -> Option<ConditionKey> {
    if let Some(name) = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
        return Some(ConditionKey::Header(name.to_ascii_lowercase().into()));
    }
    match key {
        "source.ip" => Some(ConditionKey::SourceIp),
        "remote.ip" => Some(ConditionKey::RemoteIp),
        "source.namespace" => Some(ConditionKey::SourceNamespace),
        "source.principal" => Some(ConditionKey::SourcePrincipal),
        "destination.ip" => Some(ConditionKey::DestinationIp),
        "destination.port" => Some(ConditionKey::DestinationPort),
        _ => None,
    }
}

fn condition_key_name(key: &ConditionKey) -> String {
    match key {
        ConditionKey::Header(name) => format!("request.headers[{name}]"),
        ConditionKey::SourceIp => "source.ip".into(),
        ConditionKey::RemoteIp => "remote.ip".into(),
        ConditionKey::SourceNamespace => "source.namespace".into(),
        ConditionKey::SourcePrincipal => "source.principal".into(),
        ConditionKey::DestinationIp => "destination.ip".into(),
        ConditionKey::DestinationPort => "destination.port".into(),
    }
}

fn from_condition(c: pb::Condition) -> Result<L7Condition, WireError> {
    let key = condition_key(&c.key)
        .ok_or_else(|| WireError::new("when.key", format!("{:?} is not supported", c.key)))?;
    Ok(L7Condition {
        key,
        values: from_strings("when.values", c.values)?,
        not_values: from_strings("when.not_values", c.not_values)?,
    })
}

fn from_rule(r: pb::Rule) -> Result<L7Rule, WireError> {
    Ok(L7Rule {
        from: r.from.into_iter().map(from_source).collect::<Result<_, _>>()?,
        to: r.to.into_iter().map(from_operation).collect::<Result<_, _>>()?,
        when: r.when.into_iter().map(from_condition).collect::<Result<_, _>>()?,
    })
}

fn to_rule(r: &L7Rule) -> pb::Rule {
    pb::Rule {
        from: r.from.iter().map(to_source).collect(),
        to: r.to.iter().map(to_operation).collect(),
        when: r
            .when
            .iter()
            .map(|c| pb::Condition {
                key: condition_key_name(&c.key),
                values: to_strings(&c.values),
                not_values: to_strings(&c.not_values),
            })
            .collect(),
    }
}
