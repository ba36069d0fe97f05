//! The world as one decision sees it: immutable, cheap to clone, indexed for lookups.
//!
//! One writer applies [`Change`]s to its own copy and publishes it; readers hold an `Arc<Snapshot>`
//! for a whole decision (I-3, S-2). Clones share structure, so an update costs what it touches.

use std::{net::IpAddr, sync::Arc};

use imbl::{HashMap, OrdMap, Vector};
use ipnet::IpNet;

use crate::model::{
    Policy, PolicyName, PolicyScope, Service, ServiceName, Workload, WorkloadUid,
    l7::{L7Policy, ServiceRoutes, WorkloadLabels},
};

/// One change to the world. Removing what is unknown is a no-op, as in delta xDS.
#[derive(Debug, Clone)]
pub enum Change {
    /// Insert or replace a workload.
    Workload(Arc<Workload>),
    /// Insert or replace a service.
    Service(Arc<Service>),
    /// Insert or replace an L4 policy.
    Policy(Arc<Policy>),
    /// Insert or replace the L7 routes of a service.
    Routes(Arc<ServiceRoutes>),
    /// Insert or replace an L7 policy.
    L7Policy(Arc<L7Policy>),
    /// Insert or replace the labels of a workload.
    Labels(Arc<WorkloadLabels>),
    /// Remove a workload.
    RemoveWorkload(WorkloadUid),
    /// Remove a service.
    RemoveService(ServiceName),
    /// Remove an L4 policy.
    RemovePolicy(PolicyName),
    /// Remove the L7 routes of a service.
    RemoveRoutes(ServiceName),
    /// Remove an L7 policy.
    RemoveL7Policy(PolicyName),
    /// Remove the labels of a workload.
    RemoveLabels(WorkloadUid),
}

type AddressKey = (Arc<str>, IpAddr);

/// An immutable view of the mesh. See the module for who writes it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: u64,
    complete: bool,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    by_address: HashMap<AddressKey, Vector<WorkloadUid>>,
    services: HashMap<ServiceName, Arc<Service>>,
    by_vip: HashMap<AddressKey, Vector<ServiceName>>,
    ranges: OrdMap<String, (Arc<str>, IpNet, ServiceName)>,
    by_hostname: HashMap<Arc<str>, Vector<ServiceName>>,
    endpoints: HashMap<ServiceName, Vector<WorkloadUid>>,
    policies: HashMap<PolicyName, Arc<Policy>>,
    routes: HashMap<ServiceName, Arc<ServiceRoutes>>,
    l7_policies: OrdMap<PolicyName, Arc<L7Policy>>,
    labels: HashMap<WorkloadUid, Arc<WorkloadLabels>>,
}

