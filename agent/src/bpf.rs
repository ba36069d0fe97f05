//! The kernel side as user space sees it: loading, pinning and adopting programs, and the maps.
//!
//! Nothing here decides. Pins live under `<bpffs>/culvert/<node>/v<ABI>`; a new process adopts the
//! maps, keeps links of the same object, and replaces those of another one: first attach, then
//! remove the old, so that capture never has a gap and exactly one program per hook remains. Of
//! another ABI version nothing is adopted: its pods are closed until they are enrolled anew.

mod detach;
mod load;
mod maps;
mod stats;
mod versions;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use agent_common::{addr::IpKey, maps::PodEntry};
use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

pub use load::{Bpf, BpfConfig, KernelLog};
pub use stats::{MapFill, ProgramStats, StatsSwitch};

/// The object that `cargo xtask build` made; empty when there was none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert.o"));

/// What went wrong with the kernel side, and with which object.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "fields are named by the messages")]
pub enum BpfError {
    #[error("this build has no eBPF object; build with: cargo xtask build")]
    NoObject,
    #[error("bpf file system at {path} cannot be used; as root: mount -t bpf bpf {path}")]
    Bpffs { path: PathBuf, source: io::Error },
    #[error("kernel object cannot be loaded; it needs CAP_BPF and CAP_NET_ADMIN")]
    Load { source: EbpfError },
    #[error("program {program} is missing from the object or of another kind")]
    Missing { program: &'static str },
    #[error("program {program} is refused by the kernel")]
    Program { program: &'static str, source: ProgramError },
    #[error("program {program} cannot be pinned at {path}")]
    Pin { program: &'static str, path: PathBuf, source: PinError },
    #[error("cgroup {path} cannot be opened")]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("kernel table {map} cannot be used")]
    Map { map: &'static str, source: MapError },
    #[error("the kernel does not say how its programs run")]
    Stats { source: io::Error },
    #[error("what the programs log cannot be read")]
    Log {
        #[from]
        source: aya_log::Error,
    },
    #[error("another process changes what is pinned below {path}; it is tried again")]
    Busy { path: PathBuf, source: io::Error },
    #[error(
        "an agent of another version captures this node's pods ({path} has no programs); start the agent of this version"
    )]
    OtherVersion { path: PathBuf },
    #[error("pinned files below {path} cannot be read or removed")]
    Pins { path: PathBuf, source: io::Error },
}

/// How a pod stands in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// New connections are refused.
    Blocked,
    /// New connections are captured.
    Active,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pod {
    /// Cookie of its network namespace: the key.
    pub netns: u64,
    /// IPv4 address.
    pub v4: Option<std::net::Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<std::net::Ipv6Addr>,
    /// State.
    pub state: PodState,
    /// Snapshot version that it comes from.
    pub epoch: u32,
}

impl Pod {
    /// The pod as the kernel's table holds it.
    pub fn entry(&self) -> PodEntry {
        PodEntry {
            v4: self.v4.map_or(IpKey::UNSPECIFIED, |ip| IpKey::from_v4(ip.octets())),
            v6: self.v6.map_or(IpKey::UNSPECIFIED, |ip| IpKey(ip.octets())),
            state: match self.state {
                PodState::Blocked => agent_common::maps::STATE_BLOCKED,
                PodState::Active => agent_common::maps::STATE_ACTIVE,
            },
            epoch: self.epoch,
        }
    }

    fn from_entry(netns: u64, entry: PodEntry) -> Self {
        let v4 = (entry.v4 != IpKey::UNSPECIFIED).then(|| match ip_of(entry.v4) {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        Self {
            netns,
            v4: v4.flatten(),
            v6: (entry.v6 != IpKey::UNSPECIFIED).then(|| entry.v6.0.into()),
            // An unknown state is not active: the kernel treats it so too.
            state: if entry.state == agent_common::maps::STATE_ACTIVE {
                PodState::Active
            } else {
                PodState::Blocked
            },
            epoch: entry.epoch,
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpKey> {
        let entry = self.entry();
        [entry.v4, entry.v6].into_iter().filter(|key| *key != IpKey::UNSPECIFIED)
    }
}

/// The kernel's form of an address.
pub fn key_of(ip: IpAddr) -> IpKey {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpKey::from_v4(v4.octets()),
        IpAddr::V6(v6) => IpKey(v6.octets()),
    }
}

/// The address behind a key; mapped addresses come back as IPv4.
pub fn ip_of(key: IpKey) -> IpAddr {
    IpAddr::from(key.0).to_canonical()
}

fn socket_addr(destination: agent_common::maps::Destination) -> SocketAddr {
    SocketAddr::new(ip_of(destination.addr), destination.port)
}
