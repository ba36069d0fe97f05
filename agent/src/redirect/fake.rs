//! A redirector for tests without a kernel: it remembers what it was asked, and fails on request.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use socket2::Socket;

use super::{RedirectError, Redirector, Target};
use crate::{
    bpf::{Pod, PodState},
    listeners::Listeners,
};

/// See the module's description.
#[derive(Debug, Default)]
pub struct Fake {
    pods: Mutex<BTreeMap<u64, Pod>>,
    failures: Mutex<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    /// Makes the next `count` changes fail.
    pub fn fail(&self, count: u32) {
        *lock(&self.failures) = count;
    }

    /// Holds a pod as an earlier process left it.
    pub fn remember(&self, pod: Pod) {
        lock(&self.pods).insert(pod.netns, pod);
    }

    /// State of a captured pod; none when it is not captured.
    pub fn state(&self, cookie: u64) -> Option<PodState> {
        lock(&self.pods).get(&cookie).map(|pod| pod.state)
    }

    /// Cookies of the captured pods.
    pub fn cookies(&self) -> Vec<u64> {
        lock(&self.pods).keys().copied().collect()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Pod>)) -> Result<(), RedirectError> {
        let mut failures = lock(&self.failures);
        if *failures > 0 {
            *failures -= 1;
            let source = io::Error::other("as the test asked");
            return Err(RedirectError::System { doing: "the fake kernel refuses", source });
        }
        change(&mut lock(&self.pods));
        Ok(())
    }

    fn put(&self, target: &Target, state: PodState) -> Result<(), RedirectError> {
        self.change(|pods| {
            pods.insert(target.cookie, Pod { state, ..target.pod.clone() });
        })
    }
}

impl Redirector for Fake {
    fn block(&self, target: &Target) -> Result<(), RedirectError> {
        self.put(target, PodState::Blocked)
    }

    fn capture(&self, target: &Target, _listeners: &Listeners) -> Result<(), RedirectError> {
        self.put(target, PodState::Active)
    }

    fn release(&self, target: &Target) -> Result<(), RedirectError> {
        self.change(|pods| {
            pods.remove(&target.cookie);
        })
    }

    fn original(&self, _cookie: u64, _client: SocketAddr) -> Result<Option<SocketAddr>, RedirectError> {
        Ok(None)
    }

    fn exempt(&self, _socket: &Socket) -> Result<(), RedirectError> {
        Ok(())
    }

    fn captured(&self) -> Result<Vec<Pod>, RedirectError> {
        Ok(lock(&self.pods).values().cloned().collect())
    }

    fn forget(&self, pod: &Pod) -> Result<(), RedirectError> {
        self.change(|pods| {
            pods.remove(&pod.netns);
        })
    }
}
