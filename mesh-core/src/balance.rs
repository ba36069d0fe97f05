//! Choice of an endpoint of a service: eligibility, locality, weight and load.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::{
    entropy::{Entropy, SplitMix64},
    model::{Health, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service, Workload, WorkloadUid},
    snapshot::Snapshot,
};

/// How busy endpoints are, as far as this node knows.
pub trait LoadView {
    /// Flows open from here to a workload; none when nobody counts.
    fn open_flows(&self, workload: &WorkloadUid) -> Option<u32>;
}

/// Nobody counts: endpoints are chosen by weight alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLoad;

impl LoadView for NoLoad {
    fn open_flows(&self, _workload: &WorkloadUid) -> Option<u32> {
        None
    }
}

/// What the endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The destination itself.
    Destination,
    /// A waypoint instance: its port need not be in the port map when it has an application tunnel.
    Waypoint,
}

/// A chosen endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its workload.
    pub workload: Arc<Workload>,
    /// The port to dial on it.
    pub port: u16,
}

/// The port that `workload` serves a service port on, or none when it does not.
///
/// The endpoint's own map wins, then the service's target port, then for waypoints with an
/// application tunnel the tunnel's port or the service port itself. 0 means "named port, ask the
/// endpoint".
pub fn target_port(
    service: &Service,
    workload: &Workload,
    service_port: u16,
    purpose: Purpose,
) -> Option<u16> {
    let declared = service.ports.iter().find(|p| p.service_port == service_port);
    let tunnel = workload.application_tunnel.filter(|_| purpose == Purpose::Waypoint);
    if declared.is_none() && tunnel.is_none() {
        return None;
    }
    let own = workload.services.get(&service.key).into_iter().flatten();
    own.filter(|p| p.service_port == service_port)
        .map(|p| p.target_port)
        .chain(declared.map(|p| p.target_port))
        .find(|port| *port != 0)
        .or_else(|| tunnel.map(|t| t.port.unwrap_or(service_port)))
}

/// Whether an endpoint can take a connection from `source`, and on which port. Reachability is an
/// address of a family that the service allows, a host name, or a gateway to its network.
pub fn eligible(
    source: &Workload,
    service: &Service,
    workload: &Workload,
    service_port: u16,
    purpose: Purpose,
) -> Option<u16> {
    let healthy = workload.health == Health::Healthy || service.load_balancing.allow_unhealthy;
    let addressed = workload.addresses.iter().any(|ip| family_allowed(service.ip_families, ip.is_ipv4()));
    let remote = workload.network != source.network && workload.network_gateway.is_some();
    let reachable = addressed || !workload.hostname.is_empty() || remote;
    if !healthy || !reachable || workload.capacity == 0 {
        return None;
    }
    target_port(service, workload, service_port, purpose)
}

/// Whether a service's families admit an address.
pub fn family_allowed(families: IpFamilies, is_v4: bool) -> bool {
    match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::V4 => is_v4,
        IpFamilies::V6 => !is_v4,
    }
}

/// Locality rank of an endpoint for a client; none when STRICT excludes it. Higher is nearer.
///
/// FAILOVER counts consecutive matching scopes from the front. When the first scope is NETWORK, a
/// match adds the number of the other scopes, and a mismatch does not stop the count: every
/// endpoint of the own network beats every remote one, and remote ones are still ordered.
pub fn rank(policy: &LoadBalancing, source: &Workload, endpoint: &Workload) -> Option<usize> {
    let scopes = &policy.preference;
    match policy.mode {
        LoadBalancingMode::Any | LoadBalancingMode::Passthrough => Some(0),
        LoadBalancingMode::Strict => scopes.iter().all(|s| same(*s, source, endpoint)).then_some(0),
        LoadBalancingMode::Failover => {
            let consecutive =
                |scopes: &[Scope]| scopes.iter().take_while(|s| same(**s, source, endpoint)).count();
            Some(match scopes.split_first() {
                Some((Scope::Network, rest)) if same(Scope::Network, source, endpoint) => {
                    1 + consecutive(rest) + rest.len()
                }
                Some((Scope::Network, rest)) => consecutive(rest),
                _ => consecutive(scopes),
            })
        }
    }
}

fn same(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster == b.cluster,
        Scope::Network => a.network == b.network,
    }
}

/// Who wants an endpoint, of what.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The client's workload.
    pub source: &'a Workload,
    /// The service.
    pub service: &'a Service,
    /// Its port.
    pub port: u16,
    /// What for.
    pub purpose: Purpose,
}

