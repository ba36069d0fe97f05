//! What the kernel reports: one event per closed connection, and counters per site.

use crate::addr::IpKey;

/// An application's connection that was captured.
pub const LEG_CAPTURED: u32 = 1;
/// An application's connection that left untouched, destination proven outside the mesh.
pub const LEG_BYPASS: u32 = 2;
/// A connection that the agent opened in the pod's namespace.
pub const LEG_AGENT: u32 = 3;
/// A connection that was accepted in the pod's namespace.
pub const LEG_ACCEPTED: u32 = 4;

abi_type! {
    /// A closed connection of an enrolled pod.
    pub struct FlowEvent, 80 bytes {
        /// The pod's network namespace cookie.
        0: pub netns: u64,
        /// Bytes that the peer acknowledged.
        8: pub bytes_sent: u64,
        /// Bytes received.
        16: pub bytes_received: u64,
        /// Local address.
        24: pub local: IpKey,
        /// Remote address; of a captured connection the one that the application asked for, because its
        /// socket's own is the pod itself.
        40: pub remote: IpKey,
        /// Local port, host order.
        56: pub local_port: u16,
        /// Remote port, host order; as `remote`.
        58: pub remote_port: u16,
        /// Smoothed round-trip time, µs.
        60: pub srtt_us: u32,
        /// Segments retransmitted.
        64: pub retransmits: u32,
        /// Time to connect, µs; 0 for accepted connections.
        68: pub connect_us: u32,
        /// One of the `LEG_` constants.
        72: pub leg: u32,
        /// Zero.
        76: pub pad: u32,
    }
}

macro_rules! sites {
    ($($(#[$doc:meta])* $name:ident = $index:literal => $label:literal,)+) => {
        $($(#[$doc])* pub const $name: u32 = $index;)+
        /// Labels of the counters, by index.
        pub const SITES: &[&str] = &[$($label,)+];
    };
}

sites! {
    /// Connections captured.
    COUNT_CAPTURED = 0 => "captured",
    /// Connections that bypassed the agent.
    COUNT_BYPASS = 1 => "bypass",
    /// Connections that the pod opened while it was blocked: refused, or kept waiting by a bound listener.
    COUNT_BLOCKED = 2 => "blocked",
    /// Connections refused because `ORIG` was full.
    COUNT_ORIG_FULL = 3 => "orig_full",
    /// Connections refused because the pod has no address of that family.
    COUNT_NO_FAMILY = 4 => "no_family",
    /// Captured connections whose destination could not be recorded (`FLOW_DST` full); the agent refuses them.
    COUNT_FLOW_DST_FULL = 5 => "flow_dst_full",
    /// Probes that could not be recorded; they are treated as ordinary inbound traffic.
    COUNT_PROBES_FULL = 6 => "probes_full",
    /// Inbound connections given to the agent.
    COUNT_INBOUND = 7 => "inbound",
    /// Inbound connections dropped: blocked pod or no listener.
    COUNT_INBOUND_DROPPED = 8 => "inbound_dropped",
    /// Inbound connections of the node itself, passed to the application.
    COUNT_PROBE = 9 => "probe",
    /// Flow events that the ring buffer had no room for.
    COUNT_EVENT_LOST = 10 => "event_lost",
    /// Connections without statistics, because `SOCKS` was full.
    COUNT_SOCKS_FULL = 11 => "socks_full",
}

/// Entries of the counter map.
pub const SITE_COUNT: u32 = SITES.len() as u32;
