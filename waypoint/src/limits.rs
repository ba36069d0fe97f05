//! What DestinationRules limit: counters shared by all workers, and units taken from them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use mesh_core::model::ServiceName;

/// Counters that limits compare, shared by all workers.
#[derive(Debug, Default)]
pub struct Limits {
    requests: AtomicU32,
    connections: AtomicU32,
    retries: AtomicU32,
    pending: AtomicU32,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Requests in progress.
    Requests,
    /// Upstream connections.
    Connections,
    /// Retries in progress.
    Retries,
    /// Requests without a connection.
    Pending,
}

/// A counted unit; gives it back when dropped.
pub struct Permit(Arc<Limits>, Counted);

impl Limits {
    fn of(&self, what: Counted) -> &AtomicU32 {
        match what {
            Counted::Requests => &self.requests,
            Counted::Connections => &self.connections,
            Counted::Retries => &self.retries,
            Counted::Pending => &self.pending,
        }
    }

    /// Takes one unit; none when `limit` of them are taken.
    pub fn take(self: &Arc<Self>, what: Counted, limit: Option<u32>) -> Option<Permit> {
        let count = self.of(what).fetch_add(1, Ordering::Relaxed);
        let permit = Permit(self.clone(), what);
        limit.is_none_or(|limit| count < limit).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.of(self.1).fetch_sub(1, Ordering::Relaxed);
    }
}

/// The limits of every destination, across snapshots and workers.
#[derive(Debug, Clone, Default)]
pub struct LimitBook(Arc<Mutex<HashMap<Destination, Arc<Limits>>>>);

/// A service and one of its subsets; none for a workload that is addressed itself.
pub type Destination = Option<(ServiceName, Option<Arc<str>>)>;

impl LimitBook {
    /// The limits of a destination.
    pub fn of(&self, destination: &Destination) -> Arc<Limits> {
        let mut book = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        book.retain(|_, limits| Arc::strong_count(limits) > 1);
        book.entry(destination.clone()).or_default().clone()
    }
}
