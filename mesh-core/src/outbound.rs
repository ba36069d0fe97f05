//! What to do with a connection that a pod opens: the outbound plan.
//!
//! Follows ztunnel step by step (classification, service waypoint, upstream, workload waypoint,
//! tunnel or plain TCP). Fails closed: an unresolvable waypoint, a service without endpoint or a
//! pod that does not match its workload is refused; only addresses that are neither a service nor a
//! workload pass through in plaintext. Tunnels to other networks are refused for now.

mod plan;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    balance::LoadView,
    entropy::Entropy,
    hbone::Authority,
    identity::Identity,
    model::{Service, Workload, WorkloadUid},
    outcome::{Path, Refusal},
    snapshot::{PodRef, Snapshot},
    trace::{Silent, Trace},
};

/// The port of HBONE.
pub const HBONE_PORT: u16 = 15008;
/// Ports of the mesh itself inside a pod: outbound, inbound plaintext, HBONE.
pub const MESH_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// What is known of a captured connection.
#[derive(Debug, Clone)]
pub struct OutboundFacts {
    /// The pod that opened it.
    pub pod: Arc<PodRef>,
    /// Its own end: one of the pod's addresses.
    pub source: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hop {
    /// An address.
    Address(SocketAddr),
    /// A name to resolve first, preferring the family that the client dialled.
    Name {
        /// Host name.
        host: Arc<str>,
        /// Port.
        port: u16,
        /// Whether IPv4 is preferred.
        prefer_v4: bool,
    },
}

/// An HBONE tunnel to open or to reuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPlan {
    /// Where the TLS connection goes.
    pub hop: Hop,
    /// `:authority` of the CONNECT request; with a named hop the host name stands for the address.
    pub authority: Authority,
    /// Identities of which the peer must present one; never empty.
    pub expected: Vec<Identity>,
    /// Who terminates it: with the hop's port and the source it is the pool's key, so that an
    /// address that changes hands never reuses a tunnel.
    pub peer: WorkloadUid,
}

/// How the bytes travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Over HBONE.
    Tunnel(TunnelPlan),
    /// Plain TCP.
    Plain(Hop),
}

/// Everything that carrying the connection needs; no second look at the snapshot.
#[derive(Debug, Clone)]
pub struct OutboundPlan {
    /// Version of the snapshot that it was made from.
    pub snapshot: u64,
    /// The client's workload.
    pub source: Arc<Workload>,
    /// How the bytes travel.
    pub transport: Transport,
    /// Tunnel, waypoint or passthrough: for metrics and logs.
    pub path: Path,
    /// The workload at the other end (a waypoint instance when `path` is waypoint).
    pub destination: Option<Arc<Workload>>,
    /// The service that the client addressed.
    pub service: Option<Arc<Service>>,
}

impl OutboundPlan {
    /// The identity to present: the client's own.
    pub fn source_identity(&self) -> Identity {
        self.source.identity()
    }

    /// The `forwarded` host: the service that the client addressed.
    pub fn service_host(&self) -> Option<&str> {
        self.service.as_deref().map(|s| &*s.key.hostname)
    }
}

/// Decides what to do with a captured connection. Pure, total, fails closed.
///
/// # Errors
/// A refusal: `WorkloadUnknown` (callers may hold the connection a moment), `IdentityMismatch`,
/// `IllegalPort`, `WaypointUnavailable`, `NoHealthyEndpoint`, `GatewayUnavailable`.
pub fn plan(
    snapshot: &Snapshot,
    facts: &OutboundFacts,
    entropy: &mut impl Entropy,
    load: &impl LoadView,
) -> Result<OutboundPlan, Refusal> {
    plan_traced(snapshot, facts, entropy, load, &mut Silent)
}

/// [`plan`], telling `trace` each step: the same code behind `culvert explain`.
///
/// # Errors
/// As [`plan`].
pub fn plan_traced(
    snapshot: &Snapshot,
    facts: &OutboundFacts,
    entropy: &mut impl Entropy,
    load: &impl LoadView,
    trace: &mut impl Trace,
) -> Result<OutboundPlan, Refusal> {
    plan::Planner { snapshot, facts, entropy, load, trace }.plan()
}

/// The address of `workload` to dial for a client that dialled `dialled`: the dialled address if it
/// is the workload's, else the first of the same family that `service` allows, else the first that
/// it allows.
pub fn select_address(service: Option<&Service>, workload: &Workload, dialled: IpAddr) -> Option<IpAddr> {
    plan::select_address(service, workload, dialled)
}
