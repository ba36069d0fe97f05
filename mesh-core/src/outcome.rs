//! How a connection or request ended: closed sets, used as metric labels and log values.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Where in its life a flow failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before a decision: accepting, finding the original destination.
    Accept,
    /// Deciding.
    Plan,
    /// TCP connect, TLS handshake, HBONE CONNECT.
    Dial,
    /// Moving bytes.
    Relay,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $text:literal,)+) => {
        /// Why a flow was refused or ended early. `reason` in logs, metrics and `explain`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, for registering metrics and generating documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The label value.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $text,)+ }
            }

            /// One sentence for people.
            pub fn explanation(self) -> &'static str {
                match self { $(Reason::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

reasons! {
    /// An AuthorizationPolicy with action DENY matches the connection.
    PolicyDenied => "policy_denied",
    /// ALLOW policies apply to the destination and none of them matches.
    NoAllowMatched => "no_allow_matched",
    /// STRICT mutual TLS is required and the peer came in plaintext.
    MtlsRequired => "mtls_required",
    /// The workload names a policy that is not known yet or any more; unknown is denied.
    PolicyUnknown => "policy_unknown",
    /// The pod itself is not (yet) known to the control plane.
    WorkloadUnknown => "workload_unknown",
    /// Pod, address and network namespace do not belong together.
    IdentityMismatch => "identity_mismatch",
    /// The pod has no valid certificate.
    CertificateUnavailable => "certificate_unavailable",
    /// The peer's certificate is not valid for this mesh or not the expected identity.
    PeerIdentityRejected => "peer_identity_rejected",
    /// The original destination of a captured connection could not be found.
    NoOriginalDestination => "no_original_destination",
    /// The destination service has no healthy endpoint for that port.
    NoHealthyEndpoint => "no_healthy_endpoint",
    /// The waypoint that must be used is unknown or has no healthy endpoint; never bypassed.
    WaypointUnavailable => "waypoint_unavailable",
    /// Traffic that must come through a waypoint came directly.
    WaypointBypassed => "waypoint_bypassed",
    /// The destination is in another network and no gateway to it is known.
    GatewayUnavailable => "gateway_unavailable",
    /// The connection is addressed to one of the mesh's own ports.
    IllegalPort => "illegal_port",
    /// The HBONE request is malformed.
    BadRequest => "bad_request",
    /// The HBONE authority is not an address or service of this workload.
    WrongDestination => "wrong_destination",
    /// The upstream could not be connected within the time limit.
    ConnectTimeout => "connect_timeout",
    /// The upstream refused or reset the connection attempt.
    ConnectFailed => "connect_failed",
    /// The TLS handshake with the peer failed.
    TlsFailed => "tls_failed",
    /// The HBONE peer answered CONNECT with an error status.
    TunnelRefused => "tunnel_refused",
    /// The HTTP/2 session of a tunnel broke.
    TunnelBroken => "tunnel_broken",
    /// The client reset or vanished while bytes were moving.
    ClientReset => "client_reset",
    /// The upstream reset or vanished while bytes were moving.
    UpstreamReset => "upstream_reset",
    /// A policy change no longer allows a connection that was open.
    PolicyChanged => "policy_changed",
    /// The pod left the mesh or was deleted.
    PodGone => "pod_gone",
    /// The drain deadline passed.
    DrainDeadline => "drain_deadline",
    /// A configured limit (connections, pending requests, memory) was reached.
    LimitReached => "limit_reached",
    /// No route matches the request.
    NoRoute => "no_route",
    /// The route names a destination or subset that does not exist.
    UnknownDestination => "unknown_destination",
    /// The route's timeout passed.
    RouteTimeout => "route_timeout",
    /// An abort was injected by configuration.
    FaultInjected => "fault_injected",
    /// Our own error; a bug or an exhausted resource.
    Internal => "internal",
}

impl Reason {
    /// How long a new connection is held before it is refused for this reason, because what is missing
    /// normally follows within milliseconds; none when waiting cannot help. A policy's hold also bounds
    /// how long an open connection goes on without it.
    pub fn hold(self) -> Option<Duration> {
        match self {
            Self::WorkloadUnknown => Some(Duration::from_secs(5)),
            Self::PolicyUnknown => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The way that a flow's bytes took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// HBONE to the destination's node.
    Tunnel,
    /// HBONE to a waypoint.
    Waypoint,
    /// Plain TCP to a destination without a mesh identity.
    Passthrough,
    /// Untouched by user space.
    Bypass,
    /// Same node, admitted in the kernel.
    Direct,
    /// Arrived in plaintext.
    Plaintext,
}

impl Path {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Waypoint => "waypoint",
            Self::Passthrough => "passthrough",
            Self::Bypass => "bypass",
            Self::Direct => "direct",
            Self::Plaintext => "plaintext",
        }
    }
}

/// A decision not to carry a flow, with the object behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The object that decided and what it compared, for logs and `explain`.
    pub detail: String,
}

impl Refusal {
    /// Builds a refusal.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
