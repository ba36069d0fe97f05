//! Flows or requests per endpoint, counted by one thread for its own choices.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use mesh_core::{balance::LoadView, model::WorkloadUid};

/// The counts of one thread. Holds only endpoints with at least one flow.
#[derive(Debug, Default)]
pub struct Load(RefCell<HashMap<WorkloadUid, u32>>);

/// One counted flow.
#[derive(Debug)]
pub struct LoadGuard(Rc<Load>, WorkloadUid);

impl Load {
    /// Counts one until the guard is dropped.
    pub fn enter(self: &Rc<Self>, uid: &WorkloadUid) -> LoadGuard {
        *self.0.borrow_mut().entry(uid.clone()).or_default() += 1;
        LoadGuard(self.clone(), uid.clone())
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        let mut load = self.0.0.borrow_mut();
        if let Some(count) = load.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                load.remove(&self.1);
            }
        }
    }
}

impl LoadView for Load {
    fn open_flows(&self, workload: &WorkloadUid) -> Option<u32> {
        Some(self.0.borrow().get(workload).copied().unwrap_or(0))
    }
}
