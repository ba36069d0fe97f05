//! L7 routing for `culvert explain`: what the routes of a service say, in order of evaluation.

use super::CompiledRoutes;
use crate::{
    model::{
        PolicyAction, Service,
        l7::{HttpMatch, HttpRoute, L7Target, RouteAction, RouteMatch},
    },
    snapshot::Snapshot,
    trace::{Step, StepKind},
};

/// One step per route that requests to this port can take, and one per policy that the waypoint
/// enforces for the service: the hook of [`crate::explain::explain`].
pub fn explain_routes(snapshot: &Snapshot, service: &Service, port: u16) -> Vec<Step> {
    let mut steps = Vec::new();
    match snapshot.routes(&service.key) {
        None => steps.push(Step::new(
            StepKind::Route,
            format!("service {}", service.key),
            "no routes: the service itself",
        )),
        Some(routes) => {
            if let Err(error) = CompiledRoutes::compile(routes.clone()) {
                steps.push(Step::new(StepKind::Route, &*routes.origin, format!("refused: {error}")));
            }
            let reachable = |route: &&HttpRoute| {
                route.matches.is_empty() || route.matches.iter().any(|m| m.port.is_none_or(|p| p == port))
            };
            for route in routes.http.iter().filter(reachable) {
                let object = format!("{} route {}", routes.origin, route.name);
                steps.push(Step::new(
                    StepKind::Route,
                    object,
                    format!("{}: {}", condition(route), effect(route)),
                ));
            }
        }
    }
    let target =
        |t: &L7Target| *t == L7Target::Service(service.key.clone()) || !matches!(t, L7Target::Service(_));
    for policy in snapshot.l7_policies().filter(|p| p.targets.iter().any(target)) {
        let action = match policy.action {
            PolicyAction::Allow => "allows",
            PolicyAction::Deny => "denies",
        };
        let dry = if policy.dry_run { " (dry run)" } else { "" };
        let detail =
            format!("the waypoint {action} requests that match one of {} rules{dry}", policy.rules.len());
        steps.push(Step::new(StepKind::Policy, format!("AuthorizationPolicy {}", policy.key), detail));
    }
    steps
}

fn condition(route: &HttpRoute) -> String {
    match route.matches.as_slice() {
        [] => "every request".to_owned(),
        list => list.iter().map(one).collect::<Vec<_>>().join(" or "),
    }
}

fn one(m: &HttpMatch) -> String {
    let mut parts = Vec::new();
    let mut add = |name: &str, pattern: &RouteMatch| parts.push(format!("{name} {}", text(pattern)));
    for (name, pattern) in
        [("path", &m.uri), ("method", &m.method), ("scheme", &m.scheme), ("host", &m.authority)]
    {
        if let Some(pattern) = pattern {
            add(name, pattern);
        }
    }
    m.headers.iter().for_each(|(name, p)| add(&format!("header {name}"), p));
    m.without_headers.iter().for_each(|(name, p)| add(&format!("not header {name}"), p));
    m.query.iter().for_each(|(name, p)| add(&format!("query {name}"), p));
    parts.extend(m.port.map(|port| format!("port {port}")));
    parts.extend(m.source_namespace.as_ref().map(|ns| format!("from namespace {ns}")));
    parts.extend(m.source_labels.iter().map(|(key, value)| format!("from {key}={value}")));
    if parts.is_empty() { "every request".to_owned() } else { parts.join(" and ") }
}

fn text(pattern: &RouteMatch) -> String {
    match pattern {
        RouteMatch::Exact(t) => format!("= {t}"),
        RouteMatch::Prefix(t) => format!("starts with {t}"),
        RouteMatch::Regex(t) => format!("matches {t}"),
        RouteMatch::Presence => "is present".to_owned(),
    }
}

fn effect(route: &HttpRoute) -> String {
    match &route.action {
        RouteAction::Redirect(r) => format!("redirect {}", r.code),
        RouteAction::Direct(d) => format!("answer {}", d.status),
        RouteAction::Forward(list) => {
            let total: u64 = list.iter().map(|d| u64::from(d.weight)).sum();
            let one = |d: &crate::model::l7::WeightedDestination| {
                let share = if list.len() == 1 { 100 } else { u64::from(d.weight) * 100 / total.max(1) };
                let subset = d.subset.as_ref().map(|s| format!(" subset {s}")).unwrap_or_default();
                format!("{share} % to {}{subset}", d.service.hostname)
            };
            list.iter().map(one).collect::<Vec<_>>().join(", ")
        }
    }
}
