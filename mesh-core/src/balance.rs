//! Choosing an endpoint of a service: health, port, locality, weight and load.

use std::{net::IpAddr, sync::Arc};

use crate::{
    model::{
        Health, IpFamilies, LoadBalancing, LoadBalancingMode, PortMapping, Scope, Service, Workload,
        WorkloadUid,
    },
    snapshot::Snapshot,
};

/// Randomness as an argument, so that decisions stay deterministic under test.
pub trait Entropy {
    /// A number in `0..bound`; `bound` is at least 1.
    fn below(&mut self, bound: u64) -> u64;
}

/// How many flows the caller has open to a workload.
pub trait Load {
    /// Open flows.
    fn open_flows(&self, uid: &WorkloadUid) -> u32;
}

/// Load that is not known: choice is random by weight alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLoad;

impl Load for NoLoad {
    fn open_flows(&self, _: &WorkloadUid) -> u32 {
        0
    }
}

/// An endpoint with the port that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Port to dial on it.
    pub port: u16,
}

/// The port on which `workload` serves `service_port` of `service`.
pub fn target_port(service: &Service, workload: &Workload, service_port: u16) -> Option<u16> {
    let declared = service.ports.iter().find(|port| port.service_port == service_port)?;
    let find = |ports: &[PortMapping]| {
        ports.iter().find(|port| port.service_port == service_port).map(|port| port.target_port)
    };
    let own = workload.services.get(&service.key).and_then(|ports| find(ports));
    own.filter(|port| *port != 0).or((declared.target_port != 0).then_some(declared.target_port))
}

/// Endpoints that may be chosen, best locality rank only.
pub fn eligible(
    snapshot: &Snapshot,
    client: &Workload,
    service: &Service,
    service_port: u16,
) -> Vec<Endpoint> {
    let mut best_rank = 0;
    let mut best = Vec::new();
    for workload in snapshot.endpoints(&service.key) {
        let usable = workload.capacity > 0
            && (workload.health == Health::Healthy || service.load_balancing.allow_unhealthy)
            && !workload.addresses.is_empty();
        let Some(port) = usable.then(|| target_port(service, workload, service_port)).flatten() else {
            continue;
        };
        let Some(rank) = rank(&service.load_balancing, client, workload) else { continue };
        if rank > best_rank {
            best_rank = rank;
            best.clear();
        }
        if rank == best_rank {
            best.push(Endpoint { workload: workload.clone(), port });
        }
    }
    best
}

/// Least loaded of two candidates drawn by weight; with equal loads that is weighted random.
pub fn choose(endpoints: &[Endpoint], entropy: &mut dyn Entropy, load: &dyn Load) -> Option<Endpoint> {
    let first = draw(endpoints, entropy)?;
    let second = draw(endpoints, entropy)?;
    let open = |endpoint: &Endpoint| u64::from(load.open_flows(&endpoint.workload.uid));
    // Compare load per unit of weight without dividing.
    let lighter =
        open(second) * u64::from(first.workload.capacity) < open(first) * u64::from(second.workload.capacity);
    Some(if lighter { second.clone() } else { first.clone() })
}

fn draw<'a>(endpoints: &'a [Endpoint], entropy: &mut dyn Entropy) -> Option<&'a Endpoint> {
    let total: u64 = endpoints.iter().map(|e| u64::from(e.workload.capacity)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = entropy.below(total);
    endpoints.iter().find(|e| {
        let weight = u64::from(e.workload.capacity);
        let hit = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        hit
    })
}

/// Rank of an endpoint for a client; none when a strict preference excludes it.
fn rank(lb: &LoadBalancing, client: &Workload, endpoint: &Workload) -> Option<usize> {
    let matching = |scope: &&Scope| scope_matches(**scope, client, endpoint);
    match lb.mode {
        LoadBalancingMode::Any | LoadBalancingMode::Passthrough => Some(0),
        LoadBalancingMode::Strict => lb.preference.iter().all(|scope| matching(&scope)).then_some(0),
        LoadBalancingMode::Failover => Some(match lb.preference.split_first() {
            // A network mismatch does not stop the count; a match outranks every other network.
            Some((Scope::Network, rest)) => {
                let local = scope_matches(Scope::Network, client, endpoint);
                let near = rest.iter().take_while(matching).count();
                if local { 1 + rest.len() + near } else { near }
            }
            _ => lb.preference.iter().take_while(matching).count(),
        }),
    }
}

fn scope_matches(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster == b.cluster,
        Scope::Network => a.network == b.network,
    }
}

/// The address of a workload to dial: the dialled one if it is its own, else one of the dialled
/// family that the service allows, else the first allowed.
pub fn address_of(workload: &Workload, dialled: IpAddr, families: IpFamilies) -> Option<IpAddr> {
    if workload.addresses.contains(&dialled) {
        return Some(dialled);
    }
    let allowed = |ip: &&IpAddr| match families {
        IpFamilies::V4 => ip.is_ipv4(),
        IpFamilies::V6 => ip.is_ipv6(),
        IpFamilies::Automatic | IpFamilies::Dual => true,
    };
    let mut candidates = workload.addresses.iter().filter(allowed);
    let same = candidates.clone().find(|ip| ip.is_ipv4() == dialled.is_ipv4());
    same.or_else(|| candidates.next()).copied()
}
