//! The world as one immutable value: what every decision reads.
//!
//! `Snapshot` clones in constant time (persistent maps), so a writer applies a batch of changes to
//! a clone and publishes it while readers keep theirs. Departures from ztunnel, each fail-safe:
//! unhealthy endpoints are kept and filtered when one is picked, so switching a service to
//! `allow_unhealthy` takes effect at once instead of after the next workload update; endpoints of a
//! service that is deleted and comes back are there again at once.

mod dump;
mod index;
mod lookup;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use imbl::{HashMap, OrdMap};
use ipnet::IpNet;

use self::index::{Endpoints, Interner, Residents};
use crate::{
    delta::Change,
    model::{
        Policy, PolicyName, PolicyScope, Service, ServiceName, Workload, WorkloadUid,
        l7::{L7Policy, ServiceRoutes, WorkloadLabels},
    },
};

pub use self::{dump::Dump, lookup::PodRef};

/// Network id and address.
type AddressKey = (Arc<str>, IpAddr);

/// An immutable view of the mesh. See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: u64,
    policy_version: u64,
    complete: bool,
    interner: Interner,
    workloads: OrdMap<WorkloadUid, Arc<Workload>>,
    by_address: HashMap<Arc<str>, OrdMap<IpAddr, Residents>>,
    by_hostname: HashMap<ServiceName, Vec<Arc<Workload>>>,
    endpoints: HashMap<ServiceName, Endpoints>,
    services: OrdMap<ServiceName, Arc<Service>>,
    by_vip: HashMap<AddressKey, Vec<ServiceName>>,
    ranges: OrdMap<(Arc<str>, IpNet), Vec<ServiceName>>,
    by_host: HashMap<Arc<str>, Vec<ServiceName>>,
    policies: OrdMap<PolicyName, Arc<Policy>>,
    global_policies: Vec<Arc<Policy>>,
    namespace_policies: HashMap<Arc<str>, Vec<Arc<Policy>>>,
    routes: OrdMap<ServiceName, Arc<ServiceRoutes>>,
    l7_policies: OrdMap<PolicyName, Arc<L7Policy>>,
    labels: HashMap<WorkloadUid, Arc<WorkloadLabels>>,
}

/// What one batch does to the endpoints of each service, so that each list is copied once.
#[derive(Default)]
struct EndpointEdits(BTreeMap<ServiceName, BTreeMap<WorkloadUid, Option<Arc<Workload>>>>);

impl EndpointEdits {
    fn drop_all(&mut self, workload: &Workload) {
        for service in workload.services.keys() {
            self.0.entry(service.clone()).or_default().insert(workload.uid.clone(), None);
        }
    }

    fn add_all(&mut self, workload: &Arc<Workload>) {
        for service in workload.services.keys() {
            self.0.entry(service.clone()).or_default().insert(workload.uid.clone(), Some(workload.clone()));
        }
    }
}

impl Snapshot {
    /// An empty, incomplete snapshot.
    pub fn new() -> Self {
        Self::default()
    }

    /// A complete snapshot of exactly these changes: fixtures, offline analysis, cache files.
    pub fn of(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut snapshot = Self::new();
        snapshot.apply(changes.into_iter().chain([Change::Synced]));
        snapshot
    }

