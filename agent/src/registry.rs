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

/// A pod's standing.
#[derive(Debug, Clone)]
pub struct PodStatus {
    /// `namespace/name`.
    pub pod: String,
    /// Where its enrolment is; none when it is not (to be) enrolled.
    pub state: Option<State>,
    /// What is awaited, or why nothing happens.
    pub reason: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace's cookie, once known.
    pub cookie: Option<u64>,
    since: Instant,
}

/// Pods by uid.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<Arc<str>, PodStatus>>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, PodStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where a pod stands.
    pub fn set(&self, info: &PodInfo, state: Option<State>, reason: Option<String>) {
        let mut pods = self.lock();
        let status = pods.entry(info.uid.clone()).or_insert_with(|| PodStatus {
            pod: info.name(),
            state,
            reason: None,
            addresses: Vec::new(),
            cookie: None,
            since: Instant::now(),
        });
        if status.state != state {
            status.since = Instant::now();
        }
        status.state = state;
        status.reason = reason;
        status.addresses.clone_from(&info.addresses);
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
                "state": status.state.map_or(json!("ignored"), |state| json!(state)),
                "reason": status.reason,
                "addresses": status.addresses,
                "netns": status.cookie,
                "since_seconds": status.since.elapsed().as_secs(),
            })
        };
        self.lock().iter().map(show).collect()
    }
}
