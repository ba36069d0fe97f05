//! The steps of admission.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Admission, Arrival, InboundFacts, ProxyHeader};
use crate::{
    authz::{self, L4Facts},
    balance::{Purpose, target_port},
    hbone::Authority,
    identity::Identity,
    model::{Service, Workload},
    outbound::MESH_PORTS,
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
    trace::{Step, StepKind, Trace},
};

pub(super) fn admit(
    snapshot: &Snapshot,
    facts: &InboundFacts,
    trace: &mut impl Trace,
) -> Result<Admission, Refusal> {
    let pod_ip = facts.local.ip().to_canonical();
    let workload = snapshot.pod(&facts.pod, pod_ip)?;
    let (port, proxy) = match &facts.arrival {
        Arrival::Plaintext => (facts.local.port(), None),
        Arrival::Hbone { authority, identity, .. } => {
            validate(snapshot, workload, pod_ip, authority)?;
            hbone_port(snapshot, workload, authority, facts, identity)?
        }
    };
    if MESH_PORTS.contains(&port) {
        return Err(Refusal::new(Reason::IllegalPort, format!("port {port} belongs to the mesh itself")));
    }
    let dial = SocketAddr::new(pod_ip, port);
    trace.step(|| {
        let how = match &facts.arrival {
            Arrival::Plaintext => "in plaintext".to_owned(),
            Arrival::Hbone { identity, .. } => format!("over HBONE from {identity}"),
        };
        Step::new(
            StepKind::Admission,
            format!("workload {}", workload.uid),
            format!("{how}, to its port {port}"),
        )
    });
    let l4 = L4Facts {
        identity: identity(facts).cloned(),
        source_ip: facts.peer.ip().to_canonical(),
        destination_ip: pod_ip,
        destination_port: port,
    };
    let allowed = authz::check_traced(snapshot, workload, &l4, trace)?;
    Ok(Admission {
        snapshot: snapshot.version(),
        workload: workload.clone(),
        dial,
        source: source(snapshot, facts),
        service: service(snapshot, workload, facts, port),
        proxy_header: proxy,
        allowed,
    })
}

fn identity(facts: &InboundFacts) -> Option<&Identity> {
    match &facts.arrival {
        Arrival::Hbone { identity, .. } => Some(identity),
        Arrival::Plaintext => None,
    }
}

/// Whether this pod may terminate a request for `authority`: its own address, any host name (looked
/// up next), or, for a gateway behind us, an address whose waypoint it is.
fn validate(
    snapshot: &Snapshot,
    workload: &Workload,
    pod_ip: IpAddr,
    authority: &Authority,
) -> Result<(), Refusal> {
    let Authority::Address(target) = authority else { return Ok(()) };
    let ours = target.ip() == pod_ip
        || workload.application_tunnel.is_some()
        || serves_as_waypoint(snapshot, workload, target.ip());
    match ours {
        true => Ok(()),
        false => {
            let detail = format!("{target} is neither an address of workload {} nor behind it", workload.uid);
            Err(Refusal::new(Reason::WrongDestination, detail))
        }
    }
}

fn serves_as_waypoint(snapshot: &Snapshot, workload: &Workload, target: IpAddr) -> bool {
    let by_workload = snapshot.workload_at(&workload.network, target).and_then(|w| w.waypoint.as_ref());
    let service = snapshot.service_at(&workload.network, target, &workload.namespace);
    let weighted = service.into_iter().flat_map(|s| s.weighted_waypoints.iter().map(|(gateway, _)| gateway));
    let single = service.and_then(|s| s.waypoint.as_ref());
    by_workload.into_iter().chain(single).chain(weighted).any(|g| snapshot.is_gateway_instance(g, workload))
}

/// The application's port for a request, and the PROXY header if it wants one.
fn hbone_port(
    snapshot: &Snapshot,
    workload: &Workload,
    authority: &Authority,
    facts: &InboundFacts,
    identity: &Identity,
) -> Result<(u16, Option<ProxyHeader>), Refusal> {
    let (asked, addressed) = match authority {
        Authority::Address(target) => (target.port(), *target),
        Authority::Host(host, port) => named_port(snapshot, workload, host, *port, facts.local.ip())?,
    };
    if MESH_PORTS.contains(&asked) {
        return Err(Refusal::new(Reason::IllegalPort, format!("port {asked} belongs to the mesh itself")));
    }
    let Some(tunnel) = workload.application_tunnel else { return Ok((asked, None)) };
    let header = tunnel.proxy_protocol.then(|| ProxyHeader {
        source: facts.peer,
        destination: addressed,
        identity: Some(identity.clone()),
    });
    Ok((tunnel.port.unwrap_or(asked), header))
}

/// A host name authority: the service's port as this workload serves it, and the address that a
/// PROXY header shows for it (a virtual address of the service, else the pod's own).
fn named_port(
    snapshot: &Snapshot,
    workload: &Workload,
    host: &str,
    port: u16,
    pod_ip: IpAddr,
) -> Result<(u16, SocketAddr), Refusal> {
    let refuse =
        |why: &str| Refusal::new(Reason::UnknownDestination, format!("{host}:{port} {why} {}", workload.uid));
    let service = snapshot
        .service_by_host(host, &workload.namespace)
        .ok_or_else(|| refuse("is not a service known to workload"))?;
    // A workload that does not back the service must not answer for it.
    if !workload.services.contains_key(&service.key) {
        return Err(refuse("is not backed by workload"));
    }
    let target = target_port(service, workload, port, Purpose::Destination)
        .ok_or_else(|| refuse("has no such port on workload"))?;
    let own_network = |vip: &&crate::model::Vip| vip.network == workload.network;
    let vip = service.vips.iter().find(own_network).or(service.vips.first());
    let shown = vip.map_or(pod_ip, |vip| vip.range.addr());
    Ok((target, SocketAddr::new(shown, port)))
}

fn source(snapshot: &Snapshot, facts: &InboundFacts) -> Option<Arc<Workload>> {
    let behind_gateway = matches!(&facts.arrival, Arrival::Hbone { forwarded_network: Some(network), .. }
        if !network.eq_ignore_ascii_case(&facts.pod.network));
    match behind_gateway {
        true => None,
        false => snapshot.workload_at(&facts.pod.network, facts.peer.ip()).cloned(),
    }
}

/// The service that a connection is counted for: the one the client named if the workload backs it,
/// else the first that it serves on this port.
fn service(
    snapshot: &Snapshot,
    workload: &Workload,
    facts: &InboundFacts,
    port: u16,
) -> Option<Arc<Service>> {
    let named = match &facts.arrival {
        Arrival::Hbone { forwarded_host: Some(host), .. } => {
            workload.services.keys().find(|name| *name.hostname == **host)
        }
        _ => None,
    };
    let backed = || workload.services.keys().filter_map(|name| snapshot.service(name));
    let on_port = |s: &&Arc<Service>| {
        let own = workload.services.get(&s.key).into_iter().flatten();
        s.ports.iter().chain(own).any(|p| p.target_port == port)
    };
    named.and_then(|name| snapshot.service(name)).or_else(|| backed().find(on_port)).cloned()
}
