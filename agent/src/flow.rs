//! One connection through the agent: what is known of it, how it is told to end, and its outcome,
//! recorded exactly once (invariant I-4).

mod open;
mod record;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::Instant,
};

use mesh_core::{
    hbone::Authority,
    identity::Identity,
    inbound::{self, InboundFacts},
    model::{Service, Workload},
    outcome::{Path, Reason, Refusal, Stage},
    snapshot::Snapshot,
};
use mesh_net::{load::LoadGuard, relay::Counters, telemetry::tcp};
use serde_json::{Value, json};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::member::Member;

pub use open::{FlowGuard, Flows};
pub use record::{Families, Recorder};

/// Who opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The pod.
    Outbound,
    /// Somebody else, towards the pod.
    Inbound,
}

impl Direction {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// The ends of a flow as far as they are known: filled in as decisions are taken.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// Where the client wanted to go.
    pub original: Option<SocketAddr>,
    /// Where the bytes went: endpoint, application or tunnel.
    pub upstream: Option<SocketAddr>,
    /// The client's workload.
    pub source: Option<Arc<Workload>>,
    /// The destination's workload; a waypoint instance when `path` is waypoint.
    pub destination: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// Proven identity of the client.
    pub source_identity: Option<Identity>,
    /// Proven identity of the destination.
    pub destination_identity: Option<Identity>,
    /// The way of the bytes.
    pub path: Option<Path>,
    /// Authority of the tunnel's CONNECT request.
    pub authority: Option<Authority>,
    /// Version of the snapshot that decided.
    pub snapshot: Option<u64>,
}

/// A flow that did not end in order.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Where in its life.
    pub stage: Stage,
    /// Why.
    pub refusal: Refusal,
}

/// Makes a refusal a failure of a stage.
pub fn at(stage: Stage) -> impl Fn(Refusal) -> Failure {
    move |refusal| Failure { stage, refusal }
}

/// See the module's description.
pub struct Flow {
    /// Unique within its worker.
    pub id: u64,
    /// Who opened it.
    pub direction: Direction,
    /// The pod of this node.
    pub member: Arc<Member>,
    /// The client's address.
    pub client: SocketAddr,
    /// When it was accepted.
    pub opened: Instant,
    /// Bytes so far, as the relay counts them: see [`Flow::bytes`].
    pub counters: Counters,
    /// Bytes that metrics know of already.
    pub told: Cell<(u64, u64)>,
    reversed: Cell<bool>,
    /// What is known of its ends.
    pub ends: RefCell<Ends>,
    facts: RefCell<Option<InboundFacts>>,
    /// Since when a policy that it needs is not known.
    doubted: Cell<Option<Instant>>,
    closing: RefCell<Option<Refusal>>,
    waker: RefCell<Option<Waker>>,
    /// Counters of its label set, once the flow is carried.
    pub handle: OnceCell<Rc<tcp::Handle>>,
    /// Counts it at its endpoint, once one is chosen.
    pub load: RefCell<Option<LoadGuard>>,
    _held: [TaskTrackerToken; 2],
    outcome: RefCell<Option<Result<(), Failure>>>,
    announced: Cell<bool>,
}

impl Flow {
    /// The relay's first stream is the application's, not the client's.
    pub fn reverse(&self) {
        self.reversed.set(true);
    }

    /// Bytes so far, as the client sees them: sent, received.
    pub fn bytes(&self) -> (u64, u64) {
        let (sent, received) = (self.counters.sent.get(), self.counters.received.get());
        if self.reversed.get() { (received, sent) } else { (sent, received) }
    }

    /// Asks it to end.
    pub fn close(&self, refusal: Refusal) {
        self.closing.borrow_mut().get_or_insert(refusal);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Completes when it was asked to end. One task at a time waits for it: the flow's own.
    pub async fn closed(&self) -> Refusal {
        poll_fn(|cx| match &*self.closing.borrow() {
            Some(refusal) => Poll::Ready(refusal.clone()),
            None => {
                let mut waker = self.waker.borrow_mut();
                if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// From now on policy changes are checked with these facts.
    pub fn recheck_with(&self, facts: InboundFacts) {
        *self.facts.borrow_mut() = Some(facts);
    }

    /// Admits the flow again; one that is not allowed any more is asked to end. A policy that is named
    /// and not known has a moment to arrive: then this is when to look again at the latest.
    fn recheck(&self, snapshot: &Snapshot, now: Instant) -> Option<Instant> {
        let facts = self.facts.borrow();
        let refused = inbound::admit(snapshot, facts.as_ref()?).err();
        let Some(refusal) = refused else {
            self.doubted.set(None);
            return None;
        };
        if refusal.reason == Reason::PolicyUnknown {
            let since = self.doubted.get().unwrap_or(now);
            self.doubted.set(Some(since));
            let until = since + refusal.reason.hold().unwrap_or_default();
            if now < until {
                return Some(until);
            }
        }
        self.close(Refusal::new(Reason::PolicyChanged, refusal.to_string()));
        None
    }

    /// As `/debug/connections` shows it.
    fn show(&self) -> Value {
        let ends = self.ends.borrow();
        let (sent, received) = self.bytes();
        let workload = |w: &Option<Arc<Workload>>| w.as_ref().map(|w| w.uid.to_string());
        json!({
            "direction": self.direction.as_str(),
            "pod": self.member.info.name(),
            "client": self.client,
            "destination": ends.original,
            "upstream": ends.upstream,
            "path": ends.path.map(Path::as_str),
            "source_workload": workload(&ends.source),
            "destination_workload": workload(&ends.destination),
            "service": ends.service.as_ref().map(|s| s.key.hostname.to_string()),
            "source_identity": ends.source_identity,
            "destination_identity": ends.destination_identity,
            "bytes_sent": sent,
            "bytes_received": received,
            "seconds": self.opened.elapsed().as_secs_f64(),
        })
    }
}
