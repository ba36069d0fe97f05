//! What one worker thread owns: its view of the configuration, its upstream connections, its load
//! counters. No locks; everything in it stays on the thread.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use mesh_core::{
    entropy::{Entropy, SplitMix64},
    snapshot::Snapshot,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    limits::LimitBook,
    target::Targets,
    telemetry::{Families, Telemetry},
    upstream::{Dial, Upstreams},
    world::{Me, World},
};

/// One worker.
pub struct Worker {
    /// Who we are.
    pub me: Rc<Me>,
    /// Metrics.
    pub telemetry: Rc<Telemetry>,
    /// Upstream HTTP connections.
    pub upstreams: Upstreams,
    /// What is kept for endpoints.
    pub targets: Rc<Targets>,
    /// Cancelled when the waypoint drains.
    pub drain: CancellationToken,
    /// Cancelled when a drain has taken too long: what still runs is closed.
    pub expired: CancellationToken,
    snapshots: RefCell<watch::Receiver<Arc<Snapshot>>>,
    world: RefCell<Rc<World>>,
    limits: LimitBook,
    seed: Cell<u64>,
}

impl Worker {
    /// Starts with the current snapshot.
    pub fn new(
        me: Me,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        dial: Rc<dyn Dial>,
        families: Families,
        limits: LimitBook,
        drain: CancellationToken,
    ) -> Rc<Self> {
        let me = Rc::new(me);
        let first = snapshots.borrow_and_update().clone();
        let targets = Rc::<Targets>::default();
        let world = Rc::new(World::new(first, &me, &limits, &targets, None, &families));
        Rc::new(Self {
            me,
            telemetry: Rc::new(Telemetry::new(families)),
            upstreams: Upstreams::new(dial),
            targets,
            drain,
            expired: CancellationToken::new(),
            snapshots: RefCell::new(snapshots),
            world: RefCell::new(world),
            limits,
            seed: Cell::new(rand::random()),
        })
    }

    /// The newest world; derives it when the snapshot has changed.
    pub fn world(&self) -> Rc<World> {
        let mut snapshots = self.snapshots.borrow_mut();
        if snapshots.has_changed().unwrap_or(false) {
            let snapshot = snapshots.borrow_and_update().clone();
            let fresh = World::new(
                snapshot,
                &self.me,
                &self.limits,
                &self.targets,
                Some(&self.world.borrow()),
                &self.telemetry.families,
            );
            self.upstreams.retain(|uid| fresh.snapshot.workload(uid).is_some());
            *self.world.borrow_mut() = Rc::new(fresh);
        }
        self.world.borrow().clone()
    }

    /// Wakes when the configuration changes from now on: flows that live long check themselves again.
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        let mut changes = self.snapshots.borrow().clone();
        changes.mark_unchanged();
        changes
    }

    /// Closes connections that nothing uses or can use. Called at intervals.
    pub fn sweep(&self) {
        self.targets.sweep();
        self.upstreams.release_idle();
    }

    /// A fresh source of randomness for one request.
    pub fn entropy(&self) -> SplitMix64 {
        let mut source = SplitMix64::new(self.seed.get());
        self.seed.set(source.next_u64());
        SplitMix64::new(source.next_u64())
    }
}
