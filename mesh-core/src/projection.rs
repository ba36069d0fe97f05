//! What the kernel may know: mesh ranges for bypass, and the reference for its verdicts.
//!
//! The kernel accelerates and never decides alone. A destination is *bypassed* only when it is
//! proven outside the mesh: the snapshot is complete, the operator named the cluster's pod and
//! service ranges, and the address is in none of them nor in anything that the snapshot mentions.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::snapshot::Snapshot;

/// Addresses that must be asked about, and whether everything else is proven outside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshRanges {
    /// Aggregated, sorted.
    pub ranges: Vec<IpNet>,
    /// Whether addresses outside the ranges may be bypassed.
    pub complete: bool,
    /// The snapshot's version: the epoch of the kernel's entries.
    pub epoch: u64,
}

impl MeshRanges {
    /// Whether an address is in a range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.ranges.iter().any(|range| range.contains(&ip))
    }
}

/// Computes the ranges: the configured ones plus every address of the snapshot outside them.
pub fn mesh_ranges(snapshot: &Snapshot, configured: &[IpNet]) -> MeshRanges {
    let covered = |ip: &IpAddr| configured.iter().any(|range| range.contains(ip));
    let single = |ip: IpAddr| IpNet::from(ip);
    // Host-network workloads have the node's address: passthrough whatever happens, so not listed.
    let pods = snapshot.workloads().filter(|w| !w.host_network).flat_map(|w| w.addresses.iter().copied());
    let vips = snapshot.services().flat_map(|s| s.vips.iter().map(|vip| vip.range));
    let mut ranges: Vec<IpNet> = configured.to_vec();
    ranges.extend(pods.filter(|ip| !covered(ip)).map(single));
    ranges.extend(vips.filter(|range| !configured.iter().any(|c| c.contains(range))));
    let mut ranges = IpNet::aggregate(&ranges);
    ranges.sort();
    MeshRanges {
        ranges,
        complete: snapshot.is_complete() && !configured.is_empty(),
        epoch: snapshot.version(),
    }
}

/// A pod's capture as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// Not enrolled.
    None,
    /// Enrolled, not ready.
    Blocked,
    /// Enrolled.
    Active,
}

/// What the kernel does with a connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectVerdict {
    /// Left alone.
    Untouched,
    /// Left alone, counted.
    Bypass,
    /// Sent to the agent's outbound listener.
    ToAgent,
    /// Sent there although the pod is not ready: it is refused or waits.
    Blocked,
    /// Refused: the pod has no address of that family at which the agent could listen.
    NoFamily,
}

/// The facts of a connection attempt.
#[derive(Debug, Clone, Copy)]
pub struct ConnectFacts<'a> {
    /// The pod's capture.
    pub capture: Capture,
    /// The pod's own addresses.
    pub own: &'a [IpAddr],
    /// Whether the agent itself connects.
    pub by_agent: bool,
    /// Destination.
    pub destination: IpAddr,
}

/// The reference that kernel verdicts are compared with.
pub fn connect(facts: &ConnectFacts<'_>, ranges: &MeshRanges) -> ConnectVerdict {
    let destination = facts.destination.to_canonical();
    // Linux connects to the unspecified address of either family as to loopback.
    let inside =
        destination.is_loopback() || destination.is_unspecified() || facts.own.contains(&destination);
    if facts.capture == Capture::None || facts.by_agent || inside {
        return ConnectVerdict::Untouched;
    }
    if !facts.own.iter().any(|own| own.is_ipv4() == destination.is_ipv4()) {
        return ConnectVerdict::NoFamily;
    }
    match facts.capture {
        Capture::Active if ranges.complete && !ranges.contains(destination) => ConnectVerdict::Bypass,
        Capture::Active => ConnectVerdict::ToAgent,
        Capture::None | Capture::Blocked => ConnectVerdict::Blocked,
    }
}
