//! Connections kept per source and destination workload, on one thread.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use mesh_core::{
    hbone::Authority,
    identity::Identity,
    model::WorkloadUid,
    outcome::{Reason, Refusal},
};

use super::{
    CONNECTION_WINDOW, HboneStream, STREAM_WINDOW,
    client::{Client, Head},
};

/// Connections per key that are opened so that small flows do not wait behind bulk ones.
const SPREAD: usize = 4;
/// Bulk streams of one connection whose receivers, if they all stop reading, leave room in its window.
const STALLING: u32 = CONNECTION_WINDOW / STREAM_WINDOW - 1;
/// Connections that are tried for one stream.
const ATTEMPTS: u32 = 4;

/// What a connection may be shared by: never across source identities or destination workloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The identity that it presents.
    pub source: Identity,
    /// The pod's address that it comes from.
    pub from: IpAddr,
    /// The workload that terminates it.
    pub peer: WorkloadUid,
    /// Identities of which the peer proved one. Part of the key, so that a change of what is expected
    /// never reuses a connection that was checked against something else.
    pub expected: Vec<Identity>,
    /// Where it goes.
    pub address: SocketAddr,
}

/// How many connections a pool keeps.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections per key. Beyond it flows share what there is, as far as the peer allows streams.
    pub per_key: usize,
    /// Connections of the pool. Beyond it the one that has been idle longest makes room; when none is
    /// idle, flows to where there is no connection yet are refused (`LimitReached`) and others share.
    pub total: usize,
}

impl Default for Limits {
    /// 100 connections per key (10,000 flows), 4096 in all.
    fn default() -> Self {
        Self { per_key: 100, total: 4096 }
    }
}

/// The connections of one thread. Those without streams end by themselves after
/// [`super::client::IDLE_LIMIT`].
#[derive(Default)]
pub struct Pool {
    limits: Limits,
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
    /// Dials under way, which count as connections.
    dialing: Cell<usize>,
}

impl Pool {
    /// With other limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Opens a stream on a kept connection, or on one that `dial` makes: one dial at a time per key, and
    /// who waited for a dial that failed gets its refusal. A stream that the peer has certainly not
    /// looked at (GOAWAY, refused) is opened again on another connection.
    ///
    /// # Errors
    /// What `dial` or [`Client::open`] met; `LimitReached`, see [`Limits`].
    pub async fn open<Fut>(
        &self,
        key: Key,
        authority: &Authority,
        head: Head,
        dial: impl Fn() -> Fut,
    ) -> Result<HboneStream, Refusal>
    where
        Fut: Future<Output = Result<Client, Refusal>>,
    {
        let slot = self.slots.borrow_mut().entry(key.clone()).or_default().clone();
        let opened = self.attempts(&slot, authority, head, dial).await;
        if opened.is_err() {
            self.forget_empty(&key, slot);
        }
        opened
    }

