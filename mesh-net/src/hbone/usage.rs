//! How busy a connection is: what the pool chooses by.

use std::{cell::Cell, rc::Rc};

use tokio::time::Instant;

/// Counts the streams of a connection, and those that proved to be bulk.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) streams: Cell<u32>,
    pub(super) bulk: Cell<u32>,
    /// When the last stream ended, or the connection was made.
    pub(super) last: Cell<Instant>,
}

impl Usage {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { streams: Cell::new(0), bulk: Cell::new(0), last: Cell::new(Instant::now()) })
    }
}

/// One stream's share of its connection's [`Usage`].
#[derive(Debug)]
pub(super) struct Share {
    usage: Rc<Usage>,
    moved: u64,
}

impl Share {
    const BULK: u64 = 1 << 20;

    pub(super) fn new(usage: &Rc<Usage>) -> Self {
        usage.streams.set(usage.streams.get() + 1);
        Self { usage: usage.clone(), moved: 0 }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        let before = self.moved;
        self.moved += bytes as u64;
        if before <= Self::BULK && self.moved > Self::BULK {
            self.usage.bulk.set(self.usage.bulk.get() + 1);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.usage.streams.set(self.usage.streams.get() - 1);
        self.usage.last.set(Instant::now());
        if self.moved > Self::BULK {
            self.usage.bulk.set(self.usage.bulk.get() - 1);
        }
    }
}
