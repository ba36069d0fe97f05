//! What was compiled as the snapshot that a fully updated client would hold: for `explain`.

use std::sync::Arc;

use mesh_core::{delta::Change, snapshot::Snapshot};

use super::Compiled;

impl Compiled {
    /// The world of a client that received everything.
    pub fn snapshot(&self) -> Snapshot {
        let services = self.services.values().cloned().map(|s| Change::Service(Arc::new(s)));
        let workloads = self.workloads.values().cloned().map(|w| Change::Workload(Arc::new(w)));
        let policies = self.policies.values().cloned().map(|p| Change::Policy(Arc::new(p)));
        let routes = self.routes.values().cloned().map(|r| Change::Routes(Arc::new(r)));
        let l7 = self.l7_policies.values().cloned().map(|p| Change::L7Policy(Arc::new(p)));
        let labels = self.labels.values().cloned().map(|l| Change::Labels(Arc::new(l)));
        Snapshot::of(services.chain(workloads).chain(policies).chain(routes).chain(l7).chain(labels))
    }
}
