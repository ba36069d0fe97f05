//! What would happen to a connection, every decision in order: the same functions as the data path,
//! with a listener. Used by `culvert explain` and by the agent's admin page.

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    balance::{Endpoint, NoLoad},
    entropy::SplitMix64,
    hbone::Authority,
    http,
    inbound::{self, Arrival, InboundFacts},
    model::{GatewayDestination, Service, Tunnel, Workload},
    outbound::{self, Hop, OutboundFacts, OutboundPlan, Transport},
    outcome::{Path, Reason, Refusal},
    snapshot::{PodRef, Snapshot},
    trace::{Step, StepKind, Trace},
};

/// The result of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Version of the snapshot that was read.
    pub snapshot: u64,
    /// Decisions in order.
    pub steps: Vec<Step>,
    /// Whether the connection would be carried to an application.
    pub carried: bool,
    /// Why not.
    pub refusal: Option<Refusal>,
    /// Whether the refusal is the waypoint's: agents know nothing of it.
    #[serde(default)]
    pub by_waypoint: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>2}. {step}", number + 1)?;
        }
        Ok(())
    }
}

/// A connection that has reached the waypoint of the service it asks for.
#[derive(Debug, Clone, Copy)]
pub struct AtWaypoint<'a> {
    /// The mesh.
    pub snapshot: &'a Snapshot,
    /// The waypoint's instance.
    pub waypoint: &'a Workload,
    /// Service that the client dialled.
    pub service: &'a Service,
    /// Address that the client dialled.
    pub dialled: SocketAddr,
    /// The client.
    pub client: &'a Workload,
    /// Its address.
    pub from: IpAddr,
}

impl AtWaypoint<'_> {
    /// Namespace and name of the waypoint's Gateway: those of its Service.
    pub fn gateway(&self) -> (&str, &str) {
        match self.service.waypoint.as_ref().map(|waypoint| &waypoint.destination) {
            Some(GatewayDestination::Hostname(name)) => {
                (&name.namespace, name.hostname.split('.').next().unwrap_or_default())
            }
            _ => (&self.waypoint.namespace, &self.waypoint.workload_name),
        }
    }
}

/// Says what a waypoint does with requests, and which endpoints they may reach: the hook for L7. No
/// endpoint when the waypoint answers by itself; an error when no request can pass.
pub type ExplainRoute<'a> = &'a dyn Fn(&AtWaypoint<'_>, &mut Vec<Step>) -> Result<Vec<Endpoint>, Refusal>;

/// The hook where no routes are known: every ready endpoint of the service.
///
/// # Errors
/// There is none.
pub fn any_endpoint(at: &AtWaypoint<'_>, _: &mut Vec<Step>) -> Result<Vec<Endpoint>, Refusal> {
    Ok(http::endpoints(at.snapshot, at.waypoint, &at.service.key, None, at.dialled.port())?)
}

/// Explains a connection from a workload to an address.
pub fn explain(
    snapshot: &Snapshot,
    source: &Workload,
    destination: SocketAddr,
    route: ExplainRoute<'_>,
) -> Explanation {
    let (mut steps, by_waypoint) = (Vec::new(), Cell::new(false));
    let hook =
        |at: &AtWaypoint<'_>, steps: &mut Vec<Step>| route(at, steps).inspect_err(|_| by_waypoint.set(true));
    let result = walk(snapshot, source, destination, &hook, &mut steps);
    steps.step(|| match &result {
        Ok(()) => Step::new(StepKind::Verdict, "", "carried"),
        Err(refusal) if by_waypoint.get() => {
            Step::new(StepKind::Verdict, "", format!("refused by the waypoint, {refusal}"))
        }
        Err(refusal) => Step::new(StepKind::Verdict, "", format!("refused, {refusal}")),
    });
    Explanation {
        snapshot: snapshot.version(),
        steps,
        carried: result.is_ok(),
        refusal: result.err(),
        by_waypoint: by_waypoint.get(),
    }
}

/// A workload by what people type: uid, `namespace/name`, name, or the name of its owner. The
/// smallest uid wins when several fit.
pub fn find_source<'a>(snapshot: &'a Snapshot, text: &str) -> Option<&'a Arc<Workload>> {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(ns, name)| (Some(ns), name));
    let fits = |w: &&Arc<Workload>| {
        *w.uid.0 == *text
            || (namespace.is_none_or(|ns| *w.namespace == *ns)
                && (*w.name == *name || *w.workload_name == *name))
    };
    let exact = |w: &&Arc<Workload>| *w.name != *name;
    snapshot.workloads().filter(fits).min_by_key(|w| (exact(w), w.uid.clone()))
}

/// An address for `host:port` as people type it: an address, a service's name (short, with
/// namespace, or full) or a workload's.
pub fn find_destination(snapshot: &Snapshot, source: &Workload, text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let ip = service_ip(snapshot, source, host)
        .or_else(|| find_source(snapshot, host).and_then(|w| w.addresses.first().copied()))?;
    Some(SocketAddr::new(ip, port))
}

