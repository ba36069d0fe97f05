//! Whether a connection that arrives for a pod is admitted, and where it is delivered.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::{
    authz::{self, Attributes},
    identity::Identity,
    model::{ServiceName, Workload, WorkloadUid},
    outbound::{is_backed_by, is_own_port},
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
};

/// What the sender asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// An address.
    Address(SocketAddr),
    /// A host name and a service port.
    Host(String, u16),
}

impl Authority {
    /// Parses `ip:port` (IPv6 bracketed) or `host:port`; the port is mandatory.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self::Address(SocketAddr::new(address.ip().to_canonical(), address.port())));
        }
        let (host, port) = text.rsplit_once(':')?;
        let valid = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*'));
        valid.then(|| port.parse().ok().map(|port| Self::Host(host.to_string(), port))).flatten()
    }
}

/// What the agent knows when a connection arrives.
#[derive(Debug, Clone)]
pub struct InboundFacts {
    /// The pod that it arrived at.
    pub pod: WorkloadUid,
    /// The pod's own address on which it arrived.
    pub local: IpAddr,
    /// TCP peer.
    pub client: SocketAddr,
    /// The peer's identity; none for plaintext.
    pub peer: Option<Identity>,
    /// What it asks for.
    pub authority: Authority,
    /// Service host of the `forwarded` header, for metrics.
    pub forwarded_host: Option<String>,
}

/// An admitted connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// The pod's workload.
    pub workload: Arc<Workload>,
    /// The client's workload, by its address; only for logs and metrics.
    pub source: Option<Arc<Workload>>,
    /// Where the application is dialled.
    pub dial: SocketAddr,
    /// Service that was meant, for metrics.
    pub service: Option<ServiceName>,
}

/// Decides an inbound connection. Fails closed.
pub fn admit(snapshot: &Snapshot, facts: &InboundFacts) -> Result<Admission, Refusal> {
    let workload = snapshot.workload(&facts.pod).ok_or_else(|| {
        Refusal::new(Reason::WorkloadUnknown, format!("pod {} is not known to the control plane", facts.pod))
    })?;
    if !workload.addresses.contains(&facts.local) {
        let detail = format!("{} is not an address of {}", facts.local, facts.pod);
        return Err(Refusal::new(Reason::IdentityMismatch, detail));
    }
    let mut port = requested_port(snapshot, workload, facts)?;
    if is_own_port(port) {
        return Err(Refusal::new(Reason::IllegalPort, format!("port {port} is one of the mesh's own")));
    }
    if let Some(override_port) = workload.application_tunnel.and_then(|tunnel| tunnel.port) {
        port = override_port;
    }
    let attributes =
        Attributes { peer: facts.peer.as_ref(), source: facts.client.ip(), destination: facts.local, port };
    authz::authorize(snapshot, workload, &attributes)?;
    Ok(Admission {
        workload: workload.clone(),
        source: snapshot.workload_at(&workload.network, facts.client.ip()).cloned(),
        dial: SocketAddr::new(facts.local, port),
        service: service_for_metrics(workload, port, facts.forwarded_host.as_deref()),
    })
}

fn requested_port(snapshot: &Snapshot, workload: &Workload, facts: &InboundFacts) -> Result<u16, Refusal> {
    match &facts.authority {
        Authority::Address(address) => {
            let ip = address.ip();
            let own = workload.addresses.contains(&ip);
            if own || workload.application_tunnel.is_some() || is_waypoint_for(snapshot, workload, ip) {
                return Ok(address.port());
            }
            let detail = format!("ip mismatch: {ip} != {}", facts.local);
            Err(Refusal::new(Reason::WrongDestination, detail))
        }
        Authority::Host(host, port) => {
            let service = snapshot.service_named(host, &workload.namespace).ok_or_else(|| {
                Refusal::new(
                    Reason::UnknownDestination,
                    format!("no service or workload for hostname: {host}"),
                )
            })?;
            crate::balance::target_port(service, workload, *port).ok_or_else(|| {
                let detail = format!("requested service {host}:{port} found, but cannot resolve port");
                Refusal::new(Reason::UnknownDestination, detail)
            })
        }
    }
}

/// A sandwiched gateway accepts traffic for what it is the waypoint of.
fn is_waypoint_for(snapshot: &Snapshot, workload: &Workload, ip: IpAddr) -> bool {
    let waypoint = match snapshot.workload_at(&workload.network, ip) {
        Some(target) => target.waypoint.as_ref(),
        None => snapshot
            .service_at(&workload.network, ip, &workload.namespace)
            .and_then(|service| service.waypoint.as_ref()),
    };
    waypoint.is_some_and(|waypoint| is_backed_by(snapshot, waypoint, workload))
}

fn service_for_metrics(workload: &Workload, port: u16, forwarded: Option<&str>) -> Option<ServiceName> {
    if let Some(host) = forwarded
        && let Some(name) = workload.services.keys().find(|name| *name.hostname == *host)
    {
        return Some(name.clone());
    }
    workload
        .services
        .iter()
        .find(|(_, ports)| ports.iter().any(|mapping| mapping.target_port == port))
        .map(|(name, _)| name.clone())
}

/// The HTTP status that answers a refused CONNECT (what ztunnel and Envoy expect).
pub fn status_of(reason: Reason) -> u16 {
    match reason {
        Reason::PolicyDenied
        | Reason::NoAllowMatched
        | Reason::MtlsRequired
        | Reason::PolicyUnknown
        | Reason::WaypointBypassed => 401,
        Reason::BadRequest | Reason::WrongDestination => 400,
        _ => 503,
    }
}

#[cfg(test)]
mod tests;
