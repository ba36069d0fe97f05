//! Changes to a snapshot: what an xDS response, a folder or a cache file says.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{
    Policy, PolicyName, Service, ServiceName, Workload, WorkloadUid,
    l7::{L7Policy, ServiceRoutes, WorkloadLabels},
};

/// One change. Upserts carry the whole object; a removal of what is unknown does nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// A workload is new or different.
    Workload(Arc<Workload>),
    /// A workload is gone.
    RemoveWorkload(WorkloadUid),
    /// A service is new or different; its endpoints stay.
    Service(Arc<Service>),
    /// A service is gone; workloads that back it stay.
    RemoveService(ServiceName),
    /// An L4 policy is new or different.
    Policy(Arc<Policy>),
    /// An L4 policy is gone.
    RemovePolicy(PolicyName),
    /// The L7 routes of a service are new or different.
    Routes(Arc<ServiceRoutes>),
    /// A service has no L7 routes any more.
    RemoveRoutes(ServiceName),
    /// An L7 policy is new or different.
    L7Policy(Arc<L7Policy>),
    /// An L7 policy is gone.
    RemoveL7Policy(PolicyName),
    /// The labels of a workload are new or different.
    Labels(Arc<WorkloadLabels>),
    /// The labels of a workload are gone.
    RemoveLabels(WorkloadUid),
    /// Every subscribed type was received in full at least once: the snapshot is complete.
    Synced,
}
