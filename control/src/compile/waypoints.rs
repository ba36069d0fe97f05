//! Which services go through a waypoint: what labels ask for, else ours (decision 0015).

use std::collections::BTreeSet;

use mesh_core::model::{
    GatewayAddress, GatewayDestination, Health, ServiceName, Tunnel,
    l7::{L7Policy, L7Target},
};

use super::{Context, GATEWAY_NAME, USE_WAYPOINT};
use crate::{
    finding::Severity,
    memory::Routed,
    object::{Key, Labels},
};

/// Name of the waypoints that come by themselves.
pub(super) const OWN: &str = "waypoint";

/// Why a service needs L7.
#[derive(Clone, Copy)]
pub(super) enum Cause {
    /// Routes name it.
    Routes,
    /// A policy is attached to it.
    Policy,
}

/// Notes that an object needs L7 for a service; ours comes when nothing else is asked for.
pub(super) fn need(cx: &mut Context<'_>, routed: &Routed, key: &Key, service: &ServiceName, cause: Cause) {
    let Some((source, object)) = cx.sources.get(service) else { return };
    if cx.opted_out(&source.namespace, &object.meta.labels) {
        return opted_out(cx, key, service, cause);
    }
    if asked(cx, service) {
        return;
    }
    if !enrolled(cx, routed, service) {
        return without_effect(cx, key, service, cause);
    }
    let why = match cause {
        Cause::Routes => format!("{key} routes {}", service.hostname),
        Cause::Policy => format!("{key} is enforced at L7"),
    };
    cx.out.waypoints.entry(service.namespace.clone()).or_insert(why);
    cx.needs.entry(service.clone()).or_insert_with(|| key.clone());
}

/// A service that wants no waypoint is not routed, and one that only a waypoint may reach is not reached.
fn opted_out(cx: &mut Context<'_>, key: &Key, service: &ServiceName, cause: Cause) {
    let what = match cause {
        Cause::Routes => "these routes have no effect on it",
        Cause::Policy => "this policy closes it to everybody",
    };
    let reason = format!("{} takes no waypoint ({USE_WAYPOINT}: none), so that {what}", service.hostname);
    cx.note(key, "", "no-waypoint", reason, "remove the label, or the object");
}

/// A service outside the mesh gets no waypoint by itself: its clients may not be in the mesh either. One
/// without endpoints is only not there yet.
fn without_effect(cx: &mut Context<'_>, key: &Key, service: &ServiceName, cause: Cause) {
    if !cx.endpoints.contains_key(service) {
        return;
    }
    let (severity, what) = match cause {
        Cause::Routes => (Severity::Info, "these routes have"),
        Cause::Policy => (Severity::Warning, "this policy has"),
    };
    let host = &service.hostname;
    let reason =
        format!("{what} no effect on {host}: no endpoint of it is in the mesh and no waypoint is named");
    let remedy = "enrol its namespace, or name a waypoint with the label istio.io/use-waypoint";
    cx.problem(key, severity, "", "not-enrolled", reason, remedy);
}

/// Whether labels already say which waypoint a service uses, or that it uses none.
fn asked(cx: &Context<'_>, service: &ServiceName) -> bool {
    let none = Labels::new();
    let Some((key, object)) = cx.sources.get(service) else { return false };
    object.meta.labels.contains_key(USE_WAYPOINT)
        || cx.labelled_waypoint(&key.namespace, &none).is_some()
        || cx.opted_out(&key.namespace, &none)
}

/// Whether any endpoint of a service is in the mesh. A service that was routed before and has no
/// endpoints for a moment still counts: they will come back.
fn enrolled(cx: &Context<'_>, routed: &Routed, service: &ServiceName) -> bool {
    let mut endpoints = cx.endpoints(service).peekable();
    match endpoints.peek() {
        None => routed.contains(service),
        Some(_) => endpoints.any(|w| w.tunnel == Tunnel::Hbone),
    }
}

/// While some documents cannot be read, what was routed stays routed: the routes may be among them.
fn keep_in_doubt(cx: &mut Context<'_>, routed: &Routed) {
    if !cx.store.doubtful {
        return;
    }
    let kept: Vec<(ServiceName, Key)> = cx
        .sources
        .iter()
        .map(|(name, (key, _))| (name.clone(), (*key).clone()))
        .filter(|(name, _)| routed.contains(name) && !asked(cx, name))
        .collect();
    for (name, key) in kept {
        let why = || format!("{key} was routed before, and documents that may say so cannot be read");
        cx.out.waypoints.entry(name.namespace.clone()).or_insert_with(why);
        cx.needs.entry(name).or_insert(key);
    }
}

