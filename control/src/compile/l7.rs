//! VirtualService, DestinationRule and L7 AuthorizationPolicy → what waypoints are told.

use std::sync::Arc;

use mesh_core::model::{
    GatewayDestination, ServiceName,
    l7::{RouteAction, ServiceRoutes, Subset, TrafficPolicy, WeightedDestination},
};

use super::{
    Context,
    waypoints::{Cause, need},
};
use crate::memory::Routed;
use crate::object::{Body, DestinationRule, Key, Object, VirtualService};

pub(super) fn compile(cx: &mut Context<'_>, routed: &Routed) {
    cx.out.routes = cx.out.services.values().map(|s| (s.key.clone(), plain(s))).collect();
    destination_rules(cx);
    for (key, object) in oldest_first(cx, "VirtualService") {
        if let Body::VirtualService(vs) = &object.body {
            virtual_service(cx, routed, key, vs);
        }
    }
}

/// Of two objects for one service the older counts, as in Istio; of equal age the first by name.
fn oldest_first<'a>(cx: &Context<'a>, kind: &str) -> Vec<(&'a Key, &'a Object)> {
    let mut all: Vec<_> = cx.each(kind).collect();
    all.sort_by_key(|(key, object)| (object.meta.created.clone(), *key));
    all
}

/// Rules of a service's own namespace come before those of the root namespace; others do not count, or
/// anybody could change how another's service is reached.
fn destination_rules(cx: &mut Context<'_>) {
    let mut used = std::collections::BTreeMap::<ServiceName, Key>::new();
    let mut rules = oldest_first(cx, "DestinationRule");
    rules.sort_by_key(|(key, _)| key.namespace == cx.options.root_namespace);
    for (key, object) in rules {
        let Body::DestinationRule(rule) = &object.body else { continue };
        let Some(name) = cx.service_of(&ServiceName::new("", rule.host.clone()), &key.namespace) else {
            let reason = format!("there is no service {}", rule.host);
            cx.note(key, "spec.host", "unknown-host", reason, "create it or correct the name");
            continue;
        };
        if key.namespace != name.namespace && key.namespace != cx.options.root_namespace {
            let reason = format!("{} is a service of namespace {}", rule.host, name.namespace);
            let remedy = "move the rule to that namespace or to the root namespace";
            cx.note(key, "spec.host", "not-allowed", reason, remedy);
        } else if let Some(first) = used.get(&name) {
            let reason = format!("{} already has {first}, which is used", rule.host);
            cx.note(key, "spec.host", "conflict", reason, "merge the two");
        } else {
            destination_rule(cx, &name, rule);
            used.insert(name, key.clone());
        }
    }
}

fn destination_rule(cx: &mut Context<'_>, name: &ServiceName, rule: &DestinationRule) {
    let Some(routes) = cx.out.routes.get_mut(name) else { return };
    routes.traffic_policy = rule.policy.clone();
    let subset = |(name, labels, policy): &(Arc<str>, _, TrafficPolicy)| Subset {
        name: name.clone(),
        labels: Clone::clone(labels),
        traffic_policy: policy.clone(),
    };
    routes.subsets = rule.subsets.iter().map(subset).collect();
}

fn plain(service: &mesh_core::model::Service) -> ServiceRoutes {
    ServiceRoutes {
        service: service.key.clone(),
        protocols: service.ports.iter().map(|p| (p.service_port, p.app_protocol)).collect(),
        origin: "".into(),
        http: Vec::new(),
        tcp: Vec::new(),
        traffic_policy: TrafficPolicy::default(),
        subsets: Vec::new(),
    }
}

fn virtual_service(cx: &mut Context<'_>, routed: &Routed, key: &Key, vs: &VirtualService) {
    if !vs.mesh {
        let reason = "applies only to ingress gateways".into();
        return cx.note(key, "spec.gateways", "not-mesh", reason, "add mesh to gateways");
    }
    let (mut http, mut tcp) = (vs.http.clone(), vs.tcp.clone());
    for (index, route) in http.iter_mut().enumerate() {
        if let RouteAction::Forward(list) = &mut route.action {
            list.iter_mut().for_each(|d| resolve(cx, key, &format!("spec.http[{index}]"), d));
        }
    }
    for (index, route) in tcp.iter_mut().enumerate() {
        route.destinations.iter_mut().for_each(|d| resolve(cx, key, &format!("spec.tcp[{index}]"), d));
    }
    for (index, host) in vs.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let Some(name) = cx.service_of(&ServiceName::new("", host.clone()), &key.namespace) else {
            let reason = format!("there is no service {host}");
            cx.note(key, &field, "unknown-host", reason, "create it or correct the name");
            continue;
        };
        if !may_route(cx, key, &name) {
            let reason = format!("{host} is a service of namespace {}", name.namespace);
            let remedy = "move the object to the namespace of the service or of its waypoint";
            cx.note(key, &field, "not-allowed", reason, remedy);
            continue;
        }
        let Some(routes) = cx.out.routes.get_mut(&name) else { continue };
        if !routes.origin.is_empty() {
            let reason = format!("{host} already has {}, which is used", routes.origin);
            cx.note(key, &field, "conflict", reason, "merge the two");
            continue;
        }
        routes.origin = key.to_string().into();
        (routes.http, routes.tcp) = (http.clone(), tcp.clone());
        need(cx, routed, key, &name, Cause::Routes);
    }
}

/// Whether an object may route a service: it is of the service's namespace or of its waypoint's, or else
/// anybody could route another's traffic.
fn may_route(cx: &Context<'_>, key: &Key, name: &ServiceName) -> bool {
    let Some((source, object)) = cx.sources.get(name) else { return false };
    let waypoint = cx.labelled_waypoint(&source.namespace, &object.meta.labels).map(|g| g.destination);
    key.namespace == name.namespace
        || matches!(waypoint, Some(GatewayDestination::Hostname(w)) if w.namespace == key.namespace)
}

/// Puts in the full name; a destination that does not exist stays as written and answers 503.
fn resolve(cx: &mut Context<'_>, key: &Key, field: &str, destination: &mut WeightedDestination) {
    match cx.service_of(&destination.service, &key.namespace) {
        Some(name) => destination.service = name,
        None => {
            let host = destination.service.hostname.clone();
            if destination.service.namespace.is_empty() {
                destination.service.namespace = key.namespace.clone();
            }
            cx.note(
                key,
                field,
                "unknown-host",
                format!("there is no service {host}"),
                "create it or correct the name",
            );
            return;
        }
    }
    if let Some(subset) = &destination.subset {
        let known = cx
            .out
            .routes
            .get(&destination.service)
            .is_some_and(|r| r.subsets.iter().any(|s| s.name == *subset));
        if !known {
            let reason =
                format!("no DestinationRule defines subset {subset} of {}", destination.service.hostname);
            cx.note(key, field, "unknown-subset", reason, "add a DestinationRule with the subset");
        }
    }
}
