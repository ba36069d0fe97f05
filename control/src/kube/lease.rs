//! Who of several replicas writes (decision 0039): the holder of a Lease. All replicas serve; statuses, the
//! trust bundle, the root's rotation and waypoints are written by the holder only.

mod election;

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use self::election::{Election, Seen, Step};

/// Name of the Lease object.
pub const NAME: &str = "culvert-control";
/// Others wait this long after the holder's last sign of life.
const DURATION: Duration = Duration::from_secs(15);
/// The holder stops writing when it could not renew for this long: before others may start.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time between attempts.
const RETRY: Duration = Duration::from_secs(2);
/// Longest request.
const REQUEST: Duration = Duration::from_secs(4);

/// Our part in the election; dropping it ends it without giving the lease back.
#[derive(Debug)]
pub struct Lease {
    /// Whether this process holds the lease.
    pub held: watch::Receiver<bool>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Lease {
    /// Ends, and lets go of the lease so that another replica need not wait for it to run out.
    pub async fn release(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = timeout(REQUEST, &mut self.task).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes part in the election, in the namespace of the control plane. `identity` must be of this process
/// alone; two processes of one identity would both write.
pub fn start(client: Client, namespace: &str, identity: String) -> Lease {
    let (held, receiver) = watch::channel(false);
    let (stop, stopped) = oneshot::channel();
    let candidate = Candidate {
        leases: Api::namespaced(client, namespace),
        election: Election::new(identity.into(), DURATION, DEADLINE),
        held,
    };
    let task = tokio::spawn(candidate.run(stopped));
    Lease { held: receiver, stop: Some(stop), task }
}

/// Does the work again and again while the lease is held; drops it, requests under way included, the moment
/// that it is lost. Ends when the election does.
pub async fn while_held<F: Future<Output = ()>>(
    held: &mut watch::Receiver<bool>,
    mut work: impl FnMut() -> F,
) {
    while held.wait_for(|held| *held).await.is_ok() {
        let mut lost = held.clone();
        tokio::select! {
            lost = lost.wait_for(|held| !held) => if lost.is_err() { return },
            () = work() => {}
        }
    }
}

struct Candidate {
    leases: Api<Object>,
    election: Election,
    held: watch::Sender<bool>,
}

impl Candidate {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let again = Instant::now() + RETRY;
            // A renewal that takes longer than the deadline must not keep us writing: a timer of its own.
            let (held, ends) = (self.held.clone(), self.deadline());
            let outcome = {
                let attempt = timeout(REQUEST, self.attempt());
                tokio::pin!(attempt);
                tokio::select! {
                    _ = &mut stopped => break,
                    outcome = &mut attempt => outcome,
                    () = until(ends) => {
                        held.send_if_modified(|held| std::mem::replace(held, false));
                        attempt.await
                    }
                }
            };
            let failed = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", REQUEST.as_secs())));
            if let Err(error) = failed {
                tracing::warn!(error, "lease {NAME} cannot be read or renewed");
            }
            self.tell();
            tokio::select! {
                _ = &mut stopped => break,
                () = sleep_until(again) => {}
                () = until(self.deadline()) => self.tell(),
            }
        }
        self.held.send_replace(false);
        if let Err(error) = self.let_go().await {
            tracing::debug!(error, "lease not given back; it runs out by itself");
        }
    }

    /// When writing must stop, if it is allowed now.
    fn deadline(&self) -> Option<Instant> {
        let held = *self.held.borrow();
        self.election.ends().filter(|_| held)
    }

    fn tell(&self) {
        let now = self.election.holds(Instant::now());
        if self.held.send_if_modified(|held| std::mem::replace(held, now) != now) {
            match now {
                true => tracing::info!(identity = %self.election.me(), "lease held: this replica writes"),
                false => tracing::warn!(identity = %self.election.me(), "lease lost: another replica writes"),
            }
        }
    }

    /// One look at the lease and what follows from it.
    async fn attempt(&mut self) -> Result<(), String> {
        let found = self.leases.get_opt(NAME).await.map_err(|error| error.to_string())?;
        // Before the request: the renewal counts from when it was sent.
        let now = Instant::now();
        let step = self.election.step(found.as_ref().map(seen).as_ref(), now);
        let written = match (step, found) {
            (Step::Wait, _) => return Ok(()),
            (Step::Create, _) | (Step::Take | Step::Renew, None) => {
                let lease = Object {
                    metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
                    spec: Some(self.spec(None, Step::Take)),
                };
                self.leases.create(&PostParams::default(), &lease).await
            }
            (step, Some(mut lease)) => {
                // The version that was read goes along: of two that take it one gets a conflict.
                lease.spec = Some(self.spec(lease.spec.take(), step));
                self.leases.replace(NAME, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => {
                self.election.renewed(now);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn spec(&self, before: Option<LeaseSpec>, step: Step) -> LeaseSpec {
        let before = before.unwrap_or_default();
        let now = Some(MicroTime(Timestamp::now()));
        let taken = step == Step::Take;
        LeaseSpec {
            holder_identity: Some(self.election.me().into()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: now.clone(),
            acquire_time: if taken { now } else { before.acquire_time.clone() },
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(taken)),
            ..before
        }
    }

    async fn let_go(&mut self) -> Result<(), String> {
        if !self.election.holds(Instant::now()) {
            return Ok(());
        }
        let failed = |error: kube::Error| error.to_string();
        let Some(mut lease) = self.leases.get_opt(NAME).await.map_err(failed)? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.election.me()) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.leases.replace(NAME, &PostParams::default(), &lease).await.map(drop).map_err(failed)
    }
}

fn seen(lease: &Object) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    Seen {
        holder: spec.holder_identity.unwrap_or_default().into(),
        version: lease.metadata.resource_version.clone().unwrap_or_default().into(),
        duration: spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs),
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// An identity of this process: the pod's name and something that a restart in the same pod does not share.
pub fn identity(pod: &str) -> String {
    format!("{pod}_{:016x}", rand::random::<u64>())
}
