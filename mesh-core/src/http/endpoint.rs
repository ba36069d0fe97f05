//! Endpoints of a destination: subset filter and choice.

use std::sync::Arc;

use crate::{
    balance::{Endpoint, LoadView, Purpose, Wanted, busier, candidates},
    entropy::Entropy,
    model::{
        ServiceName, Workload,
        l7::{LbAlgorithm, Subset},
    },
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
};

/// Why a destination has no endpoint set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubsetError {
    /// The service is not in the mesh.
    #[error("service {0} does not exist")]
    Service(ServiceName),
    /// No DestinationRule names the subset.
    #[error("service {0} has no subset {1}")]
    Subset(ServiceName, Arc<str>),
    /// Nothing is healthy.
    #[error("service {0} has no healthy endpoint for port {1}")]
    Empty(ServiceName, u16),
}

impl From<SubsetError> for Refusal {
    fn from(error: SubsetError) -> Self {
        let reason = match error {
            SubsetError::Service(_) | SubsetError::Subset(..) => Reason::UnknownDestination,
            SubsetError::Empty(..) => Reason::NoHealthyEndpoint,
        };
        Self::new(reason, error.to_string())
    }
}

/// The eligible endpoints of a service and subset for one port, in uid order and of the best locality
/// for `client` (the waypoint). Cache the result per snapshot version.
///
/// # Errors
/// The service or subset does not exist, or nothing in it is healthy.
pub fn endpoints(
    snapshot: &Snapshot,
    client: &Workload,
    service: &ServiceName,
    subset: Option<&Arc<str>>,
    port: u16,
) -> Result<Vec<Endpoint>, SubsetError> {
    let found = snapshot.service(service).ok_or_else(|| SubsetError::Service(service.clone()))?;
    let wanted = Wanted { source: client, service: found, port, purpose: Purpose::Destination };
    let all = snapshot.endpoints(service);
    let list = match subset {
        None => candidates(all, wanted),
        Some(name) => {
            let subset = named(snapshot, service, name)
                .ok_or_else(|| SubsetError::Subset(service.clone(), name.clone()))?;
            let members: Vec<Arc<Workload>> =
                all.iter().filter(|w| is_member(snapshot, w, subset)).cloned().collect();
            candidates(&members, wanted)
        }
    };
    match list.is_empty() {
        true => Err(SubsetError::Empty(service.clone(), port)),
        false => Ok(list),
    }
}

fn named<'s>(snapshot: &'s Snapshot, service: &ServiceName, name: &str) -> Option<&'s Subset> {
    snapshot.routes(service)?.subsets.iter().find(|s| *s.name == *name)
}

fn is_member(snapshot: &Snapshot, workload: &Workload, subset: &Subset) -> bool {
    let labels = snapshot.labels(&workload.uid);
    subset.labels.iter().all(|(key, want)| labels.is_some_and(|l| l.labels.get(key) == Some(want)))
}

/// Chooses among the endpoints of one destination; keeps the position of round robin.
#[derive(Debug, Clone, Default)]
pub struct Picker {
    next: usize,
}

impl Picker {
    /// One endpoint, avoiding `not` (the index tried last) when there is another.
    pub fn pick(
        &mut self,
        list: &[Endpoint],
        algorithm: LbAlgorithm,
        not: Option<usize>,
        entropy: &mut impl Entropy,
        load: &impl LoadView,
    ) -> Option<usize> {
        let first = match algorithm {
            _ if list.len() < 2 => return (!list.is_empty()).then_some(0),
            LbAlgorithm::RoundRobin => {
                self.next = (self.next + 1) % list.len();
                self.next
            }
            LbAlgorithm::Random => weighted(list, entropy),
            LbAlgorithm::LeastRequest => {
                let (a, b) = (weighted(list, entropy), weighted(list, entropy));
                if busier(&list[a], &list[b], load) { b } else { a }
            }
        };
        Some(if not == Some(first) { (first + 1) % list.len() } else { first })
    }
}

fn weighted(list: &[Endpoint], entropy: &mut impl Entropy) -> usize {
    let total: u64 = list.iter().map(|e| u64::from(e.workload.capacity)).sum();
    let mut at = entropy.below(total);
    for (index, endpoint) in list.iter().enumerate() {
        let weight = u64::from(endpoint.workload.capacity);
        if at < weight {
            return index;
        }
        at -= weight;
    }
    0
}
