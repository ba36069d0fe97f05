//! The life of one pod in the mesh: carries out what `mesh_core::enrol` says.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use mesh_core::{
    enrol::{Action, Enrolment, Event, Found, State},
    error::chain,
    identity::Identity,
    outcome::{Reason, Refusal},
};
use mesh_net::{
    ca::{CertState, SignError},
    task::{Drain, Pending},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Means, linger::close_until_gone};
use crate::{
    listeners::{self, Listeners},
    member::Member,
    netns::Place,
    pods::{AnnounceError, PodInfo},
    redirect::Target,
    registry::Standing,
    routing,
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Peers may use a tunnel for this long after the pod was withdrawn: the news has to reach them.
const SETTLE: Duration = Duration::from_secs(2);
/// Open flows of a pod that leaves the mesh alive end when they like (decision 0024).
const NO_DEADLINE: Duration = Duration::MAX;
/// Flows of a pod that was deleted get this long to notice that they are closed.
const CLOSE: Duration = Duration::from_millis(500);

struct Life {
    means: Arc<Means>,
    info: Arc<PodInfo>,
    target: Option<Arc<Target>>,
    listeners: Vec<Listeners>,
    certificate: Option<watch::Receiver<CertState>>,
    /// Why there is none.
    uncertified: Option<SignError>,
    member: Option<Arc<Member>>,
    /// Groups of flows of the times that the pod was in the mesh before and has left it.
    leaving: Vec<Drain>,
    deleted: bool,
    /// Says that the flows of the first so many of `leaving` have ended.
    done: mpsc::Sender<usize>,
}

/// Carries a pod into the mesh and out of it. `begin` says how it was found; none that it is captured
/// but does not belong into the mesh any more. `first` is dropped when it is in for the first time, or
/// when a step has failed or its certificate was refused: one pod's trouble does not make a node unready
/// for ever. A certificate authority that is away is no pod's own trouble.
pub(super) async fn run(
    means: Arc<Means>,
    info: Arc<PodInfo>,
    begin: Option<Found>,
    mut events: mpsc::Receiver<Event>,
    mut first: Option<Pending>,
) {
    let (mut enrolment, actions) = begin.map_or_else(Enrolment::abandon, Enrolment::begin);
    let mut queue = VecDeque::from(actions);
    let (done, mut finished) = mpsc::channel(4);
    let mut life = Life::new(means, info, done);
    let mut retry = Retry::default();
    while enrolment.state() != State::Gone || !queue.is_empty() {
        life.show(&enrolment, retry.failed.as_deref());
        if retry.failed.is_some() || life.is_refused() || !enrolment.state().is_inward() {
            drop(first.take());
        }
        if retry.is_due()
            && let Some(action) = queue.front().copied()
        {
            match life.perform(action).await {
                Ok(event) => {
                    queue.pop_front();
                    retry = Retry::default();
                    queue.extend(event.into_iter().flat_map(|event| enrolment.on(event)));
                }
                Err(reason) => retry.after(&life.info, action, &reason),
            }
            continue;
        }
        let event = tokio::select! {
            event = events.recv() => event,
            ended = finished.recv() => match ended {
                Some(groups) if groups == life.leaving.len() => Some(Event::Drained),
                // It was in the mesh again since then.
                _ => continue,
            },
            state = certificate(life.certificate.as_mut()) => Some(life.certified(&state)),
            () = sleep_until(retry.at) => continue,
        };
        // The supervisor keeps the sender while the pod exists: without it, the agent stops.
        let Some(event) = event else { return };
        life.deleted |= event == Event::Deleted;
        let next = enrolment.on(event);
        if matches!(event, Event::Deleted | Event::Ineligible | Event::Eligible) && !next.is_empty() {
            // The way has changed: what was still to be done is not any more.
            queue.clear();
            retry.at = None;
        }
        queue.extend(next);
    }
    if !life.deleted {
        life.means.registry.outside(&life.info, Standing::Ignored, "it has left the mesh".into());
    }
}

/// When a step that failed is tried again.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    wait: Option<Duration>,
    failed: Option<String>,
}

