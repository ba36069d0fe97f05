//! The world of one program: one writer, readers that hold an immutable snapshot, and the last good
//! copy on disk, so that a restart does not depend on the control plane (I-7).

mod cache;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use mesh_core::{delta::Change, snapshot::Snapshot};
use tokio::sync::watch;

pub use cache::{Cache, CacheError, load, save};

/// Versions of the resources that were accepted: type URL → name → version.
pub type Versions = BTreeMap<String, BTreeMap<String, String>>;

/// Publishes snapshots. Cheap to share; writes are serialised.
#[derive(Debug)]
pub struct SnapshotStore {
    published: watch::Sender<Arc<Snapshot>>,
    /// The versions that belong to what is published, when an xDS client writes; locked by the writer.
    held: Mutex<Option<Arc<Versions>>>,
    from_disk: AtomicBool,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self::new(Snapshot::new())
    }
}

impl SnapshotStore {
    /// Starts from a snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            published: watch::Sender::new(Arc::new(snapshot)),
            held: Mutex::default(),
            from_disk: AtomicBool::new(false),
        }
    }

    /// Starts from the last good copy: the same, but it says so until [`SnapshotStore::confirm`].
    pub fn from_disk(snapshot: Snapshot) -> Self {
        Self { from_disk: AtomicBool::new(true), ..Self::new(snapshot) }
    }

    /// Whether the world is the last good copy from disk, which the control plane has not confirmed yet.
    pub fn is_from_disk(&self) -> bool {
        self.from_disk.load(Ordering::Relaxed)
    }

    /// The control plane has told of every type since the start.
    pub fn confirm(&self) {
        self.from_disk.store(false, Ordering::Relaxed);
    }

    /// The world of now; hold it for one decision.
    pub fn current(&self) -> Arc<Snapshot> {
        self.published.borrow().clone()
    }

    /// Wakes when the world changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.published.subscribe()
    }

    /// Applies a batch; readers see all of it or nothing.
    pub fn apply(&self, changes: Vec<Change>) {
        let _one_writer = self.lock();
        self.publish(changes);
    }

    /// Applies what `decide` makes of the world of now, together with the versions that belong to it.
    /// Nobody else writes meanwhile, and the store holds no versions, so that `decide` can edit the
    /// ones that it shares with the store in place.
    pub fn update(&self, decide: impl FnOnce(&Snapshot) -> (Vec<Change>, Arc<Versions>)) {
        let mut held = self.lock();
        *held = None;
        let (changes, versions) = decide(&self.current());
        self.publish(changes);
        *held = Some(versions);
    }

    /// The world and the versions that belong to it; none when no xDS client has written yet.
    pub fn held(&self) -> Option<(Arc<Snapshot>, Arc<Versions>)> {
        let held = self.lock();
        held.as_ref().map(|versions| (self.current(), versions.clone()))
    }

    fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut next = (*self.current()).clone();
        next.apply(changes);
        self.published.send_replace(Arc::new(next));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Versions>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