    async fn attempts<Fut>(
        &self,
        slot: &Slot,
        authority: &Authority,
        head: Head,
        dial: impl Fn() -> Fut,
    ) -> Result<HboneStream, Refusal>
    where
        Fut: Future<Output = Result<Client, Refusal>>,
    {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let client = match slot.pick(self.limits.per_key) {
                Some(client) => client,
                None => self.dial(slot, &dial).await?,
            };
            match client.try_open(authority, head.clone()).await {
                Err(unopened) if unopened.unprocessed && left > 0 => {}
                result => return result.map_err(|unopened| unopened.refusal),
            }
        }
    }

    async fn dial<Fut>(&self, slot: &Slot, dial: impl Fn() -> Fut) -> Result<Rc<Client>, Refusal>
    where
        Fut: Future<Output = Result<Client, Refusal>>,
    {
        let waiting_since = slot.failures.get();
        let _one = slot.dialing.lock().await;
        if let Some(client) = slot.pick(self.limits.per_key) {
            return Ok(client);
        }
        if slot.failures.get() != waiting_since
            && let Some(refusal) = &*slot.failure.borrow()
        {
            return Err(refusal.clone());
        }
        let Some(_place) = self.place() else {
            let full = || format!("{} connections to other pods, none of them idle", self.limits.total);
            return slot.least().ok_or_else(|| Refusal::new(Reason::LimitReached, full()));
        };
        match dial().await {
            Ok(client) => {
                let client = Rc::new(client);
                slot.clients.borrow_mut().push(client.clone());
                Ok(client)
            }
            Err(refusal) => {
                slot.failures.set(slot.failures.get() + 1);
                *slot.failure.borrow_mut() = Some(refusal.clone());
                Err(refusal)
            }
        }
    }

    /// Room for one more connection while the guard lives.
    fn place(&self) -> Option<Place<'_>> {
        if self.connections() + self.dialing.get() >= self.limits.total && !self.retire_idlest() {
            return None;
        }
        self.dialing.set(self.dialing.get() + 1);
        Some(Place(&self.dialing))
    }

    fn retire_idlest(&self) -> bool {
        let slots = self.slots.borrow();
        let clients = slots.values().flat_map(|slot| slot.clients.borrow().clone());
        let idle = clients.filter(|client| client.streams() == 0);
        let Some(idlest) = idle.min_by_key(|client| client.idle_since()) else { return false };
        idlest.retire();
        true
    }

    fn forget_empty(&self, key: &Key, slot: Rc<Slot>) {
        // Two: this one and the map's. More: somebody is dialling.
        if Rc::strong_count(&slot) == 2 && slot.clients.borrow().is_empty() {
            self.slots.borrow_mut().remove(key);
        }
    }

    /// Forgets connections to destinations that are gone; streams that exist go on.
    pub fn retain(&self, known: impl Fn(&Key) -> bool) {
        self.slots.borrow_mut().retain(|key, slot| {
            let keep = known(key);
            if !keep {
                slot.clients.borrow().iter().for_each(|client| client.retire());
            }
            keep
        });
    }

    /// Forgets connections that have ended, and what is kept per destination without any. Called at
    /// intervals by the owner; connections without streams end by themselves.
    pub fn release_idle(&self) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.clients.borrow_mut().retain(|client| !client.is_closed());
            !slot.clients.borrow().is_empty() || Rc::strong_count(slot) > 1
        });
    }

    /// Closes every connection for new streams: those without streams end now, the others with their last.
    pub fn close(&self) {
        self.retain(|_| false);
    }

    /// Connections that are kept.
    pub fn connections(&self) -> usize {
        let open = |slot: &Rc<Slot>| slot.clients.borrow().iter().filter(|c| !c.is_closed()).count();
        self.slots.borrow().values().map(open).sum()
    }
}

/// One connection that is being made.
struct Place<'a>(&'a Cell<usize>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The connections of one key.
#[derive(Default)]
struct Slot {
    clients: RefCell<Vec<Rc<Client>>>,
    dialing: tokio::sync::Mutex<()>,
    /// Dials that failed, and the last one's reason.
    failures: Cell<u64>,
    failure: RefCell<Option<Refusal>>,
}

impl Slot {
    /// The connection to use; none when another one should be dialled, so that small flows do not wait
    /// behind bulk ones: up to [`SPREAD`] connections for that, and more while each of them has so
    /// many bulk flows that their receivers could use up its window.
    fn pick(&self, per_key: usize) -> Option<Rc<Client>> {
        let best = self.least()?;
        let count = self.clients.borrow().len();
        let crowded = match best.bulk() {
            0 => false,
            bulk => count < SPREAD || bulk >= STALLING,
        };
        let full = best.streams() >= best.max_streams();
        (!(crowded || full) || count >= per_key).then_some(best)
    }

    /// The one with room and the fewest bulk streams, then the fewest streams.
    fn least(&self) -> Option<Rc<Client>> {
        let mut clients = self.clients.borrow_mut();
        clients.retain(|client| !client.is_closed());
        let busy =
            |client: &Rc<Client>| (client.streams() >= client.max_streams(), client.bulk(), client.streams());
        clients.iter().min_by_key(|client| busy(client)).cloned()
    }
}
