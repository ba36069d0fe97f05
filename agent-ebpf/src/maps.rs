//! Every map, once. All are pinned by name under the ABI version's folder.

use agent_common::{
    addr::IpKey,
    maps::{Destination, FlowKey, ListenerKey, NodeConfig, PodEntry, ProbeKey, SockState, capacity},
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockHash},
};

#[map]
pub static PODS: HashMap<u64, PodEntry> = HashMap::pinned(capacity::PODS, 0);
#[map]
pub static POD_IPS: HashMap<IpKey, u64> = HashMap::pinned(capacity::POD_IPS, 0);
/// BPF_F_NO_PREALLOC is required of LPM tries.
#[map]
pub static MESH: LpmTrie<IpKey, u32> = LpmTrie::pinned(capacity::MESH, 1);
#[map]
pub static ORIG: HashMap<u64, Destination> = HashMap::pinned(capacity::ORIG, 0);
#[map]
pub static FLOW_DST: HashMap<FlowKey, Destination> = HashMap::pinned(capacity::FLOW_DST, 0);
#[map]
pub static OWN: HashMap<u64, u32> = HashMap::pinned(capacity::OWN, 0);
#[map]
pub static PROBES: HashMap<ProbeKey, u32> = HashMap::pinned(capacity::PROBES, 0);
#[map]
pub static SOCKS: HashMap<u64, SockState> = HashMap::pinned(capacity::SOCKS, 0);
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(capacity::LISTENERS, 0);
#[map]
pub static CONFIG: Array<NodeConfig> = Array::pinned(capacity::CONFIG, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(capacity::COUNTERS, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(capacity::EVENTS, 0);
