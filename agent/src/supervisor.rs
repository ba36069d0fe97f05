//! One task per pod that is, or is to be, in the mesh.

mod enrolment;
mod linger;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mesh_core::{
    enrol::{Event, Found},
    identity::Identity,
};
use mesh_net::{
    ca::CertState,
    task::{Drain, Ready},
};
use tokio::sync::{mpsc, watch};

use crate::{
    bpf::Pod,
    netns::{self, Place},
    pods::{PodEvent, PodInfo, PodSource},
    redirect::AnyRedirector,
    registry::{Registry, Standing},
    serve,
};

/// Events of a source, or of one pod, that may wait.
const WAITING: usize = 256;

/// Follows an identity's certificate.
pub type Certificates = Arc<dyn Fn(&Identity) -> watch::Receiver<CertState> + Send + Sync>;

/// What enrolment works with.
pub struct Means {
    /// Pods, and where they are announced.
    pub source: Arc<dyn PodSource>,
    /// Redirection.
    pub redirector: AnyRedirector,
    /// Data threads.
    pub workers: Vec<serve::Handle>,
    /// Certificates.
    pub certificates: Certificates,
    /// Where pods' standing is shown.
    pub registry: Registry,
    /// Trust domain of the node's pods.
    pub trust_domain: Arc<str>,
    /// Asked to end when the agent stops; the pods' groups are children.
    pub stop: Drain,
}

/// A pod that has a task.
struct Running {
    info: Arc<PodInfo>,
    events: mpsc::Sender<Event>,
}

struct Supervisor {
    means: Arc<Means>,
    running: HashMap<Arc<str>, Running>,
    /// Pods that were seen while they did not belong into the mesh.
    outside: HashSet<Arc<str>>,
    /// Captured by an earlier process, by cookie; emptied as their pods are found.
    captured: HashMap<u64, Pod>,
    ready: Ready,
    synced: bool,
}

/// Enrols, withdraws and forgets pods until the agent stops. `ready` awaits that all pods that were
/// there at the start are known, and that each of them is enrolled or has failed to be once.
pub async fn run(means: Arc<Means>, ready: Ready) {
    let mut listed = Some(ready.awaits("pods of this node"));
    let captured = means.redirector.captured().unwrap_or_else(|error| {
        tracing::error!(%error, "the kernel does not say which pods are captured");
        Vec::new()
    });
    let mut supervisor = Supervisor {
        means: means.clone(),
        running: HashMap::new(),
        outside: HashSet::new(),
        captured: captured.into_iter().map(|pod| (pod.netns, pod)).collect(),
        ready,
        synced: false,
    };
    let (send, mut events) = mpsc::channel(WAITING);
    let source = means.source.clone();
    tokio::spawn(async move { source.watch(send).await });
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = means.stop.asked() => return,
        };
        match event {
            Some(PodEvent::Pod(info)) => supervisor.pod(info).await,
            Some(PodEvent::Gone(uid)) => supervisor.gone(&uid).await,
            Some(PodEvent::Synced) => {
                supervisor.synced = true;
                drop(listed.take());
            }
            Some(PodEvent::Complete) => supervisor.forget_orphans(),
            None => return,
        }
    }
}

impl Supervisor {
    async fn pod(&mut self, info: Arc<PodInfo>) {
        if let Some(running) = self.running.get(&info.uid)
            && running.events.is_closed()
        {
            self.running.remove(&info.uid);
            // It has left and runs on: if it comes back, its connections go on until all is ready.
            self.outside.insert(info.uid.clone());
        }
        match self.running.get_mut(&info.uid) {
            Some(running) if running.info.netns != info.netns || running.info.addresses != info.addresses => {
                // Another network under the same name: nothing of the old one may be used.
                self.gone(&info.uid).await;
                Box::pin(self.pod(info)).await;
            }
            Some(running) => {
                let (before, now) = (running.info.eligibility.is_eligible(), info.eligibility.is_eligible());
                running.info = info;
                if before != now {
                    let event = if now { Event::Eligible } else { Event::Ineligible };
                    // The task may have ended meanwhile; then there is nothing to tell.
                    let _ = running.events.send(event).await;
                }
            }
            None => self.consider(info),
        }
    }

