//! Changes at a given rate, each timed from the API server's acknowledgement to every client.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use mesh_core::{
    model::{Health, WorkloadUid},
    snapshot::Snapshot,
};
use mesh_net::store::SnapshotStore;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{self, MissedTickBehavior},
};

use super::{
    api::{Api, Write},
    fleet::{Fleet, Pod},
};

/// A change that is not there after this long is lost.
const LIMIT: Duration = Duration::from_secs(60);

/// What is changed in turn: of five changes two are of readiness, one is of a label, and a pod is replaced.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Readiness,
    Label,
    Deletion,
    Creation,
}

const TURNS: [Kind; 5] = [Kind::Readiness, Kind::Label, Kind::Readiness, Kind::Deletion, Kind::Creation];

/// What a change looks like to a client.
#[derive(Debug, Clone)]
enum Seen {
    Health(Health),
    Revision(String),
    There,
    Gone,
}

impl Seen {
    fn holds(&self, uid: &WorkloadUid, world: &Snapshot) -> bool {
        match (self, world.workload(uid)) {
            (Self::Gone, workload) => workload.is_none(),
            (_, None) => false,
            (Self::There, Some(_)) => true,
            (Self::Health(health), Some(workload)) => workload.health == *health,
            (Self::Revision(text), Some(workload)) => *workload.canonical_revision == **text,
        }
    }
}

/// What became of a change.
struct Fate {
    /// How long the API server took; none when it refused.
    write: Option<Duration>,
    /// How long after that each client knew of it.
    arrivals: Vec<Duration>,
    /// Clients that never did.
    lost: usize,
}

/// What became of all changes.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of each acknowledged change, how long the API server took.
    pub writes: Vec<Duration>,
    /// Of each change and client, the time from the acknowledgement.
    pub arrivals: Vec<Duration>,
    /// Changes that the API server refused.
    pub refused: usize,
    /// Changes that did not reach a client, counted per client.
    pub lost: usize,
}

/// Makes changes.
pub struct Churn {
    api: Api,
    stores: Vec<Arc<SnapshotStore>>,
    fleet: Fleet,
    /// Pods of which every client knows what the API server knows.
    idle: Mutex<VecDeque<Pod>>,
}

/// Changes of which some are still on their way.
pub struct Changes(JoinSet<Fate>);

impl Churn {
    /// Changes pods of a fleet that all clients hold.
    pub fn new(api: Api, stores: Vec<Arc<SnapshotStore>>, fleet: Fleet) -> Arc<Self> {
        Arc::new(Self { api, stores, fleet, idle: Mutex::new(fleet.first_pods().collect()) })
    }

    /// Starts `rate` changes a second for a while, whether or not earlier ones have arrived. A pod is left
    /// alone until its last change has arrived everywhere: when there is none, a change is left out.
    pub async fn run(self: Arc<Self>, rate: u32, period: Duration) -> Changes {
        let mut running = JoinSet::new();
        let mut ticks = time::interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (end, mut turns) = (Instant::now() + period, TURNS.iter().cycle());
        let mut serial = self.fleet.pods;
        ticks.tick().await;
        while Instant::now() < end {
            let kind = turns.next().copied().unwrap_or(Kind::Readiness);
            let pod = match kind {
                Kind::Creation => {
                    serial += 1;
                    Some(self.fleet.pod(serial - 1))
                }
                _ => self.idle().pop_front(),
            };
            if let Some(pod) = pod {
                running.spawn(self.clone().change(kind, pod, serial));
            }
            ticks.tick().await;
        }
        Changes(running)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, VecDeque<Pod>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change(self: Arc<Self>, kind: Kind, mut pod: Pod, serial: u32) -> Fate {
        let (before, write, seen) = match kind {
            Kind::Readiness => {
                pod.ready = !pod.ready;
                let health = if pod.ready { Health::Healthy } else { Health::Unhealthy };
                (None, pod.status(), Seen::Health(health))
            }
            Kind::Label => {
                // A label that is unlike any before, so that what arrives is this change and no other.
                let revision = format!("v-{serial}-{}", pod.address());
                (None, pod.label("version", &revision), Seen::Revision(revision))
            }
            Kind::Deletion => (None, pod.delete(), Seen::Gone),
            Kind::Creation => {
                let mut writes = pod.create().into_iter();
                let first = writes.next();
                (first, writes.next().unwrap_or_else(|| pod.status()), Seen::There)
            }
        };
        // Clients may know before the API server's answer is here: they are watched from before the request.
        let waiting: Vec<_> = self.stores.iter().map(|store| arrival(store.clone(), &pod, &seen)).collect();
        let fate = match self.write(before, write).await {
            Ok((took, at)) => arrived(waiting, took, at).await,
            Err(error) => {
                eprintln!("{kind:?} of {:?} is refused: {error:#}", pod.uid());
                waiting.iter().for_each(JoinHandle::abort);
                Fate { write: None, arrivals: Vec::new(), lost: 0 }
            }
        };
        if !matches!(kind, Kind::Deletion) && fate.lost == 0 && fate.write.is_some() {
            self.idle().push_back(pod);
        }
        fate
    }

    /// How long the write took that clients see, and when it was acknowledged.
    async fn write(&self, before: Option<Write>, write: Write) -> Result<(Duration, Instant)> {
        if let Some(before) = before {
            self.api.write(&before).await?;
        }
        let sent = Instant::now();
        self.api.write(&write).await?;
        let at = Instant::now();
        Ok((at - sent, at))
    }
}

fn arrival(store: Arc<SnapshotStore>, pod: &Pod, seen: &Seen) -> JoinHandle<Option<Instant>> {
    let (uid, seen) = (pod.uid(), seen.clone());
    tokio::spawn(async move {
        let mut worlds = store.subscribe();
        let there = time::timeout(LIMIT, worlds.wait_for(|world| seen.holds(&uid, world))).await;
        there.is_ok_and(|seen| seen.is_ok()).then(Instant::now)
    })
}

async fn arrived(waiting: Vec<JoinHandle<Option<Instant>>>, took: Duration, at: Instant) -> Fate {
    let mut fate = Fate { write: Some(took), arrivals: Vec::new(), lost: 0 };
    for one in waiting {
        match one.await {
            Ok(Some(then)) => fate.arrivals.push(then.saturating_duration_since(at)),
            _ => fate.lost += 1,
        }
    }
    fate
}

impl Changes {
    /// Waits until every change has arrived or is lost.
    pub async fn outcome(mut self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        while let Some(fate) = self.0.join_next().await {
            let fate = fate?;
            outcome.refused += usize::from(fate.write.is_none());
            outcome.writes.extend(fate.write);
            outcome.arrivals.extend(fate.arrivals);
            outcome.lost += fate.lost;
        }
        Ok(outcome)
    }
}
