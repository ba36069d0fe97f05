//! What all replicas of the control plane remember together: small texts by name, kept in the cluster by
//! whoever holds the lease (decision 0037).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Texts by name; clones are the same shelf.
#[derive(Debug, Clone)]
pub struct Shelf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    texts: Mutex<Texts>,
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Texts {
    now: BTreeMap<String, String>,
    /// Counts what came from elsewhere.
    received: u64,
}

impl Shelf {
    /// An empty one.
    pub fn new() -> Self {
        Self(Arc::new(Inner { texts: Mutex::default(), written: watch::Sender::new(0) }))
    }

    fn texts(&self) -> MutexGuard<'_, Texts> {
        self.0.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A text.
    pub fn get(&self, name: &str) -> Option<String> {
        self.texts().now.get(name).cloned()
    }

    /// All texts.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.texts().now.clone()
    }

    /// Puts a text of this replica there and wakes who keeps them.
    pub fn put(&self, name: &str, text: String) {
        let mut texts = self.texts();
        if texts.now.get(name) != Some(&text) {
            texts.now.insert(name.into(), text);
            self.0.written.send_modify(|count| *count += 1);
        }
    }

    /// Wakes who keeps the texts though none is new.
    pub fn touch(&self) {
        self.0.written.send_modify(|count| *count += 1);
    }

    /// Takes over what is kept in the cluster; whether it differs from what is here.
    pub fn receive(&self, all: BTreeMap<String, String>) -> bool {
        let mut texts = self.texts();
        let differs = texts.now != all;
        if differs {
            texts.now = all;
            texts.received += 1;
        }
        differs
    }

    /// Counts what was taken over and differed.
    pub fn received(&self) -> u64 {
        self.texts().received
    }

    /// Counts what this replica put there.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.0.written.subscribe()
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self::new()
    }
}
