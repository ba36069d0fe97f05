//! L7 for `culvert explain`: what the routes of a service say, in order of evaluation, and which
//! policies of the waypoint let this client's requests pass.

use std::sync::Arc;

use super::{
    Applies, Client, CompiledRoutes, NoHeaders, RequestFacts, applies, authz, endpoints,
    policy::{Holds, policy_holds},
};
use crate::{
    balance::Endpoint,
    explain::AtWaypoint,
    model::{
        PolicyAction, ServiceName,
        l7::{HttpMatch, HttpRoute, L7Policy, RouteAction, RouteMatch, WeightedDestination},
    },
    outcome::{Reason, Refusal},
    trace::{Step, StepKind},
};

/// One step per route that requests to this port can take, and one per policy that the waypoint
/// enforces for the service: the hook of [`crate::explain::explain`].
///
/// # Errors
/// No request of this client can pass, whatever it asks for: policies refuse all, or nothing that
/// they may be sent to is ready.
pub fn explain_routes(at: &AtWaypoint<'_>, steps: &mut Vec<Step>) -> Result<Vec<Endpoint>, Refusal> {
    let destinations = routes(at, steps);
    policies(at, steps)?;
    reachable(at, destinations, steps)
}

/// Where requests are sent: service, subset and port.
type Target<'a> = (&'a ServiceName, Option<&'a Arc<str>>, u16);

fn routes<'a>(at: &AtWaypoint<'a>, steps: &mut Vec<Step>) -> Vec<Target<'a>> {
    let port = at.dialled.port();
    let Some(routes) = at.snapshot.routes(&at.service.key) else {
        let object = format!("service {}", at.service.key);
        steps.push(Step::new(StepKind::Route, object, "no routes: the service itself"));
        return vec![(&at.service.key, None, port)];
    };
    if let Err(error) = CompiledRoutes::compile(routes.clone()) {
        steps.push(Step::new(StepKind::Route, &*routes.origin, format!("refused: {error}")));
    }
    let taken = |route: &&HttpRoute| {
        route.matches.is_empty() || route.matches.iter().any(|m| m.port.is_none_or(|p| p == port))
    };
    let mut targets = Vec::new();
    for route in routes.http.iter().filter(taken) {
        let object = format!("{} route {}", routes.origin, route.name);
        steps.push(Step::new(StepKind::Route, object, format!("{}: {}", condition(route), effect(route))));
        if let RouteAction::Forward(list) = &route.action {
            targets.extend(list.iter().filter(|d| d.weight > 0 || list.len() == 1));
        }
    }
    for route in routes.tcp.iter().filter(|route| route.port.is_none_or(|p| p == port)) {
        let object = format!("{} tcp", routes.origin);
        steps.push(Step::new(StepKind::Route, object, format!("TCP: {}", shares(&route.destinations))));
        targets.extend(&route.destinations);
    }
    let none = routes.http.is_empty() && routes.tcp.is_empty();
    let own = none.then_some((&at.service.key, None, port));
    let of = |d: &'a WeightedDestination| (&d.service, d.subset.as_ref(), d.port.unwrap_or(port));
    own.into_iter().chain(targets.into_iter().map(of)).collect()
}

fn reachable(
    at: &AtWaypoint<'_>,
    targets: Vec<Target<'_>>,
    steps: &mut Vec<Step>,
) -> Result<Vec<Endpoint>, Refusal> {
    let (mut found, mut missing) = (Vec::<Endpoint>::new(), None);
    for (service, subset, port) in targets {
        match endpoints(at.snapshot, at.waypoint, service, subset, port) {
            Ok(list) => list.into_iter().for_each(|endpoint| {
                if !found.contains(&endpoint) {
                    found.push(endpoint);
                }
            }),
            Err(error) => {
                let object = format!("service {service}");
                steps.push(Step::new(StepKind::Endpoint, object, format!("none: {error}")));
                missing = Some(error);
            }
        }
    }
    match missing {
        Some(error) if found.is_empty() => Err(error.into()),
        _ => Ok(found),
    }
}

/// As [`authz::authorise`], but before there is a request: a policy that asks for a path, a method or
/// a header may or may not hold.
fn policies(at: &AtWaypoint<'_>, steps: &mut Vec<Step>) -> Result<(), Refusal> {
    let identity = at.client.identity();
    let principal = identity.principal();
    let facts = RequestFacts {
        client: Client {
            ip: at.from,
            principal: Some(&principal),
            namespace: Some(&identity.namespace),
            service_account: Some(&identity.service_account),
            labels: None,
        },
        method: "",
        scheme: "",
        authority: "",
        path: "",
        query: "",
        headers: &NoHeaders,
        destination_ip: Some(at.dialled.ip()),
        port: at.dialled.port(),
    };
    let (namespace, name) = at.gateway();
    let to = Applies { namespace, name, service: Some(&at.service.key) };
    let here: Vec<(&L7Policy, Holds)> = at
        .snapshot
        .l7_policies()
        .filter(|policy| applies(policy, to))
        .map(|policy| (&**policy, policy_holds(policy, &facts)))
        .collect();
    for (policy, holds) in &here {
        let object = format!("AuthorizationPolicy {}", policy.key);
        steps.push(Step::new(StepKind::Policy, object, says(policy, *holds, &principal)));
    }
    let enforced = |action| here.iter().filter(move |(p, _)| p.action == action && !p.dry_run);
    if let Some((policy, _)) = enforced(PolicyAction::Deny).find(|(_, holds)| *holds == Holds::Always) {
        return Err(Refusal::new(Reason::PolicyDenied, format!("denied by policy {}", policy.key)));
    }
    let mut allows = enforced(PolicyAction::Allow).peekable();
    if allows.peek().is_some() && allows.all(|(_, holds)| *holds == Holds::Never) {
        let tried = here.iter().map(|(policy, _)| *policy);
        return Err(Refusal::new(Reason::NoAllowMatched, authz::unmatched(tried)));
    }
    Ok(())
}

fn says(policy: &L7Policy, holds: Holds, client: &str) -> String {
    let verb = match policy.action {
        PolicyAction::Allow => "allows",
        PolicyAction::Deny => "denies",
    };
    let dry = if policy.dry_run { " (dry run: only logged)" } else { "" };
    match holds {
        Holds::Always => format!("the waypoint {verb} every request of {client}{dry}"),
        Holds::Sometimes => {
            format!(
                "the waypoint {verb} those requests of {client} that fit its path, method, host or headers{dry}"
            )
        }
        Holds::Never => format!("{verb} no request of {client}: no rule fits this client and port{dry}"),
    }
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
        RouteAction::Forward(list) => shares(list),
    }
}

fn shares(list: &[WeightedDestination]) -> String {
    let total: u64 = list.iter().map(|d| u64::from(d.weight)).sum();
    let one = |d: &WeightedDestination| {
        let share = if list.len() == 1 { 100 } else { u64::from(d.weight) * 100 / total.max(1) };
        let subset = d.subset.as_ref().map(|s| format!(" subset {s}")).unwrap_or_default();
        format!("{share} % to {}{subset}", d.service.hostname)
    };
    list.iter().map(one).collect::<Vec<_>>().join(", ")
}
