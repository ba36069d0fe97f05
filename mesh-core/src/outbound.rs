//! Where a captured connection goes: the outbound plan of the agent (Istio ambient's rules).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    balance::{self, Entropy, Load},
    identity::Identity,
    model::{
        GatewayAddress, GatewayDestination, LoadBalancingMode, Service, ServiceName, Tunnel, Workload,
        WorkloadUid,
    },
    outcome::{Path, Reason, Refusal},
    snapshot::Snapshot,
};

/// HBONE's port.
pub const HBONE_PORT: u16 = 15008;

/// What the agent knows when a captured connection arrives.
#[derive(Debug, Clone)]
pub struct OutboundFacts<'a> {
    /// The pod that dialled.
    pub pod: &'a WorkloadUid,
    /// Its address and port.
    pub client: SocketAddr,
    /// What it asked for.
    pub destination: SocketAddr,
}

/// What to open. Carries everything that I/O, logs and metrics need; nothing is looked up again.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboundPlan {
    /// Identity of the client pod.
    pub source: Arc<Workload>,
    /// The workload that the bytes go to next (endpoint or waypoint); none when it is unknown.
    pub upstream: Option<Arc<Workload>>,
    /// The service that the client meant.
    pub service: Option<ServiceName>,
    /// How.
    pub transport: Transport,
    /// Way for logs and metrics.
    pub path: Path,
}

/// How the next hop is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A CONNECT stream over mutual TLS.
    Hbone {
        /// Peer, normally port 15008.
        peer: SocketAddr,
        /// `:authority` of the CONNECT.
        authority: SocketAddr,
        /// Identities of which the peer must present one.
        expected: Vec<Identity>,
    },
    /// Plain TCP.
    Tcp {
        /// Peer.
        peer: SocketAddr,
    },
}

/// Plans a captured connection. Fails closed: an unresolvable waypoint or an unknown source is a
/// refusal, never a direct connection.
pub fn plan(
    snapshot: &Snapshot,
    facts: &OutboundFacts<'_>,
    entropy: &mut dyn Entropy,
    load: &dyn Load,
) -> Result<OutboundPlan, Refusal> {
    let source = source(snapshot, facts)?;
    let destination = facts.destination;
    if destination.ip().is_loopback() && is_own_port(destination.port()) {
        return Err(Refusal::new(
            Reason::IllegalPort,
            format!("{destination} is one of the mesh's own ports"),
        ));
    }
    // Classification looks for a workload first, selection for a service first (proto 5.1).
    let addressed_workload = snapshot.workload_at(&source.network, destination.ip());
    let service = match addressed_workload {
        Some(_) => None,
        None => snapshot.service_at(&source.network, destination.ip(), &source.namespace),
    };
    if let Some(service) = service {
        if let Some(waypoint) = service_waypoint(service, entropy) {
            return through_waypoint(snapshot, &source, destination, waypoint, Some(service), entropy, load);
        }
        return to_service(snapshot, &source, destination, service, entropy, load);
    }
    let Some(workload) = addressed_workload else { return Ok(passthrough(&source, None, destination)) };
    if let Some(waypoint) = &workload.waypoint
        && !is_backed_by(snapshot, waypoint, &source)
    {
        return through_waypoint(snapshot, &source, destination, waypoint, None, entropy, load);
    }
    Ok(direct(&source, workload, destination, destination.port(), None))
}

/// The mesh's own ports, never a destination.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, 15001 | 15006 | HBONE_PORT)
}

fn source(snapshot: &Snapshot, facts: &OutboundFacts<'_>) -> Result<Arc<Workload>, Refusal> {
    let workload = snapshot.workload(facts.pod).ok_or_else(|| {
        Refusal::new(Reason::WorkloadUnknown, format!("pod {} is not known to the control plane", facts.pod))
    })?;
    if !workload.addresses.contains(&facts.client.ip()) {
        let detail = format!("{} is not an address of {}", facts.client.ip(), facts.pod);
        return Err(Refusal::new(Reason::IdentityMismatch, detail));
    }
    Ok(workload.clone())
}

fn service_waypoint<'a>(service: &'a Service, entropy: &mut dyn Entropy) -> Option<&'a GatewayAddress> {
    let total: u64 = service.weighted_waypoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut ticket = entropy.below(total);
    for (waypoint, weight) in &service.weighted_waypoints {
        if ticket < u64::from(*weight) {
            return Some(waypoint);
        }
        ticket -= u64::from(*weight);
    }
    service.waypoint.as_ref()
}

fn passthrough(source: &Arc<Workload>, service: Option<&Service>, destination: SocketAddr) -> OutboundPlan {
    OutboundPlan {
        source: source.clone(),
        upstream: None,
        service: service.map(|s| s.key.clone()),
        transport: Transport::Tcp { peer: destination },
        path: Path::Passthrough,
    }
}

