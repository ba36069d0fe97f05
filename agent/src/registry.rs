//! What is known of each pod of this node, for people: `/debug/config`, `culvert status`, readiness.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mesh_core::enrol::State;
use serde_json::{Value, json};

use crate::pods::PodInfo;

/// Where a pod is that is not on its way into the mesh or out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It belongs into the mesh and lacks something that others give it.
    Pending,
    /// Labels ask for the mesh, and it cannot be in it.
    Refused,
    /// It does not belong into the mesh.
    Ignored,
}

/// A pod's standing.
#[derive(Debug, Clone)]
pub struct PodStatus {
    /// `namespace/name`.
    pub pod: String,
    /// Where its enrolment is; none when it is not (to be) enrolled.
    pub state: Option<State>,
    /// Where it is when `state` is none.
    pub standing: Standing,
    /// What is awaited, or why nothing happens.
    pub reason: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace's cookie, once known.
    pub cookie: Option<u64>,
    since: Instant,
}

impl PodStatus {
    /// The state's name, as it is shown.
    pub fn label(&self) -> Value {
        match (self.state, self.standing) {
            (Some(state), _) => json!(state),
            (None, Standing::Pending) => json!("pending"),
            (None, Standing::Refused) => json!("refused"),
            (None, Standing::Ignored) => json!("ignored"),
        }
    }
}

/// Pods by uid.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<Arc<str>, PodStatus>>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, PodStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where a pod's enrolment stands.
    pub fn set(&self, info: &PodInfo, state: State, reason: Option<String>) {
        self.put(info, (Some(state), Standing::Ignored), reason);
    }

    /// Says why a pod has no enrolment. What is refused is also logged, once.
    pub fn outside(&self, info: &PodInfo, standing: Standing, reason: String) {
        let changed = self.put(info, (None, standing), Some(reason.clone()));
        if changed && standing == Standing::Refused {
            tracing::warn!(pod = info.name(), reason, "pod is refused");
        }
    }

    fn put(&self, info: &PodInfo, stands: (Option<State>, Standing), reason: Option<String>) -> bool {
        let (state, standing) = stands;
        let mut pods = self.lock();
        let status = pods.entry(info.uid.clone()).or_insert_with(|| PodStatus {
            pod: info.name(),
            state,
            standing,
            reason: None,
            addresses: Vec::new(),
            cookie: None,
            since: Instant::now(),
        });
        if (status.state, status.standing) != stands {
            status.since = Instant::now();
        }
        (status.state, status.standing) = stands;
        let changed = status.reason != reason;
        status.reason = reason;
        status.addresses.clone_from(&info.addresses);
        changed
    }

    /// Notes a pod's cookie.
    pub fn found(&self, uid: &str, cookie: u64) {
        if let Some(status) = self.lock().get_mut(uid) {
            status.cookie = Some(cookie);
        }
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Everything.
    pub fn all(&self) -> BTreeMap<Arc<str>, PodStatus> {
        self.lock().clone()
    }

    /// Everything, as JSON.
    pub fn show(&self) -> Vec<Value> {
        let show = |(uid, status): (&Arc<str>, &PodStatus)| {
            json!({
                "pod": status.pod,
                "uid": uid,
                "state": status.label(),
                "reason": status.reason,
                "addresses": status.addresses,
                "netns": status.cookie,
                "since_seconds": status.since.elapsed().as_secs(),
            })
        };
        self.lock().iter().map(show).collect()
    }
}
