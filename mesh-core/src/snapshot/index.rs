//! Pieces of the snapshot's indexes.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use imbl::HashMap;

use crate::model::{ServicePorts, Tunnel, Workload, WorkloadUid};

/// The endpoints of one service in uid order, healthy or not. Copied once per batch that touches it.
#[derive(Debug, Clone, Default)]
pub(super) struct Endpoints(Arc<Vec<Arc<Workload>>>);

impl Endpoints {
    pub(super) fn as_slice(&self) -> &[Arc<Workload>] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Merges a sorted batch of replacements (`None` removes) in one pass.
    pub(super) fn edit(&mut self, changes: BTreeMap<WorkloadUid, Option<Arc<Workload>>>) {
        let mut merged = Vec::with_capacity(self.0.len() + changes.len());
        let mut old = self.0.iter().peekable();
        for (uid, new) in changes {
            while let Some(keep) = old.next_if(|w| w.uid < uid) {
                merged.push(keep.clone());
            }
            old.next_if(|w| w.uid == uid);
            merged.extend(new);
        }
        merged.extend(old.cloned());
        merged.shrink_to_fit();
        self.0 = Arc::new(merged);
    }
}

/// The workloads at one address, preferred first: nearly always one, which then needs no list.
#[derive(Debug, Clone)]
pub(super) enum Residents {
    One(Arc<Workload>),
    Many(Arc<Vec<Arc<Workload>>>),
}

impl Residents {
    pub(super) fn as_slice(&self) -> &[Arc<Workload>] {
        match self {
            Self::One(workload) => std::slice::from_ref(workload),
            Self::Many(list) => list,
        }
    }

    pub(super) fn with(&self, workload: Arc<Workload>) -> Self {
        let mut list = self.as_slice().to_vec();
        list.push(workload);
        list.sort_by(prefer);
        Self::Many(Arc::new(list))
    }

    /// The rest without a workload; none when nobody is left.
    pub(super) fn without(&self, uid: &WorkloadUid) -> Option<Self> {
        let rest: Vec<_> = self.as_slice().iter().filter(|w| w.uid != *uid).cloned().collect();
        match rest.as_slice() {
            [] => None,
            [one] => Some(Self::One(one.clone())),
            _ => Some(Self::Many(Arc::new(rest))),
        }
    }
}

/// Order of workloads that share an address, best first: pods with HBONE, pods, HBONE, the rest
/// (ztunnel's order), then by uid so that the result does not depend on arrival.
fn prefer(a: &Arc<Workload>, b: &Arc<Workload>) -> Ordering {
    let rank = |w: &Workload| match (w.uid.0.contains("//Pod/"), w.tunnel == Tunnel::Hbone) {
        (true, true) => 3,
        (true, false) => 2,
        (false, true) => 1,
        (false, false) => 0,
    };
    rank(b).cmp(&rank(a)).then_with(|| a.uid.cmp(&b.uid))
}

/// Shares equal strings between workloads: most of a workload's text repeats across the mesh.
/// Grows with the number of distinct namespaces, accounts, nodes, owners and sets of services, not
/// with pods.
#[derive(Debug, Clone, Default)]
pub(super) struct Interner {
    texts: HashMap<Arc<str>, ()>,
    services: HashMap<ServicePorts, ()>,
}

impl Interner {
    fn share(&mut self, text: &mut Arc<str>) {
        match self.texts.get_key_value(text) {
            Some((known, ())) => *text = known.clone(),
            None => drop(self.texts.insert(text.clone(), ())),
        }
    }

    fn share_services(&mut self, services: &mut ServicePorts) {
        match self.services.get_key_value(services) {
            Some((known, ())) => *services = known.clone(),
            None => drop(self.services.insert(services.clone(), ())),
        }
    }

    /// The same workload with shared parts.
    pub(super) fn workload(&mut self, workload: Arc<Workload>) -> Arc<Workload> {
        let mut w = Arc::unwrap_or_clone(workload);
        let fields = [
            &mut w.namespace,
            &mut w.hostname,
            &mut w.network,
            &mut w.trust_domain,
            &mut w.service_account,
            &mut w.node,
            &mut w.canonical_name,
            &mut w.canonical_revision,
            &mut w.workload_name,
            &mut w.cluster,
            &mut w.locality.region,
            &mut w.locality.zone,
            &mut w.locality.subzone,
        ];
        for field in fields {
            self.share(field);
        }
        w.addresses.shrink_to_fit();
        self.share_services(&mut w.services);
        for policy in &mut w.policies {
            self.share(&mut policy.namespace);
            self.share(&mut policy.name);
        }
        Arc::new(w)
    }
}
