//! The endpoints of one destination, and the choice among them.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use mesh_core::{
    balance::{Endpoint, LoadView},
    entropy::Entropy,
    http::Picker,
    model::{Service, WorkloadUid, l7::TrafficPolicy},
};

use crate::{limits::Limits, target::Target};

/// The endpoints of one destination and how they are used.
pub struct EndpointSet {
    /// Eligible endpoints.
    pub endpoints: Vec<Endpoint>,
    /// What the worker keeps for each of them.
    pub targets: Vec<Rc<Target>>,
    /// Policy of the destination or its subset.
    pub policy: TrafficPolicy,
    /// Its limits.
    pub limits: Arc<Limits>,
    /// The service; none for a workload that is addressed itself.
    pub service: Option<Arc<Service>>,
    /// Host name and subset, for reasons.
    pub name: Option<Arc<str>>,
    /// Whose turn it is.
    pub picker: RefCell<Picker>,
}

impl EndpointSet {
    /// The index of an endpoint other than the one tried last where there is another.
    pub fn pick(&self, last: Option<usize>, entropy: &mut impl Entropy) -> Option<usize> {
        self.picker.borrow_mut().pick(&self.endpoints, self.policy.lb, last, entropy, &Active(self))
    }
}

/// Requests under way to the endpoints of a set.
struct Active<'a>(&'a EndpointSet);

impl LoadView for Active<'_> {
    fn open_flows(&self, workload: &WorkloadUid) -> Option<u32> {
        // The picker asks about endpoints of the set itself: comparing addresses is enough.
        let at = self.0.endpoints.iter().position(|e| Arc::ptr_eq(&e.workload.uid.0, &workload.0))?;
        Some(self.0.targets[at].active())
    }
}
