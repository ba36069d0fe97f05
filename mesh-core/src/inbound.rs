//! Whether a connection that arrives at a pod is carried to its application: admission.
//!
//! HBONE requests (15008) and plaintext (any port, through 15006) take the same way; plaintext has
//! no identity. Fails closed. Live flows repeat [`admit`] with the same facts when
//! [`Snapshot::policy_version`] moves.

mod admit;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    authz::Allowed,
    hbone::Authority,
    identity::Identity,
    model::{Service, Workload},
    outcome::Refusal,
    snapshot::{PodRef, Snapshot},
    trace::{Silent, Trace},
};

/// How a connection arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// A CONNECT request on an authenticated HBONE connection.
    Hbone {
        /// Identity of the TLS peer.
        identity: Identity,
        /// Target of the request.
        authority: Authority,
        /// `host=` of the `forwarded` header: which service the client says it meant (metrics only).
        forwarded_host: Option<Arc<str>>,
        /// `x-forwarded-network`: the client's network when a gateway is in between.
        forwarded_network: Option<Arc<str>>,
    },
    /// Plain TCP.
    Plaintext,
}

/// What is known of an arriving connection.
#[derive(Debug, Clone)]
pub struct InboundFacts {
    /// The pod that it arrived at.
    pub pod: Arc<PodRef>,
    /// The accepted socket's own address: `pod:15008` for HBONE, the original destination in plaintext.
    pub local: SocketAddr,
    /// The TCP peer.
    pub peer: SocketAddr,
    /// How it arrived.
    pub arrival: Arrival,
}

/// The PROXY v2 header that a workload wants in front of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyHeader {
    /// Source: the TCP peer.
    pub source: SocketAddr,
    /// Destination: what the client addressed.
    pub destination: SocketAddr,
    /// TLV 0xD0.
    pub identity: Option<Identity>,
}

/// Everything that carrying an admitted connection needs.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Version of the snapshot that it was made from.
    pub snapshot: u64,
    /// The destination.
    pub workload: Arc<Workload>,
    /// Where the application is dialled.
    pub dial: SocketAddr,
    /// The client's workload, by its address; none when it is unknown or behind a gateway.
    pub source: Option<Arc<Workload>>,
    /// The service meant, for metrics.
    pub service: Option<Arc<Service>>,
    /// Written before any byte.
    pub proxy_header: Option<ProxyHeader>,
    /// Which policy allows it.
    pub allowed: Allowed,
}

/// Decides whether a connection is carried to the application. Pure, total, fails closed.
/// [`crate::hbone::status`] maps refusals to the CONNECT response.
///
/// # Errors
/// A refusal: `WorkloadUnknown`, `IdentityMismatch`, `WrongDestination`, `IllegalPort`,
/// `UnknownDestination`, or one of [`crate::authz::check`].
pub fn admit(snapshot: &Snapshot, facts: &InboundFacts) -> Result<Admission, Refusal> {
    admit_traced(snapshot, facts, &mut Silent)
}

/// [`admit`], telling `trace` each step.
///
/// # Errors
/// As [`admit`].
pub fn admit_traced(
    snapshot: &Snapshot,
    facts: &InboundFacts,
    trace: &mut impl Trace,
) -> Result<Admission, Refusal> {
    admit::admit(snapshot, facts, trace)
}
