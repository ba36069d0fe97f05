//! Reading a snapshot.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use super::{Snapshot, index::Residents};
use crate::{
    model::{
        GatewayAddress, GatewayDestination, Policy, PolicyName, Service, ServiceName, Workload, WorkloadUid,
        l7::{L7Policy, ServiceRoutes, WorkloadLabels},
    },
    outcome::{Reason, Refusal},
};

/// A pod as its own node knows it, to be matched with what the control plane says (invariant I-5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Cluster id, as in uids (`Kubernetes` by default).
    pub cluster: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// The node's network id; empty for the default network.
    pub network: Arc<str>,
}

impl PodRef {
    /// How a workload's own node would know it: for `explain` and fixtures.
    pub fn of(workload: &Workload) -> Arc<Self> {
        Arc::new(Self {
            cluster: workload.cluster.clone(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            service_account: workload.service_account.clone(),
            network: workload.network.clone(),
        })
    }

    fn is(&self, workload: &Workload) -> bool {
        *workload.name == *self.name && *workload.namespace == *self.namespace
    }
}

impl Snapshot {
    /// Raised by one with every applied batch.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Raised whenever an L4 policy, or a workload's list of them, may have changed: live flows look
    /// again only then.
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// Whether every subscribed type was received in full once. Nothing is proven absent before that.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A workload by its key.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// All workloads in uid order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Number of workloads.
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// The preferred workload at an address; host-network workloads are never found this way.
    pub fn workload_at(&self, network: &Arc<str>, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_at(network, ip).first()
    }

    /// All workloads at an address, preferred first.
    pub fn workloads_at(&self, network: &Arc<str>, ip: IpAddr) -> &[Arc<Workload>] {
        let residents = self.by_address.get(network).and_then(|at| at.get(&ip.to_canonical()));
        residents.map_or(&[], Residents::as_slice)
    }

    /// The workload of a local pod, by its address and checked against what the node knows of it.
    ///
    /// # Errors
    /// `WorkloadUnknown` when the control plane has not announced the pod (callers may wait for it),
    /// `IdentityMismatch` when address, name and service account do not belong together. Fails closed.
    pub fn pod(&self, pod: &PodRef, ip: IpAddr) -> Result<&Arc<Workload>, Refusal> {
        let at = self.workloads_at(&pod.network, ip);
        if let Some(workload) = at.iter().find(|w| pod.is(w)) {
            return match workload.service_account == pod.service_account {
                true => Ok(workload),
                false => Err(account_mismatch(pod, workload)),
            };
        }
        let uid = WorkloadUid::pod(&pod.cluster, &pod.namespace, &pod.name);
        let detail = match (self.workload(&uid), at.first()) {
            (Some(known), _) if !known.addresses.is_empty() => {
                format!(
                    "pod {}/{} does not have the address {ip}: it has {:?}",
                    pod.namespace, pod.name, known.addresses
                )
            }
            (_, Some(other)) => {
                format!("{ip} belongs to workload {}, not to pod {}/{}", other.uid, pod.namespace, pod.name)
            }
            _ => {
                let detail =
                    format!("pod {}/{} at {ip} is not known to the control plane", pod.namespace, pod.name);
                return Err(Refusal::new(Reason::WorkloadUnknown, detail));
            }
        };
        Err(Refusal::new(Reason::IdentityMismatch, detail))
    }

    /// A service by its key.
    pub fn service(&self, key: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All services in key order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service that owns a virtual address, as a client of `client_namespace` sees it: exact
    /// addresses before ranges; among several the client's own namespace, then the canonical one,
    /// then key order; among ranges the client's namespace, then the longest prefix, then canonical.
    pub fn service_at(
        &self,
        network: &Arc<str>,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let exact = self.by_vip.get(&(network.clone(), ip)).map_or(&[][..], Vec::as_slice);
        self.best(exact, client_namespace).or_else(|| self.service_in_range(network, ip, client_namespace))
    }

    fn service_in_range(
        &self,
        network: &Arc<str>,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        self.ranges
            .iter()
            .filter(|((net, range), _)| net == network && range.contains(&ip))
            .flat_map(|((_, range), names)| names.iter().map(move |name| (range.prefix_len(), name)))
            .filter_map(|(length, name)| Some((length, self.visible(name, client_namespace)?)))
            .min_by_key(|(length, s)| (*s.key.namespace != *client_namespace, Reverse(*length), !s.canonical))
            .map(|(_, service)| service)
    }

    /// The service with a host name, chosen like [`Snapshot::service_at`].
    pub fn service_by_host(&self, host: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        self.best(self.by_host.get(host)?, client_namespace)
    }

    fn visible(&self, name: &ServiceName, client_namespace: &str) -> Option<&Arc<Service>> {
        let service = self.services.get(name)?;
        (!service.namespace_only || *service.key.namespace == *client_namespace).then_some(service)
    }

    fn best(&self, names: &[ServiceName], client_namespace: &str) -> Option<&Arc<Service>> {
        names
            .iter()
            .filter_map(|name| self.visible(name, client_namespace))
            .min_by_key(|s| (*s.key.namespace != *client_namespace, !s.canonical))
    }

    /// All endpoints of a service in uid order, healthy or not; known before the service is.
    pub fn endpoints(&self, service: &ServiceName) -> &[Arc<Workload>] {
        self.endpoints.get(service).map_or(&[], |list| list.as_slice())
    }

    /// A workload without addresses by namespace and host name.
    pub fn workload_by_hostname(&self, name: &ServiceName) -> Option<&Arc<Workload>> {
        self.by_hostname.get(name)?.first()
    }

    /// An L4 policy by its key.
    pub fn policy(&self, key: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// All L4 policies in key order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Mesh-wide policies, then those of the namespace; those that a workload names are looked up by name.
    pub fn scoped_policies(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<Policy>> {
        let own = self.namespace_policies.get(namespace).map_or(&[][..], Vec::as_slice);
        self.global_policies.iter().chain(own)
    }

    /// The L7 routes of a service.
    pub fn routes(&self, service: &ServiceName) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(service)
    }

    /// All L7 routes in service order.
    pub fn all_routes(&self) -> impl Iterator<Item = &Arc<ServiceRoutes>> {
        self.routes.values()
    }

    /// All L7 policies in key order.
    pub fn l7_policies(&self) -> impl Iterator<Item = &Arc<L7Policy>> {
        self.l7_policies.values()
    }

    /// The labels of a workload; only waypoints have them.
    pub fn labels(&self, uid: &WorkloadUid) -> Option<&Arc<WorkloadLabels>> {
        self.labels.get(uid)
    }

    /// Whether `workload` is one of the instances behind a waypoint or gateway address.
    pub fn is_gateway_instance(&self, gateway: &GatewayAddress, workload: &Workload) -> bool {
        match &gateway.destination {
            GatewayDestination::Hostname(name) => {
                workload.services.contains_key(name)
                    || (workload.namespace == name.namespace && workload.hostname == name.hostname)
            }
            GatewayDestination::Address(at) => {
                let service = self.service_at(&at.network, at.address, &workload.namespace);
                service.is_some_and(|s| workload.services.contains_key(&s.key))
                    || (workload.network == at.network && workload.addresses.contains(&at.address))
            }
        }
    }
}

fn account_mismatch(pod: &PodRef, workload: &Workload) -> Refusal {
    Refusal::new(
        Reason::IdentityMismatch,
        format!(
            "pod {}/{} runs as service account {}, the control plane says {}",
            pod.namespace, pod.name, pod.service_account, workload.service_account
        ),
    )
}
