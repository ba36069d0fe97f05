//! A snapshot as data in a stable order: `/debug/config` and the cache on disk.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::Snapshot;
use crate::{
    delta::Change,
    model::{
        Policy, Service, Workload,
        l7::{L7Policy, ServiceRoutes, WorkloadLabels},
    },
};

/// Everything in a snapshot, each kind in key order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    /// [`Snapshot::version`].
    pub version: u64,
    /// [`Snapshot::is_complete`].
    pub complete: bool,
    /// Workloads.
    pub workloads: Vec<Arc<Workload>>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// L4 policies.
    pub policies: Vec<Arc<Policy>>,
    /// L7 routes.
    pub routes: Vec<Arc<ServiceRoutes>>,
    /// L7 policies.
    pub l7_policies: Vec<Arc<L7Policy>>,
    /// Labels.
    pub labels: Vec<Arc<WorkloadLabels>>,
}

impl Dump {
    /// The changes that rebuild the snapshot, referents before references.
    pub fn into_changes(self) -> impl Iterator<Item = Change> {
        let synced = self.complete.then_some(Change::Synced);
        (self.policies.into_iter().map(Change::Policy))
            .chain(self.services.into_iter().map(Change::Service))
            .chain(self.workloads.into_iter().map(Change::Workload))
            .chain(self.l7_policies.into_iter().map(Change::L7Policy))
            .chain(self.routes.into_iter().map(Change::Routes))
            .chain(self.labels.into_iter().map(Change::Labels))
            .chain(synced)
    }
}

impl Snapshot {
    /// Lists everything in a stable order.
    pub fn dump(&self) -> Dump {
        let mut labels: Vec<_> = self.labels.values().cloned().collect();
        labels.sort_by(|a, b| a.uid.cmp(&b.uid));
        Dump {
            version: self.version,
            complete: self.complete,
            workloads: self.workloads.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            policies: self.policies.values().cloned().collect(),
            routes: self.routes.values().cloned().collect(),
            l7_policies: self.l7_policies.values().cloned().collect(),
            labels,
        }
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.dump().serialize(serializer)
    }
}
