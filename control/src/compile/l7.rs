//! VirtualService, DestinationRule and L7 AuthorizationPolicy → what waypoints are told.

use std::sync::Arc;

use mesh_core::model::{
    ServiceName,
    l7::{RouteAction, ServiceRoutes, Subset, TrafficPolicy, WeightedDestination},
};

use super::{
    Context,
    waypoints::{Cause, need},
};
use crate::memory::Routed;
use crate::object::{Body, Key, VirtualService};

pub(super) fn compile(cx: &mut Context<'_>, routed: &Routed) {
    cx.out.routes = cx.out.services.values().map(|s| (s.key.clone(), plain(s))).collect();
    for (key, object) in cx.each("DestinationRule") {
        let Body::DestinationRule(rule) = &object.body else { continue };
        let host = ServiceName::new("", rule.host.clone());
        let Some(name) = cx.service_of(&host) else {
            let reason = format!("there is no service {}", rule.host);
            cx.note(key, "spec.host", "unknown-host", reason, "create it or correct the name");
            continue;
        };
        let Some(routes) = cx.out.routes.get_mut(&name) else { continue };
        routes.traffic_policy = rule.policy.clone();
        let subset = |(name, labels, policy): &(Arc<str>, _, TrafficPolicy)| Subset {
            name: name.clone(),
            labels: Clone::clone(labels),
            traffic_policy: policy.clone(),
        };
        routes.subsets = rule.subsets.iter().map(subset).collect();
    }
    for (key, object) in cx.each("VirtualService") {
        if let Body::VirtualService(vs) = &object.body {
            virtual_service(cx, routed, key, vs);
        }
    }
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
        let Some(name) = cx.service_of(&ServiceName::new("", host.clone())) else {
            let reason = format!("there is no service {host}");
            cx.note(
                key,
                &format!("spec.hosts[{index}]"),
                "unknown-host",
                reason,
                "create it or correct the name",
            );
            continue;
        };
        let Some(routes) = cx.out.routes.get_mut(&name) else { continue };
        if !routes.origin.is_empty() {
            let reason = format!("{host} already has {}, which is used", routes.origin);
            cx.note(key, &format!("spec.hosts[{index}]"), "conflict", reason, "merge the two");
            continue;
        }
        routes.origin = key.to_string().into();
        (routes.http, routes.tcp) = (http.clone(), tcp.clone());
        need(cx, routed, key, &name, Cause::Routes);
    }
}

/// Puts in the full name; a destination that does not exist stays as written and answers 503.
fn resolve(cx: &mut Context<'_>, key: &Key, field: &str, destination: &mut WeightedDestination) {
    match cx.service_of(&destination.service) {
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