fn service_ip(snapshot: &Snapshot, source: &Workload, host: &str) -> Option<IpAddr> {
    let short = |s: &&Arc<Service>| {
        let (ns, name) = (&s.key.namespace, &s.name);
        *s.key.hostname == *host
            || (**name == *host && *ns == source.namespace)
            || [format!("{name}.{ns}"), format!("{name}.{ns}.svc"), format!("{ns}/{name}")]
                .iter()
                .any(|n| n == host)
    };
    let service = snapshot.services().find(short)?;
    let own = service.vips.iter().find(|vip| vip.network == source.network).map(|vip| vip.range.addr());
    // Headless: DNS would answer with the endpoints.
    own.or_else(|| snapshot.endpoints(&service.key).first().and_then(|w| w.addresses.first().copied()))
}

fn walk(
    snapshot: &Snapshot,
    source: &Workload,
    destination: SocketAddr,
    route: ExplainRoute<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), Refusal> {
    let own = address_of(source, destination.is_ipv4())?;
    if source.tunnel == Tunnel::None {
        let detail = "is not enrolled: its traffic is not touched";
        steps.push(Step::new(StepKind::Kernel, format!("workload {}", source.uid), detail));
        return arrive(snapshot, source, own, destination, None, steps);
    }
    let facts = OutboundFacts { pod: PodRef::of(source), source: SocketAddr::new(own, 0), destination };
    let plan = outbound::plan_traced(snapshot, &facts, &mut SplitMix64::new(0), &NoLoad, steps)?;
    match plan.path {
        Path::Waypoint => behind_waypoint(snapshot, &plan, facts.source.ip(), destination, route, steps),
        _ => deliver(snapshot, &plan, own, steps),
    }
}

fn address_of(workload: &Workload, v4: bool) -> Result<IpAddr, Refusal> {
    let same = workload.addresses.iter().find(|ip| ip.is_ipv4() == v4);
    same.or(workload.addresses.first()).copied().ok_or_else(|| {
        Refusal::new(Reason::WorkloadUnknown, format!("workload {} has no address", workload.uid))
    })
}

/// The client's side of a direct plan, at its destination.
fn deliver(
    snapshot: &Snapshot,
    plan: &OutboundPlan,
    own: IpAddr,
    steps: &mut Vec<Step>,
) -> Result<(), Refusal> {
    match &plan.transport {
        Transport::Tunnel(tunnel) => match tunnel.authority {
            Authority::Address(target) => {
                arrive(snapshot, &plan.source, own, target, Some(&plan.source), steps)
            }
            Authority::Host(..) => Ok(()),
        },
        Transport::Plain(Hop::Address(target)) => arrive(snapshot, &plan.source, own, *target, None, steps),
        Transport::Plain(Hop::Name { .. }) => Ok(()),
    }
}

/// What the destination's agent says; nothing when the destination has none.
fn arrive(
    snapshot: &Snapshot,
    source: &Workload,
    from: IpAddr,
    target: SocketAddr,
    tunnel: Option<&Workload>,
    steps: &mut Vec<Step>,
) -> Result<(), Refusal> {
    let Some(workload) = snapshot.workload_at(&source.network, target.ip()) else { return Ok(()) };
    if workload.tunnel == Tunnel::None {
        let detail = "is not enrolled: nothing is checked there";
        steps.push(Step::new(StepKind::Admission, format!("workload {}", workload.uid), detail));
        return Ok(());
    }
    let (local, arrival) = match tunnel {
        None => (target, Arrival::Plaintext),
        Some(peer) => (
            SocketAddr::new(target.ip(), outbound::HBONE_PORT),
            Arrival::Hbone {
                identity: peer.identity(),
                authority: Authority::Address(target),
                forwarded_host: None,
                forwarded_network: None,
            },
        ),
    };
    let facts = InboundFacts { pod: PodRef::of(workload), local, peer: SocketAddr::new(from, 0), arrival };
    inbound::admit_traced(snapshot, &facts, steps).map(|_| ())
}

/// From a waypoint on: its route, then every endpoint that it may choose.
fn behind_waypoint(
    snapshot: &Snapshot,
    plan: &OutboundPlan,
    client: IpAddr,
    dialled: SocketAddr,
    route: ExplainRoute<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), Refusal> {
    let Some(waypoint) = &plan.destination else { return Ok(()) };
    let from = address_of(waypoint, dialled.is_ipv4())?;
    let Some(service) = &plan.service else {
        return arrive(snapshot, waypoint, from, dialled, Some(waypoint), steps);
    };
    let at = AtWaypoint { snapshot, waypoint, service, dialled, client: &plan.source, from: client };
    let endpoints = route(&at, steps)?;
    let mut last = Ok(());
    let mut carried = endpoints.is_empty();
    for endpoint in &endpoints {
        let uid = &endpoint.workload.uid;
        let Some(ip) = outbound::select_address(Some(service), &endpoint.workload, dialled.ip()) else {
            continue;
        };
        let detail =
            format!("port {}, one of {} that the waypoint may choose", endpoint.port, endpoints.len());
        steps.push(Step::new(StepKind::Endpoint, format!("workload {uid}"), detail));
        let peer = (endpoint.workload.tunnel == Tunnel::Hbone).then_some(&**waypoint);
        last = arrive(snapshot, waypoint, from, SocketAddr::new(ip, endpoint.port), peer, steps);
        carried |= last.is_ok();
    }
    if carried { Ok(()) } else { last }
}
