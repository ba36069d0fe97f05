//! Keys and values of the maps, their names and default capacities.

use crate::addr::IpKey;

/// New connections are refused: the pod is not ready.
pub const STATE_BLOCKED: u32 = 1;
/// New connections are captured.
pub const STATE_ACTIVE: u32 = 2;

/// A map: what it is keyed by, what it holds, and how many entries fit unless the agent is told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSpec {
    /// Name as the kernel shows it: at most 15 bytes.
    pub name: &'static str,
    /// Type of its keys.
    pub key: &'static str,
    /// Type of its values.
    pub value: &'static str,
    /// Entries; bytes of a ring buffer.
    pub capacity: u32,
}

macro_rules! maps {
    ($($name:ident: $key:ty => $value:ty, $capacity:expr;)+) => {
        /// Every map.
        pub const MAPS: &[MapSpec] = &[$(MapSpec {
            name: stringify!($name),
            key: stringify!($key),
            value: stringify!($value),
            capacity: $capacity,
        }),+];

        /// Default capacities, by map.
        pub mod capacity {
            $(#[doc = concat!("Of `", stringify!($name), "`.")] pub const $name: u32 = $capacity;)+
        }
    };
}

maps! {
    PODS: u64 => PodEntry, 1024;
    POD_IPS: IpKey => u64, 4096;
    MESH: IpKey => u32, 262_144;
    ORIG: u64 => Destination, 131_072;
    FLOW_DST: FlowKey => Destination, 131_072;
    OWN: u64 => u32, 131_072;
    PROBES: ProbeKey => u32, 16_384;
    SOCKS: u64 => SockState, 131_072;
    LISTENERS: ListenerKey => socket, 2048;
    CONFIG: u32 => NodeConfig, 1;
    COUNTERS: u32 => u64, crate::event::SITE_COUNT;
    EVENTS: none => FlowEvent, 1 << 20;
}

abi_type! {
    /// `PODS`: network namespace cookie → this.
    pub struct PodEntry, 40 bytes {
        /// IPv4 address, mapped; unspecified when the pod has none.
        0: pub v4: IpKey,
        /// IPv6 address; unspecified when the pod has none.
        16: pub v6: IpKey,
        /// [`STATE_BLOCKED`] or [`STATE_ACTIVE`]; anything else counts as blocked.
        32: pub state: u32,
        /// Snapshot version that the entry came from.
        36: pub epoch: u32,
    }
}

abi_type! {
    /// A destination: `ORIG` by socket cookie and `FLOW_DST` by [`FlowKey`].
    pub struct Destination, 20 bytes {
        /// Address.
        0: pub addr: IpKey,
        /// Host order.
        16: pub port: u16,
        /// Zero.
        18: pub pad: u16,
    }
}

abi_type! {
    /// `FLOW_DST`: a captured connection as the agent sees it on accept.
    pub struct FlowKey, 32 bytes {
        /// The pod's network namespace cookie.
        0: pub netns: u64,
        /// The client socket's own address.
        8: pub addr: IpKey,
        /// The client socket's own port, host order.
        24: pub port: u32,
        /// Zero.
        28: pub pad: u32,
    }
}

abi_type! {
    /// `PROBES`: a connection from the node's own namespace to a pod.
    pub struct ProbeKey, 36 bytes {
        /// Source address.
        0: pub src: IpKey,
        /// Destination address.
        16: pub dst: IpKey,
        /// Source port, host order.
        32: pub src_port: u16,
        /// Destination port, host order.
        34: pub dst_port: u16,
    }
}

/// Listener that takes HBONE.
pub const LISTENER_HBONE: u32 = 1;
/// Listener that takes everything else from outside.
pub const LISTENER_PLAINTEXT: u32 = 2;

abi_type! {
    /// `LISTENERS`: which socket of a pod takes inbound connections.
    pub struct ListenerKey, 16 bytes {
        /// The pod's network namespace cookie.
        0: pub netns: u64,
        /// [`LISTENER_HBONE`] or [`LISTENER_PLAINTEXT`].
        8: pub kind: u32,
        /// Zero.
        12: pub pad: u32,
    }
}

abi_type! {
    /// `CONFIG[0]`: switches of the node.
    pub struct NodeConfig, 16 bytes {
        /// Cookie of the node's own network namespace; 0 turns the probe exception off.
        0: pub host_netns: u64,
        /// 1 when `MESH` holds every pod and service range, so that a miss proves "outside".
        8: pub ranges_complete: u32,
        /// Snapshot version of `MESH`.
        12: pub epoch: u32,
    }
}

abi_type! {
    /// `SOCKS`: what is remembered of a socket for its statistics.
    pub struct SockState, 40 bytes {
        /// When the connect started, ns since boot.
        0: pub start_ns: u64,
        /// How long the connect took, µs; 0 while it is under way.
        8: pub connect_us: u32,
        /// One of the `LEG_` constants.
        12: pub leg: u32,
        /// Where the application meant to go; zero for accepted connections.
        16: pub asked: Destination,
        /// Zero.
        36: pub pad: u32,
    }
}

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