    /// Applies a batch and raises the version by one. Order matters only between changes to the same object.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut edits = EndpointEdits::default();
        let mut policies_changed = false;
        for change in changes {
            match change {
                Change::Workload(workload) => self.put_workload(workload, &mut edits),
                Change::RemoveWorkload(uid) => self.take_workload(&uid, &mut edits),
                Change::Service(service) => self.put_service(service),
                Change::RemoveService(key) => self.take_service(&key),
                Change::Policy(policy) => {
                    policies_changed = true;
                    self.policies.insert(policy.key.clone(), policy);
                }
                Change::RemovePolicy(key) => policies_changed |= self.policies.remove(&key).is_some(),
                other => self.apply_l7(other),
            }
        }
        self.settle_endpoints(edits);
        if policies_changed {
            self.index_policies();
        }
        self.version += 1;
    }

    fn apply_l7(&mut self, change: Change) {
        match change {
            Change::Routes(routes) => drop(self.routes.insert(routes.service.clone(), routes)),
            Change::RemoveRoutes(key) => drop(self.routes.remove(&key)),
            Change::L7Policy(policy) => drop(self.l7_policies.insert(policy.key.clone(), policy)),
            Change::RemoveL7Policy(key) => drop(self.l7_policies.remove(&key)),
            Change::Labels(labels) => drop(self.labels.insert(labels.uid.clone(), labels)),
            Change::RemoveLabels(uid) => drop(self.labels.remove(&uid)),
            _ => self.complete = true,
        }
    }

    fn put_workload(&mut self, workload: Arc<Workload>, edits: &mut EndpointEdits) {
        let uid = workload.uid.clone();
        self.take_workload(&uid, edits);
        let workload = self.interner.workload(workload);
        for address in indexed_addresses(&workload) {
            let network = self.by_address.entry(workload.network.clone()).or_default();
            let residents = match network.get(&address) {
                Some(others) => others.with(workload.clone()),
                None => Residents::One(workload.clone()),
            };
            network.insert(address, residents);
        }
        if let Some(key) = hostname_key(&workload) {
            self.by_hostname.entry(key).or_default().push(workload.clone());
        }
        edits.add_all(&workload);
        if workload.policies != Vec::new() {
            self.policy_version += 1;
        }
        self.workloads.insert(uid, workload);
    }

    fn take_workload(&mut self, uid: &WorkloadUid, edits: &mut EndpointEdits) {
        let Some(old) = self.workloads.remove(uid) else { return };
        edits.drop_all(&old);
        if !old.policies.is_empty() {
            self.policy_version += 1;
        }
        for address in indexed_addresses(&old) {
            let Some(network) = self.by_address.get_mut(&old.network) else { continue };
            match network.get(&address).and_then(|residents| residents.without(uid)) {
                Some(rest) => drop(network.insert(address, rest)),
                None => drop(network.remove(&address)),
            }
        }
        if let Some(key) = hostname_key(&old) {
            remove_from(&mut self.by_hostname, &key, |w| w.uid == *uid);
        }
    }

    fn settle_endpoints(&mut self, edits: EndpointEdits) {
        for (service, changes) in edits.0 {
            let list = self.endpoints.entry(service.clone()).or_default();
            list.edit(changes);
            if list.is_empty() {
                self.endpoints.remove(&service);
            }
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        self.take_service(&service.key);
        let key = service.key.clone();
        for vip in &service.vips {
            match vip.range.prefix_len() == vip.range.max_prefix_len() {
                true => {
                    push_name(self.by_vip.entry((vip.network.clone(), vip.range.addr())).or_default(), &key)
                }
                false => {
                    push_name(self.ranges.entry((vip.network.clone(), vip.range.trunc())).or_default(), &key)
                }
            }
        }
        push_name(self.by_host.entry(key.hostname.clone()).or_default(), &key);
        self.services.insert(key, service);
    }

    fn take_service(&mut self, key: &ServiceName) {
        let Some(old) = self.services.remove(key) else { return };
        for vip in &old.vips {
            remove_from(&mut self.by_vip, &(vip.network.clone(), vip.range.addr()), |name| name == key);
            let range = (vip.network.clone(), vip.range.trunc());
            if let Some(names) = self.ranges.get_mut(&range) {
                names.retain(|name| name != key);
                if names.is_empty() {
                    self.ranges.remove(&range);
                }
            }
        }
        remove_from(&mut self.by_host, &key.hostname, |name| name == key);
    }

    fn index_policies(&mut self) {
        self.policy_version += 1;
        self.global_policies.clear();
        self.namespace_policies.clear();
        for policy in self.policies.values() {
            match policy.scope {
                PolicyScope::Global => self.global_policies.push(policy.clone()),
                PolicyScope::Namespace => {
                    self.namespace_policies
                        .entry(policy.key.namespace.clone())
                        .or_default()
                        .push(policy.clone());
                }
                PolicyScope::Workload => {}
            }
        }
    }
}

fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = IpAddr> + '_ {
    let visible = !workload.host_network;
    workload.addresses.iter().filter(move |_| visible).copied()
}

fn hostname_key(workload: &Workload) -> Option<ServiceName> {
    (!workload.hostname.is_empty())
        .then(|| ServiceName::new(workload.namespace.clone(), workload.hostname.clone()))
}

fn push_name(names: &mut Vec<ServiceName>, key: &ServiceName) {
    if let Err(at) = names.binary_search(key) {
        names.insert(at, key.clone());
    }
}

fn remove_from<K: Clone + Eq + std::hash::Hash, V: Clone>(
    map: &mut HashMap<K, Vec<V>>,
    key: &K,
    gone: impl Fn(&V) -> bool,
) {
    let Some(list) = map.get_mut(key) else { return };
    list.retain(|item| !gone(item));
    if list.is_empty() {
        map.remove(key);
    }
}
