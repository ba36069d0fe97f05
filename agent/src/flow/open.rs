//! The open flows of a data thread: counted, shown, asked to end, and recorded when they do.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use mesh_core::{
    outcome::{Reason, Refusal, Stage},
    snapshot::Snapshot,
};
use mesh_net::{relay::Counters, task::Drain};
use serde_json::Value;

use super::{Direction, Failure, Flow, Recorder};
use crate::member::Member;

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
            doubted: Cell::default(),
            closing: RefCell::default(),
            waker: RefCell::default(),
            handle: OnceCell::new(),
            load: RefCell::default(),
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

    /// Admits every inbound flow again, against a newer snapshot. When some wait for a policy that is not
    /// known, this is when to look again at the latest.
    pub fn recheck(&self, snapshot: &Snapshot, now: Instant) -> Option<Instant> {
        self.open.borrow().values().filter_map(|flow| flow.recheck(snapshot, now)).min()
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
