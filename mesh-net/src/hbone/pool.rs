//! Connections kept per source and destination workload, on one thread.

use std::{
    cell::RefCell,
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
    HboneStream,
    client::{Client, Head},
};

/// Most connections per key that are opened so that small flows do not wait behind bulk ones.
const SPREAD: usize = 4;

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

#[derive(Default)]
struct Slot {
    clients: RefCell<Vec<Rc<Client>>>,
    dialing: tokio::sync::Mutex<()>,
}

/// The connections of one thread.
#[derive(Default)]
pub struct Pool {
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
}

impl Pool {
    /// Opens a stream on a kept connection, or on one that `dial` makes: one dial at a time per key.
    /// Nothing was sent before the peer's 200, so a kept connection that turns out to be broken is
    /// replaced.
    ///
    /// # Errors
    /// What `dial` or [`Client::open`] met.
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
        let slot = self.slots.borrow_mut().entry(key).or_default().clone();
        loop {
            let (client, kept) = match slot.pick() {
                Some(client) => (client, true),
                None => {
                    let _one = slot.dialing.lock().await;
                    match slot.pick() {
                        Some(client) => (client, true),
                        None => {
                            let client = Rc::new(dial().await?);
                            slot.clients.borrow_mut().push(client.clone());
                            (client, false)
                        }
                    }
                }
            };
            match client.open(authority, head.clone()).await {
                Err(refusal) if kept && refusal.reason == Reason::TunnelBroken && client.is_closed() => {}
                result => return result,
            }
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

    /// Forgets connections without streams. Called at intervals by the owner.
    pub fn release_idle(&self) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.clients.borrow_mut().retain(|client| client.streams() > 0 && !client.is_closed());
            !slot.clients.borrow().is_empty() || Rc::strong_count(slot) > 1
        });
    }

    /// Connections that are kept.
    pub fn connections(&self) -> usize {
        self.slots.borrow().values().map(|slot| slot.clients.borrow().len()).sum()
    }
}

impl Slot {
    /// The connection with the fewest bulk streams, then the fewest streams; none when another one
    /// should be dialled.
    fn pick(&self) -> Option<Rc<Client>> {
        let mut clients = self.clients.borrow_mut();
        clients.retain(|client| !client.is_closed());
        let free = clients.iter().filter(|client| client.streams() < client.max_streams());
        let best = free.min_by_key(|client| (client.usage.bulk.get(), client.streams()))?;
        (best.usage.bulk.get() == 0 || clients.len() >= SPREAD).then(|| best.clone())
    }
}