impl Snapshot {
    /// Counts up with every batch of changes; goes into logs.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether every subscribed type has been received in full at least once.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Marks the world as fully received.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    /// Applies a batch. Everything in it becomes visible together.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.apply_one(change);
        }
        self.version += 1;
    }

    fn apply_one(&mut self, change: Change) {
        match change {
            Change::Workload(workload) => {
                self.remove_workload(&workload.uid);
                self.insert_workload(workload);
            }
            Change::Service(service) => {
                self.remove_service(&service.key);
                self.insert_service(service);
            }
            Change::Policy(policy) => {
                self.policies.insert(policy.key.clone(), policy);
            }
            Change::Routes(routes) => {
                self.routes.insert(routes.service.clone(), routes);
            }
            Change::L7Policy(policy) => {
                self.l7_policies.insert(policy.key.clone(), policy);
            }
            Change::Labels(labels) => {
                self.labels.insert(labels.uid.clone(), labels);
            }
            Change::RemoveWorkload(uid) => self.remove_workload(&uid),
            Change::RemoveService(key) => self.remove_service(&key),
            Change::RemovePolicy(key) => drop(self.policies.remove(&key)),
            Change::RemoveRoutes(key) => drop(self.routes.remove(&key)),
            Change::RemoveL7Policy(key) => drop(self.l7_policies.remove(&key)),
            Change::RemoveLabels(uid) => drop(self.labels.remove(&uid)),
        }
    }

    fn insert_workload(&mut self, workload: Arc<Workload>) {
        for service in workload.services.keys() {
            self.endpoints.entry(service.clone()).or_default().push_back(workload.uid.clone());
        }
        if !workload.host_network {
            for address in &workload.addresses {
                let key = (workload.network.clone(), *address);
                self.by_address.entry(key).or_default().push_back(workload.uid.clone());
            }
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(old) = self.workloads.remove(uid) else { return };
        for service in old.services.keys() {
            forget(&mut self.endpoints, service, uid);
        }
        for address in &old.addresses {
            forget(&mut self.by_address, &(old.network.clone(), *address), uid);
        }
    }

    fn insert_service(&mut self, service: Arc<Service>) {
        for vip in &service.vips {
            if vip.range.prefix_len() == vip.range.max_prefix_len() {
                let key = (vip.network.clone(), vip.range.addr());
                self.by_vip.entry(key).or_default().push_back(service.key.clone());
            } else {
                let entry = (vip.network.clone(), vip.range, service.key.clone());
                self.ranges.insert(format!("{} {} {}", vip.network, vip.range, service.key), entry);
            }
        }
        self.by_hostname.entry(service.key.hostname.clone()).or_default().push_back(service.key.clone());
        self.services.insert(service.key.clone(), service);
    }

    fn remove_service(&mut self, key: &ServiceName) {
        let Some(old) = self.services.remove(key) else { return };
        for vip in &old.vips {
            forget(&mut self.by_vip, &(vip.network.clone(), vip.range.addr()), key);
            self.ranges.remove(&format!("{} {} {}", vip.network, vip.range, key));
        }
        forget(&mut self.by_hostname, &key.hostname, key);
    }

    /// A workload by its key.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload at an address. Several on one address are ranked as ztunnel does: pods with
    /// HBONE, pods, others with HBONE, others.
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        let candidates = self.by_address.get(&(Arc::from(network), address))?;
        candidates.iter().filter_map(|uid| self.workloads.get(uid)).max_by_key(|workload| {
            let pod = workload.uid.0.contains("//Pod/");
            let hbone = workload.tunnel == crate::model::Tunnel::Hbone;
            (u8::from(pod) * 2 + u8::from(hbone), std::cmp::Reverse(&workload.uid))
        })
    }

    /// A service by its key.
    pub fn service(&self, key: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service that a client of `namespace` means by an address: an exact address first, then
    /// the longest range; the client's namespace before `canonical` before others.
    pub fn service_at(&self, network: &str, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let exact = self.by_vip.get(&(Arc::from(network), address));
        let exact = exact.into_iter().flatten().filter_map(|key| self.services.get(key));
        if let Some(best) = best_service(exact, namespace) {
            return Some(best);
        }
        let within =
            self.ranges.values().filter(|(net, range, _)| **net == *network && range.contains(&address));
        within
            .filter_map(|(_, range, key)| Some((range.prefix_len(), self.services.get(key)?)))
            .filter(|(_, service)| visible(service, namespace))
            .max_by_key(|(length, service)| {
                (*service.key.namespace == *namespace, *length, service.canonical)
            })
            .map(|(_, service)| service)
    }

    /// The service that a client of `namespace` means by a host name.
    pub fn service_named(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let keys = self.by_hostname.get(hostname)?;
        best_service(keys.iter().filter_map(|key| self.services.get(key)), namespace)
    }

    /// Workloads that back a service, healthy or not.
    pub fn endpoints(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(service).into_iter().flatten().filter_map(|uid| self.workloads.get(uid))
    }

    /// An L4 policy by its key.
    pub fn policy(&self, key: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Mesh-wide policies and those of a namespace.
    pub fn policies_of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.values().filter(move |policy| match policy.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => *policy.key.namespace == *namespace,
            PolicyScope::Workload => false,
        })
    }

    /// L7 routes of a service.
    pub fn routes(&self, service: &ServiceName) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(service)
    }

    /// All L7 policies, in the order of their names.
    pub fn l7_policies(&self) -> impl Iterator<Item = &Arc<L7Policy>> {
        self.l7_policies.values()
    }

    /// Labels of a workload; only waypoints receive them.
    pub fn labels(&self, uid: &WorkloadUid) -> Option<&Arc<WorkloadLabels>> {
        self.labels.get(uid)
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All L4 policies, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }
}

fn visible(service: &Service, namespace: &str) -> bool {
    !service.namespace_only || *service.key.namespace == *namespace
}

fn best_service<'a>(
    candidates: impl Iterator<Item = &'a Arc<Service>>,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    candidates
        .filter(|service| visible(service, namespace))
        .max_by_key(|s| (*s.key.namespace == *namespace, s.canonical, std::cmp::Reverse(&s.key)))
}

fn forget<K, V>(index: &mut HashMap<K, Vector<V>>, key: &K, value: &V)
where
    K: std::hash::Hash + Eq + Clone,
    V: PartialEq + Clone,
{
    let Some(list) = index.get_mut(key) else { return };
    list.retain(|item| item != value);
    if list.is_empty() {
        index.remove(key);
    }
}