impl Retry {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at <= Instant::now())
    }

    fn after(&mut self, pod: &PodInfo, action: Action, reason: &str) {
        tracing::warn!(pod = pod.name(), ?action, reason, "enrolment step failed; it is repeated");
        let wait = self.wait.map_or(FIRST_RETRY, |wait| (wait * 2).min(LAST_RETRY));
        self.failed = Some(format!("{action:?}: {reason}"));
        (self.at, self.wait) = (Some(Instant::now() + wait), Some(wait));
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The next change of a certificate.
async fn certificate(receiver: Option<&mut watch::Receiver<CertState>>) -> CertState {
    if let Some(receiver) = receiver
        && receiver.changed().await.is_ok()
    {
        return receiver.borrow_and_update().clone();
    }
    std::future::pending().await
}

impl Life {
    fn new(means: Arc<Means>, info: Arc<PodInfo>, done: mpsc::Sender<usize>) -> Self {
        Self {
            means,
            info,
            target: None,
            listeners: Vec::new(),
            certificate: None,
            uncertified: None,
            member: None,
            leaving: Vec::new(),
            deleted: false,
            done,
        }
    }

    fn show(&self, enrolment: &Enrolment, failed: Option<&str>) {
        if self.deleted {
            return;
        }
        let awaits = Some(enrolment.awaits()).filter(|what| *what != "nothing");
        let reason = failed
            .map(str::to_owned)
            .or_else(|| self.uncertified.as_ref().map(|error| format!("awaits certificate: {error}")))
            .or_else(|| awaits.map(|what| format!("awaits {what}")));
        self.means.registry.set(&self.info, enrolment.state(), reason);
        if let Some(target) = &self.target {
            self.means.registry.found(&self.info.uid, target.cookie);
        }
    }

    async fn perform(&mut self, action: Action) -> Result<Option<Event>, String> {
        tracing::debug!(pod = self.info.name(), ?action, "enrolment");
        match action {
            Action::Block => {
                let (target, redirector) = (self.target()?, self.means.redirector.clone());
                blocking(move || redirector.block(&target)).await.map(|()| None)
            }
            Action::BindListeners => self.bind().await.map(Some),
            Action::RequestCertificate => Ok(Some(self.request_certificate())),
            Action::Capture => self.capture().await.map(Some),
            Action::Announce => self.announce(true).await.map(|()| None),
            Action::Withdraw => self.announce(false).await.map(|()| Some(Event::Withdrawn)),
            Action::Release => {
                let (target, redirector) = (self.target()?, self.means.redirector.clone());
                blocking(move || redirector.release(&target)).await.map(|()| Some(Event::CaptureOff))
            }
            Action::Drain => {
                self.drain();
                Ok(None)
            }
            Action::CloseFlows => {
                self.close_flows().await;
                Ok(None)
            }
            Action::CleanUp => self.clean_up().await.map(|()| None),
            Action::RetryLater => Ok(None),
        }
    }

    fn target(&mut self) -> Result<Arc<Target>, String> {
        if let Some(target) = &self.target {
            return Ok(target.clone());
        }
        let place = self.info.netns.as_ref().ok_or("it has no network namespace")?;
        let target = Target::open(place, &self.info.addresses).map_err(|error| chain(&error))?;
        Ok(self.target.insert(Arc::new(target)).clone())
    }

    async fn bind(&mut self) -> Result<Event, String> {
        let target = self.target()?;
        let failed = |error: std::io::Error| error.to_string();
        routing::set_up(&target.netns, target.pod.v6.is_some()).await.map_err(failed)?;
        let workers = self.means.workers.len();
        self.listeners = listeners::bind(&target.netns, workers).map_err(failed)?;
        Ok(Event::ListenersBound)
    }

    fn identity(&self) -> Identity {
        let pod = &self.info.pod;
        Identity::new(self.means.trust_domain.clone(), pod.namespace.clone(), pod.service_account.clone())
    }

    /// Follows the certificate; it may be there already, for another pod of the same account.
    fn request_certificate(&mut self) -> Event {
        let mut receiver = (self.means.certificates)(&self.identity());
        let state = receiver.borrow_and_update().clone();
        self.certificate = Some(receiver);
        self.certified(&state)
    }

    /// Notes what became of the certificate.
    fn certified(&mut self, state: &CertState) -> Event {
        let error = match state {
            CertState::Unavailable(error) => Some(error.clone()),
            _ => None,
        };
        if let Some(error) = error.as_ref().filter(|_| self.uncertified != error) {
            tracing::warn!(pod = self.info.name(), identity = %self.identity(), %error, "no certificate; it is asked for again");
        }
        self.uncertified = error;
        match state {
            CertState::Ready(_) => Event::CertificateReady,
            _ => Event::CertificateLost,
        }
    }

    /// Whether the certificate authority will not have this pod.
    fn is_refused(&self) -> bool {
        matches!(&self.uncertified, Some(SignError::Refused { .. } | SignError::BadAnswer { .. }))
    }

    async fn capture(&mut self) -> Result<Event, String> {
        let target = self.target()?;
        let certificate = self.certificate.clone().ok_or("it has no certificate")?;
        let (redirector, to) = (self.means.redirector.clone(), target.clone());
        let listeners = std::mem::take(&mut self.listeners);
        let (listeners, result) = tokio::task::spawn_blocking(move || {
            let result = listeners.first().map(|first| redirector.capture(&to, first));
            (listeners, result)
        })
        .await
        .map_err(|error| error.to_string())?;
        if let Some(Err(error)) = result {
            self.listeners = listeners;
            return Err(chain(&error));
        }
        let member = Arc::new(Member {
            info: self.info.clone(),
            identity: self.identity(),
            target,
            certificate,
            drain: self.means.stop.child(),
        });
        let before = self.member.replace(member.clone());
        for (worker, listeners) in self.means.workers.iter().zip(listeners) {
            worker.serve(member.clone(), listeners).await;
        }
        if let Some(before) = before {
            // The label was back before it had left: its old listeners close, and its flows go on.
            self.leaving.push(before.drain.clone());
            tokio::spawn(async move { before.drain.finish(NO_DEADLINE).await });
        }
        Ok(Event::CaptureOn)
    }

    async fn announce(&self, enrolled: bool) -> Result<(), String> {
        match self.means.source.announce(&self.info, enrolled).await {
            // Without an object nothing is announced.
            Err(AnnounceError::NoObject(_)) if !enrolled => Ok(()),
            result => result.map_err(|error| chain(&error)),
        }
    }

    /// The latest of these waits for the groups of all before it too: what follows undoes the routing
    /// that each of their flows needs.
    fn drain(&mut self) {
        self.listeners.clear();
        self.leaving.extend(self.member.take().map(|member| member.drain.clone()));
        let (leaving, done) = (self.leaving.clone(), self.done.clone());
        tokio::spawn(async move {
            if !leaving.is_empty() {
                tokio::time::sleep(SETTLE).await;
            }
            for group in &leaving {
                group.finish(NO_DEADLINE).await;
            }
            // The pod may be gone already.
            let _ = done.send(leaving.len()).await;
        });
    }

    async fn close_flows(&mut self) {
        let refusal = Refusal::new(Reason::PodGone, format!("pod {} was deleted", self.info.name()));
        for worker in &self.means.workers {
            worker.close(self.info.uid.clone(), refusal.clone()).await;
        }
        self.leaving.extend(self.member.take().map(|member| member.drain.clone()));
        for group in self.leaving.drain(..) {
            if !group.finish(CLOSE).await {
                tracing::debug!("flows of a deleted pod were dropped");
            }
        }
    }

    async fn clean_up(&mut self) -> Result<(), String> {
        self.listeners.clear();
        (self.certificate, self.uncertified) = (None, None);
        let Ok(target) = self.target() else { return Ok(()) };
        if self.deleted
            && let Some(Place::Open(netns)) = &self.info.netns
        {
            // Its object is gone; its processes may not be yet.
            let redirector = self.means.redirector.clone();
            tokio::spawn(close_until_gone(redirector, target, netns.clone()));
            return Ok(());
        }
        let (redirector, from) = (self.means.redirector.clone(), target.clone());
        blocking(move || redirector.release(&from)).await?;
        // The network of a deleted pod goes with it.
        match routing::remove(&target.netns, target.pod.v6.is_some()).await {
            Err(error) if !self.deleted => Err(error.to_string()),
            _ => Ok(()),
        }
    }
}

async fn blocking<E>(work: impl FnOnce() -> Result<(), E> + Send + 'static) -> Result<(), String>
where
    E: std::error::Error + Send + 'static,
{
    let result = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    result.map_err(|error| chain(&error))
}