/// Gives services their waypoint. A reference, once there, stays while it is wanted: without a ready
/// instance traffic is refused at the client. Fails closed, but for a service whose first waypoint has
/// not been ready yet and that no policy protects.
pub(super) fn attach(cx: &mut Context<'_>, routed: &mut Routed) {
    keep_in_doubt(cx, routed);
    // A service that cannot be read now was not necessarily deleted.
    let mut now_routed = if cx.store.doubtful { routed.all().clone() } else { BTreeSet::new() };
    for (name, (key, object)) in cx.sources.clone() {
        let labels = &object.meta.labels;
        if labels.contains_key(GATEWAY_NAME) || cx.opted_out(&key.namespace, labels) {
            continue;
        }
        if let Some(gateway) = cx.labelled_waypoint(&key.namespace, labels) {
            tell_unavailable(cx, key, "metadata.labels", &name, &gateway);
            assign(cx, &name, gateway, true);
        } else if let Some(cause) = cx.needs.get(&name).cloned() {
            let gateway = Context::waypoint_address(&key.namespace, OWN);
            let through = ready(cx, &gateway) || routed.contains(&name) || policed(cx, &name);
            if through {
                now_routed.insert(name.clone());
                tell_unavailable(cx, &cause, "", &name, &gateway);
            } else {
                tell_pending(cx, &cause, &name);
            }
            assign(cx, &name, gateway, through);
        }
    }
    routed.set(now_routed);
}

fn assign(cx: &mut Context<'_>, service: &ServiceName, gateway: GatewayAddress, through: bool) {
    let sticky = cx.out.services.get(service).is_some_and(|service| service.load_balancing.sticky);
    if let (true, Some((key, _))) = (sticky, cx.sources.get(service).copied()) {
        let reason = "ClientIP has no effect at the waypoint that the service goes through".into();
        cx.note(key, "spec.sessionAffinity", "unsupported-field", reason, "remove it, or take no waypoint");
    }
    if let Some(service) = cx.out.services.get_mut(service).filter(|_| through) {
        service.waypoint = Some(gateway.clone());
    }
    cx.out.waypoint_of.insert(service.clone(), gateway);
}

fn ready(cx: &Context<'_>, gateway: &GatewayAddress) -> bool {
    let GatewayDestination::Hostname(waypoint) = &gateway.destination else { return true };
    cx.out.services.contains_key(waypoint) && cx.endpoints(waypoint).any(|w| w.health == Health::Healthy)
}

/// Whether a policy is enforced for a service at our waypoint.
fn policed(cx: &Context<'_>, service: &ServiceName) -> bool {
    let reaches = |target: &L7Target| match target {
        L7Target::Service(name) => name == service,
        L7Target::Gateway { namespace, name } => **name == *OWN && *namespace == service.namespace,
        L7Target::AllWaypoints => true,
    };
    let enforced = |p: &&L7Policy| !p.dry_run && p.targets.iter().any(reaches);
    cx.out.l7_policies.values().any(|p| enforced(&p))
}

fn shown(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Hostname(name) => name.to_string(),
        GatewayDestination::Address(at) => at.address.to_string(),
    }
}

fn tell_unavailable(
    cx: &mut Context<'_>,
    key: &Key,
    field: &str,
    service: &ServiceName,
    at: &GatewayAddress,
) {
    if !ready(cx, at) && cx.endpoints.contains_key(service) {
        let reason = format!(
            "connections to {} are refused: its waypoint {} has no ready instance",
            service.hostname,
            shown(at)
        );
        cx.note(key, field, "waypoint-unavailable", reason, "start the waypoint, or see why it is not ready");
    }
}

fn tell_pending(cx: &mut Context<'_>, key: &Key, service: &ServiceName) {
    let reason =
        format!("waits for the first waypoint of {}, which is still reached directly", service.hostname);
    cx.problem(key, Severity::Info, "", "waypoint-pending", reason, "nothing to do; see why if it lasts");
}