/// Chooses an endpoint: the best locality rank with an eligible endpoint, then two candidates drawn
/// by capacity of which the less loaded for its capacity wins; where load is unknown, the first draw.
/// Of a sticky service a client gets the same one each time. None when nothing is eligible.
pub fn pick(
    snapshot: &Snapshot,
    wanted: Wanted<'_>,
    entropy: &mut impl Entropy,
    load: &impl LoadView,
) -> Option<Endpoint> {
    let endpoints = snapshot.endpoints(&wanted.service.key);
    if wanted.service.load_balancing.sticky && wanted.purpose == Purpose::Destination {
        return sticky(candidates(endpoints, wanted), wanted.source);
    }
    let flat =
        matches!(wanted.service.load_balancing.mode, LoadBalancingMode::Any | LoadBalancingMode::Passthrough);
    if let (true, Some(endpoint)) = (flat && endpoints.len() > 8, quick(endpoints, wanted, entropy, load)) {
        return Some(endpoint);
    }
    let candidates = candidates(endpoints, wanted);
    let total: u64 = candidates.iter().map(|c| u64::from(c.workload.capacity)).sum();
    let first = draw(&candidates, entropy.below(total))?;
    let second = draw(&candidates, entropy.below(total))?;
    Some(lighter(first, second, load).clone())
}

/// The eligible endpoints of the best rank, in uid order.
pub fn candidates(endpoints: &[Arc<Workload>], wanted: Wanted<'_>) -> Vec<Endpoint> {
    let mut best = 0;
    let mut list = Vec::new();
    for workload in endpoints {
        let Wanted { source, service, port, purpose } = wanted;
        let Some(rank) = rank(&service.load_balancing, source, workload) else { continue };
        let Some(port) = eligible(source, service, workload, port, purpose) else { continue };
        if rank > best {
            best = rank;
            list.clear();
        }
        if rank == best {
            list.push(Endpoint { workload: workload.clone(), port });
        }
    }
    list
}

/// Two draws from a large list without looking at the rest; none when the draws are unlucky or
/// weights differ, and then the whole list is looked at.
fn quick(
    endpoints: &[Arc<Workload>],
    wanted: Wanted<'_>,
    entropy: &mut impl Entropy,
    load: &impl LoadView,
) -> Option<Endpoint> {
    let mut one = || {
        let index = usize::try_from(entropy.below(endpoints.len() as u64)).ok()?;
        let workload = endpoints.get(index)?;
        let port = eligible(wanted.source, wanted.service, workload, wanted.port, wanted.purpose)?;
        (workload.capacity == 1).then(|| Endpoint { workload: workload.clone(), port })
    };
    let (first, second) = (one()?, one()?);
    Some(lighter(&first, &second, load).clone())
}

/// The endpoint that a client keeps to: that of the best score of the two together, so that an endpoint that
/// comes or goes moves only the clients that it takes or leaves. Clients are shared out by capacity.
fn sticky(candidates: Vec<Endpoint>, client: &Workload) -> Option<Endpoint> {
    let cost = |endpoint: &Endpoint| {
        let seed = fnv(client.uid.0.bytes().chain([0]).chain(endpoint.workload.uid.0.bytes()));
        // 53 bits, so that it lies between 0 and 1 and is neither.
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit into the fraction of an f64")]
        let share = ((SplitMix64::new(seed).next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -share.ln() / f64::from(endpoint.workload.capacity)
    };
    let scored = candidates.into_iter().map(|endpoint| (cost(&endpoint), endpoint));
    scored.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, endpoint)| endpoint)
}

/// FNV-1a: the same in every version of the program.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn draw(candidates: &[Endpoint], mut at: u64) -> Option<&Endpoint> {
    for candidate in candidates {
        let weight = u64::from(candidate.workload.capacity);
        if at < weight {
            return Some(candidate);
        }
        at -= weight;
    }
    None
}

fn lighter<'a>(a: &'a Endpoint, b: &'a Endpoint, load: &impl LoadView) -> &'a Endpoint {
    if busier(a, b, load) { b } else { a }
}

/// Whether `a` has more flows for its capacity than `b`. False when they are equally busy, idle ones
/// above all: the draw was by capacity already, and to weigh it twice would starve the smaller one.
pub(crate) fn busier(a: &Endpoint, b: &Endpoint, load: &impl LoadView) -> bool {
    let flows = |e: &Endpoint| load.open_flows(&e.workload.uid).map(u64::from);
    let (Some(x), Some(y)) = (flows(a), flows(b)) else { return false };
    // x / capacity compared without division
    x * u64::from(b.workload.capacity) > y * u64::from(a.workload.capacity)
}
