//! Every map, once. All are pinned by name under the ABI version's folder.

use agent_common::{
    addr::IpKey,
    event::SITE_COUNT,
    maps::{Destination, FlowKey, ListenerKey, NodeConfig, PodEntry, ProbeKey, SockState},
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockHash},
};

#[map]
pub static PODS: HashMap<u64, PodEntry> = HashMap::pinned(1024, 0);
#[map]
pub static POD_IPS: HashMap<IpKey, u64> = HashMap::pinned(4096, 0);
/// BPF_F_NO_PREALLOC is required of LPM tries.
#[map]
pub static MESH: LpmTrie<IpKey, u32> = LpmTrie::pinned(262_144, 1);
#[map]
pub static ORIG: HashMap<u64, Destination> = HashMap::pinned(131_072, 0);
#[map]
pub static FLOW_DST: HashMap<FlowKey, Destination> = HashMap::pinned(131_072, 0);
#[map]
pub static OWN: HashMap<u64, u32> = HashMap::pinned(131_072, 0);
#[map]
pub static PROBES: HashMap<ProbeKey, u32> = HashMap::pinned(16_384, 0);
#[map]
pub static SOCKS: HashMap<u64, SockState> = HashMap::pinned(131_072, 0);
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(2048, 0);
#[map]
pub static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(SITE_COUNT, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);
