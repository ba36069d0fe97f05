//! Keys and values of the maps, their names and default capacities.

use crate::addr::IpKey;

/// New connections are refused: the pod is not ready.
pub const STATE_BLOCKED: u32 = 1;
/// New connections are captured.
pub const STATE_ACTIVE: u32 = 2;

/// Names of the maps as the kernel shows them (at most 15 bytes), with their default capacity.
pub const MAPS: &[(&str, u32)] = &[
    ("PODS", 1024),
    ("POD_IPS", 4096),
    ("MESH", 262_144),
    ("ORIG", 131_072),
    ("FLOW_DST", 131_072),
    ("OWN", 131_072),
    ("PROBES", 16_384),
    ("SOCKS", 131_072),
    ("LISTENERS", 2048),
];

/// `PODS`: network namespace cookie → this.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodEntry {
    /// IPv4 address, mapped; unspecified when the pod has none.
    pub v4: IpKey,
    /// IPv6 address; unspecified when the pod has none.
    pub v6: IpKey,
    /// [`STATE_BLOCKED`] or [`STATE_ACTIVE`]; anything else counts as blocked.
    pub state: u32,
    /// Snapshot version that the entry came from.
    pub epoch: u32,
}

const _: () = assert!(size_of::<PodEntry>() == 40 && core::mem::offset_of!(PodEntry, state) == 32);

/// A destination: `ORIG` by socket cookie and `FLOW_DST` by [`FlowKey`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Address.
    pub addr: IpKey,
    /// Host order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<Destination>() == 20);

/// `FLOW_DST`: a captured connection as the agent sees it on accept.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The pod's network namespace cookie.
    pub netns: u64,
    /// The client socket's own address.
    pub addr: IpKey,
    /// The client socket's own port, host order.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 32);

/// `PROBES`: a connection from the node's own namespace to a pod.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProbeKey {
    /// Source address.
    pub src: IpKey,
    /// Destination address.
    pub dst: IpKey,
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
}

const _: () = assert!(size_of::<ProbeKey>() == 36);

/// Listener that takes HBONE.
pub const LISTENER_HBONE: u32 = 1;
/// Listener that takes everything else from outside.
pub const LISTENER_PLAINTEXT: u32 = 2;

/// `LISTENERS`: which socket of a pod takes inbound connections.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The pod's network namespace cookie.
    pub netns: u64,
    /// [`LISTENER_HBONE`] or [`LISTENER_PLAINTEXT`].
    pub kind: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<ListenerKey>() == 16);

/// `CONFIG[0]`: switches of the node.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeConfig {
    /// Cookie of the node's own network namespace; 0 turns the probe exception off.
    pub host_netns: u64,
    /// 1 when `MESH` holds every pod and service range, so that a miss proves "outside".
    pub ranges_complete: u32,
    /// Snapshot version of `MESH`.
    pub epoch: u32,
}

const _: () = assert!(size_of::<NodeConfig>() == 16);

/// `SOCKS`: what is remembered of a socket for its statistics.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SockState {
    /// When the connect started, ns since boot.
    pub start_ns: u64,
    /// How long the connect took, µs; 0 while it is under way.
    pub connect_us: u32,
    /// One of the `LEG_` constants.
    pub leg: u32,
}

const _: () = assert!(size_of::<SockState>() == 16);

#[cfg(feature = "user")]
mod user {
    //! SAFETY of this module: the types are `repr(C)`, hold integers and byte arrays only, have no
    //! implicit padding (sizes asserted above), and are valid for every bit pattern.
    #![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, in the module's comment")]

    use super::*;

    unsafe impl aya::Pod for IpKey {}
    unsafe impl aya::Pod for PodEntry {}
    unsafe impl aya::Pod for Destination {}
    unsafe impl aya::Pod for FlowKey {}
    unsafe impl aya::Pod for ProbeKey {}
    unsafe impl aya::Pod for ListenerKey {}
    unsafe impl aya::Pod for NodeConfig {}
    unsafe impl aya::Pod for SockState {}
}