fn to_service(
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    destination: SocketAddr,
    service: &Service,
    entropy: &mut dyn Entropy,
    load: &dyn Load,
) -> Result<OutboundPlan, Refusal> {
    if service.load_balancing.mode == LoadBalancingMode::Passthrough {
        return Ok(passthrough(source, Some(service), destination));
    }
    let candidates = balance::eligible(snapshot, source, service, destination.port());
    let endpoint = balance::choose(&candidates, entropy, load).ok_or_else(|| {
        let detail = format!("no healthy upstream: {} port {}", service.key, destination.port());
        Refusal::new(Reason::NoHealthyEndpoint, detail)
    })?;
    if endpoint.workload.network != source.network {
        let detail = format!("{} is in network {:?}", endpoint.workload.uid, endpoint.workload.network);
        return Err(Refusal::new(Reason::GatewayUnavailable, detail));
    }
    Ok(direct(source, &endpoint.workload, destination, endpoint.port, Some(service)))
}

/// Straight to a workload: HBONE when it speaks it, plain TCP when it is not in the mesh.
fn direct(
    source: &Arc<Workload>,
    workload: &Arc<Workload>,
    dialled: SocketAddr,
    port: u16,
    service: Option<&Service>,
) -> OutboundPlan {
    let families = service.map(|s| s.ip_families).unwrap_or_default();
    let ip = balance::address_of(workload, dialled.ip(), families).unwrap_or(dialled.ip());
    let target = SocketAddr::new(ip, port);
    let (transport, path) = match workload.tunnel {
        Tunnel::Hbone => {
            let peer = SocketAddr::new(ip, HBONE_PORT);
            (
                Transport::Hbone { peer, authority: target, expected: expected(workload, service) },
                Path::Tunnel,
            )
        }
        Tunnel::None => (Transport::Tcp { peer: target }, Path::Passthrough),
    };
    OutboundPlan {
        source: source.clone(),
        upstream: Some(workload.clone()),
        service: service.map(|s| s.key.clone()),
        transport,
        path,
    }
}

fn expected(workload: &Workload, service: Option<&Service>) -> Vec<Identity> {
    let mut identities = vec![workload.identity()];
    for extra in service.into_iter().flat_map(|s| &s.subject_alt_names) {
        if !identities.contains(extra) {
            identities.push(extra.clone());
        }
    }
    identities
}

fn through_waypoint(
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    destination: SocketAddr,
    waypoint: &GatewayAddress,
    service: Option<&Service>,
    entropy: &mut dyn Entropy,
    load: &dyn Load,
) -> Result<OutboundPlan, Refusal> {
    let (instance, gateway, port) = resolve_waypoint(snapshot, source, waypoint, entropy, load)?;
    let family = match &waypoint.destination {
        GatewayDestination::Hostname(_) => destination.ip(),
        GatewayDestination::Address(a) => a.address,
    };
    let ip =
        balance::address_of(&instance, family, Default::default()).ok_or_else(|| unavailable(waypoint))?;
    Ok(OutboundPlan {
        source: source.clone(),
        service: service.map(|s| s.key.clone()),
        transport: Transport::Hbone {
            peer: SocketAddr::new(ip, port),
            authority: destination,
            expected: expected(&instance, gateway),
        },
        upstream: Some(instance),
        path: Path::Waypoint,
    })
}

fn unavailable(waypoint: &GatewayAddress) -> Refusal {
    let name = match &waypoint.destination {
        GatewayDestination::Hostname(name) => name.to_string(),
        GatewayDestination::Address(a) => a.address.to_string(),
    };
    Refusal::new(Reason::WaypointUnavailable, format!("unknown waypoint: {name} has no usable instance"))
}

fn resolve_waypoint<'a>(
    snapshot: &'a Snapshot,
    source: &Workload,
    waypoint: &GatewayAddress,
    entropy: &mut dyn Entropy,
    load: &dyn Load,
) -> Result<(Arc<Workload>, Option<&'a Service>, u16), Refusal> {
    let service = match &waypoint.destination {
        GatewayDestination::Hostname(name) => snapshot.service(name),
        GatewayDestination::Address(a) => snapshot.service_at(&a.network, a.address, &source.namespace),
    };
    if let Some(service) = service {
        let candidates = balance::eligible(snapshot, source, service, waypoint.hbone_port);
        let endpoint = balance::choose(&candidates, entropy, load).ok_or_else(|| unavailable(waypoint))?;
        return Ok((endpoint.workload, Some(service), endpoint.port));
    }
    let workload = match &waypoint.destination {
        GatewayDestination::Address(a) => snapshot.workload_at(&a.network, a.address),
        GatewayDestination::Hostname(_) => None,
    };
    workload.map(|w| (w.clone(), None, waypoint.hbone_port)).ok_or_else(|| unavailable(waypoint))
}

/// Whether `workload` is an instance of that waypoint (identity and address are those of the snapshot).
pub fn is_backed_by(snapshot: &Snapshot, waypoint: &GatewayAddress, workload: &Workload) -> bool {
    match &waypoint.destination {
        GatewayDestination::Hostname(name) => workload.services.contains_key(name),
        GatewayDestination::Address(a) => {
            workload.addresses.contains(&a.address)
                || snapshot
                    .service_at(&a.network, a.address, &workload.namespace)
                    .is_some_and(|service| workload.services.contains_key(&service.key))
        }
    }
}

/// Whether an address belongs to the mesh: what is outside may bypass user space.
pub fn in_mesh(snapshot: &Snapshot, network: &str, address: IpAddr, namespace: &str) -> bool {
    snapshot.workload_at(network, address).is_some()
        || snapshot.service_at(network, address, namespace).is_some()
}

#[cfg(test)]
mod tests;
