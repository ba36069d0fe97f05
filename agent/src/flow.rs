//! One connection through the agent: what is known of it, how it is told to end, and its outcome,
//! recorded exactly once (invariant I-4).

mod record;

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
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
use mesh_net::{relay::Counters, task::Drain, telemetry::tcp};
use serde_json::{Value, json};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::member::Member;

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
    closing: RefCell<Option<Refusal>>,
    waker: RefCell<Option<Waker>>,
    /// Counters of its label set, once the flow is carried.
    pub handle: OnceCell<Rc<tcp::Handle>>,
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

    /// Admits the flow again; one that is not allowed any more is asked to end.
    fn recheck(&self, snapshot: &Snapshot) {
        if let Some(facts) = &*self.facts.borrow()
            && let Err(refusal) = inbound::admit(snapshot, facts)
        {
            self.close(Refusal::new(Reason::PolicyChanged, refusal.to_string()));
        }
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

/// The open flows of one worker.
pub struct Flows {
    open: RefCell<HashMap<u64, Rc<Flow>>>,
    next: Cell<u64>,
    recorder: Recorder,
    limit: usize,
    stop: Drain,
}

impl Flows {
    /// At most `limit` flows at a time; `stop` counts them.
    pub fn new(recorder: Recorder, limit: usize, stop: Drain) -> Rc<Self> {
        Rc::new(Self { open: RefCell::default(), next: Cell::new(0), recorder, limit, stop })
    }

    /// Begins a flow. It ends, and is recorded, when the guard is dropped.
    pub fn begin(
        self: &Rc<Self>,
        direction: Direction,
        member: Arc<Member>,
        client: SocketAddr,
    ) -> FlowGuard {
        let id = self.next.replace(self.next.get() + 1);
        let member_held = member.drain.hold();
        let flow = Rc::new(Flow {
            id,
            direction,
            member,
            client,
            opened: Instant::now(),
            counters: Counters::default(),
            told: Cell::default(),
            reversed: Cell::new(false),
            ends: RefCell::default(),
            facts: RefCell::default(),
            closing: RefCell::default(),
            waker: RefCell::default(),
            handle: OnceCell::new(),
            _held: [member_held, self.stop.hold()],
            outcome: RefCell::default(),
            announced: Cell::new(false),
        });
        self.open.borrow_mut().insert(id, flow.clone());
        FlowGuard { flow, flows: self.clone() }
    }

    /// Refuses when there are too many.
    ///
    /// # Errors
    /// `LimitReached`.
    pub fn room(&self) -> Result<(), Refusal> {
        let open = self.open.borrow().len();
        match open <= self.limit {
            true => Ok(()),
            false => Err(Refusal::new(
                Reason::LimitReached,
                format!("{} connections are open on this worker (--max-connections)", self.limit),
            )),
        }
    }

    /// Admits every inbound flow again, against a newer snapshot.
    pub fn recheck(&self, snapshot: &Snapshot) {
        self.open.borrow().values().for_each(|flow| flow.recheck(snapshot));
    }

    /// Asks the flows of one stay of a pod in the mesh to end; it may be in again since.
    pub fn close_member(&self, member: &Arc<Member>, refusal: &Refusal) {
        let open = self.open.borrow();
        open.values()
            .filter(|flow| Arc::ptr_eq(&flow.member, member))
            .for_each(|flow| flow.close(refusal.clone()));
    }

    /// Asks the flows of a pod to end.
    pub fn close_pod(&self, uid: &str, refusal: &Refusal) {
        let open = self.open.borrow();
        open.values()
            .filter(|flow| *flow.member.info.uid == *uid)
            .for_each(|flow| flow.close(refusal.clone()));
    }

    /// Tells metrics what open flows moved.
    pub fn tell(&self) {
        let open = self.open.borrow();
        open.values().filter(|flow| flow.announced.get()).for_each(|flow| self.recorder.moved(flow));
    }

    /// Number of open flows.
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `limit` flows, for people.
    pub fn show(&self, limit: usize) -> Vec<Value> {
        self.open.borrow().values().take(limit).map(|flow| flow.show()).collect()
    }
}

/// An open flow.
pub struct FlowGuard {
    flow: Rc<Flow>,
    flows: Rc<Flows>,
}

impl std::ops::Deref for FlowGuard {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl FlowGuard {
    /// Says in metrics that the flow is carried; once.
    pub fn carried(&self) {
        if !self.flow.announced.replace(true) {
            self.flows.recorder.opened(&self.flow);
        }
    }

    /// Ends the flow with an outcome.
    pub fn end(self, outcome: Result<(), Failure>) {
        *self.flow.outcome.borrow_mut() = Some(outcome);
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        self.flows.open.borrow_mut().remove(&self.flow.id);
        let outcome = self.flow.outcome.borrow_mut().take().unwrap_or_else(|| {
            // Its task was dropped: only a drain whose deadline passed does that.
            let refusal = Refusal::new(Reason::DrainDeadline, "the flow outlived its drain");
            Err(Failure { stage: Stage::Relay, refusal })
        });
        self.carried();
        self.flows.recorder.closed(&self.flow, &outcome);
    }
}