    fn consider(&mut self, info: Arc<PodInfo>) {
        let eligible = info.eligibility.is_eligible();
        if eligible && !info.has_network() {
            return self.means.registry.outside(&info, Standing::Pending, info.lack().into());
        }
        let captured = self.take_captured(&info).or_else(|| self.blocked_since(&info));
        if !eligible && (captured.is_none() || info.netns.is_none()) {
            captured.iter().for_each(|entry| self.free(&info, entry));
            self.outside.insert(info.uid.clone());
            let standing = if info.eligibility.is_refused() { Standing::Refused } else { Standing::Ignored };
            return self.means.registry.outside(&info, standing, info.eligibility.to_string());
        }
        let was_outside = self.outside.remove(&info.uid);
        let found = match captured {
            Some(_) => Found::Captured,
            None if self.synced && !was_outside => Found::Starting,
            None => Found::Running,
        };
        let (events, receiver) = mpsc::channel(WAITING);
        let begin = eligible.then_some(found);
        let first = (!self.synced).then(|| self.ready.awaits("enrolment of running pods"));
        tokio::spawn(enrolment::run(self.means.clone(), info.clone(), begin, receiver, first));
        self.running.insert(info.uid.clone(), Running { info, events });
    }

    /// The kernel's entry of a pod that does not belong into the mesh: the CNI plugin blocks a pod of which
    /// too little is known, and while no agent listens, it does so by itself.
    fn blocked_since(&self, info: &PodInfo) -> Option<Pod> {
        if info.eligibility.is_eligible() || !self.synced || info.addresses.is_empty() {
            return None;
        }
        let captured = self.means.redirector.captured().unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel does not say which pods are captured");
            Vec::new()
        });
        captured.into_iter().find(|pod| match info.netns.as_ref().map(Place::open) {
            Some(netns) => netns.is_ok_and(|netns| netns::cookie(&netns).is_ok_and(|own| own == pod.netns)),
            None => owns(info, pod),
        })
    }

    /// Frees a pod that does not belong into the mesh and whose namespace is not known: nothing but the
    /// kernel's entry can be undone.
    fn free(&self, info: &PodInfo, entry: &Pod) {
        match self.means.redirector.forget(entry) {
            Ok(()) => tracing::info!(
                pod = info.name(),
                "it was blocked and does not belong into the mesh: it is free"
            ),
            Err(error) => tracing::warn!(
                pod = info.name(), %error,
                "it stays blocked though it does not belong into the mesh"
            ),
        }
    }

    /// The kernel's entry of a pod: that of its network namespace, whatever its addresses, for what an agent
    /// of another version left has none here, and one with its address and another namespace is that of a
    /// pod before it. When the namespace cannot be told, the address decides: it counts as captured.
    fn take_captured(&mut self, info: &PodInfo) -> Option<Pod> {
        if self.captured.is_empty() {
            return None;
        }
        let namespace = info.netns.as_ref().and_then(|place| place.open().ok());
        let own = namespace.and_then(|file| netns::cookie(&file).ok());
        let cookie =
            own.or_else(|| self.captured.values().find(|pod| owns(info, pod)).map(|pod| pod.netns))?;
        self.captured.remove(&cookie)
    }

    async fn gone(&mut self, uid: &Arc<str>) {
        self.outside.remove(uid);
        self.means.registry.remove(uid);
        if let Some(running) = self.running.remove(uid) {
            // As above.
            let _ = running.events.send(Event::Deleted).await;
        }
    }

    fn forget_orphans(&mut self) {
        for (_, pod) in self.captured.drain() {
            match self.means.redirector.forget(&pod) {
                Ok(()) => tracing::info!(netns = pod.netns, "a pod that is gone was forgotten"),
                Err(error) => {
                    tracing::warn!(netns = pod.netns, %error, "a pod that is gone stays in the kernel")
                }
            }
        }
    }
}

/// Whether an entry has an address of the pod.
fn owns(info: &PodInfo, pod: &Pod) -> bool {
    let v4 = pod.v4.map(std::net::IpAddr::from);
    let v6 = pod.v6.map(std::net::IpAddr::from);
    info.addresses.iter().any(|ip| Some(*ip) == v4 || Some(*ip) == v6)
}
