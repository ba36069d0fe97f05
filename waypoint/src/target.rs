//! What a worker keeps for one endpoint of one destination: connections, waiters, requests under way.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
};

use hyper::client::conn::{http1, http2};
use mesh_core::{balance::Endpoint, identity::Identity, model::WorkloadUid};
use tokio::sync::{Mutex, Notify};

use crate::{body::Outgoing, limits::Destination};

/// Idle HTTP/1 connections kept per endpoint of a destination.
const IDLE: usize = 128;

/// A connection that takes one request at a time.
pub(crate) struct One {
    pub(crate) send: http1::SendRequest<Outgoing>,
    pub(crate) served: u32,
}

/// A connection that takes many.
#[derive(Clone)]
pub(crate) struct Many {
    pub(crate) send: http2::SendRequest<Outgoing>,
    pub(crate) served: Rc<Cell<u32>>,
}

/// One endpoint of one destination.
#[derive(Default)]
pub struct Target {
    one: RefCell<Vec<One>>,
    pub(crate) many: RefCell<Option<Many>>,
    /// Held while the HTTP/2 connection is made: one at a time.
    pub(crate) connecting: Mutex<()>,
    /// Connections that are open or being opened.
    pub(crate) open: Cell<u32>,
    /// Told when a connection becomes free or closes.
    pub(crate) freed: Notify,
    active: Cell<u32>,
}

/// One request or flow under way.
pub struct ActiveGuard(Rc<Target>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

impl Target {
    /// Counts a request or flow until the guard is dropped.
    pub fn enter(self: &Rc<Self>) -> ActiveGuard {
        self.active.set(self.active.get() + 1);
        ActiveGuard(self.clone())
    }

    /// Requests and flows under way.
    pub fn active(&self) -> u32 {
        self.active.get()
    }

    /// The connection used last that is free: the others may grow old and close.
    pub(crate) fn idle(&self) -> Option<One> {
        let mut one = self.one.borrow_mut();
        match one.iter().rposition(|kept| kept.send.is_ready()) {
            Some(at) => Some(one.remove(at)),
            None => {
                one.retain(|kept| !kept.send.is_closed());
                None
            }
        }
    }

    /// Keeps a connection; it may still be busy with its answer.
    pub(crate) fn keep(&self, one: One) {
        let mut list = self.one.borrow_mut();
        if list.len() >= IDLE {
            list.retain(|kept| !kept.send.is_closed());
        }
        if list.len() < IDLE {
            list.push(one);
        }
        drop(list);
        self.freed.notify_one();
    }
}

/// What may share connections: never across destinations, because their limits differ, nor across
/// addresses and identities of a workload.
type Key = (Destination, WorkloadUid, Option<IpAddr>, u16, Identity);

/// The targets of one worker; they outlive the snapshot that they were found in.
#[derive(Default)]
pub struct Targets(RefCell<HashMap<Key, Rc<Target>>>);

impl Targets {
    /// The target for an endpoint of a destination.
    pub fn of(&self, destination: &Destination, endpoint: &Endpoint) -> Rc<Target> {
        let Endpoint { workload, port } = endpoint;
        let address = workload.addresses.first().copied();
        let key = (destination.clone(), workload.uid.clone(), address, *port, workload.identity());
        self.0.borrow_mut().entry(key).or_default().clone()
    }

    /// Drops those that no snapshot and no request refers to any more, with their idle connections.
    pub fn sweep(&self) {
        self.0.borrow_mut().retain(|_, target| Rc::strong_count(target) > 1);
    }
}
