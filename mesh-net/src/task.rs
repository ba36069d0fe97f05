//! Ending and beginning well: draining tasks with a deadline, and readiness that says what it awaits.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A group of tasks that ends together: asked first, forced after a deadline. Children end with it.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    asked: CancellationToken,
    forced: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A group of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that ends when this one does, and can end before it.
    pub fn child(&self) -> Self {
        Self { asked: self.asked.child_token(), forced: self.forced.child_token(), tasks: TaskTracker::new() }
    }

    /// Resolves when the group is asked to end: stop accepting, finish what is open.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Counts something as part of the group until it is dropped. It has to end by itself when the
    /// group is [`Drain::forced`]: this costs nothing while it runs, unlike [`Drain::track`].
    pub fn hold(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Resolves when what is left of the group must end now.
    pub async fn forced(&self) {
        self.forced.cancelled().await;
    }

    /// Cancelled when the group is asked to end: for what takes a token.
    pub fn token(&self) -> CancellationToken {
        self.asked.clone()
    }

    /// Whether the group was asked to end.
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Wraps a task of this group: it is counted, and dropped when the group is forced to end.
    pub fn track<F: Future>(&self, task: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        let forced = self.forced.clone();
        self.tasks.track_future(async move { forced.run_until_cancelled(task).await })
    }

    /// Asks the group to end and waits; what is left after `deadline` is dropped. Returns whether all
    /// tasks ended by themselves.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.asked.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok();
        self.forced.cancel();
        self.tasks.wait().await;
        ended
    }
}

/// What must happen before a program is ready. Each [`Pending`] stands for one thing.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    pending: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// Something that is awaited; dropping it says that it has happened.
#[derive(Debug)]
pub struct Pending {
    name: &'static str,
    ready: Ready,
}

impl Ready {
    /// Nothing awaited yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers something to await.
    pub fn awaits(&self, name: &'static str) -> Pending {
        *self.lock().entry(name).or_default() += 1;
        Pending { name, ready: self.clone() }
    }

    /// Names of what is still awaited; empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.ready.lock();
        let Some(count) = pending.get_mut(self.name) else { return };
        *count -= 1;
        if *count == 0 {
            pending.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_awaited_until_it_is_dropped() {
        let ready = Ready::new();
        let (first, second) = (ready.awaits("state manager"), ready.awaits("bpf"));
        assert_eq!(ready.pending(), ["bpf", "state manager"]);
        drop(second);
        assert_eq!(ready.pending(), ["state manager"]);
        drop(first);
        assert!(ready.pending().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_tasks_that_end_and_drops_those_that_do_not() {
        let drain = Drain::new();
        let polite = drain.child();
        let ended = tokio::spawn(drain.track(async move {
            polite.asked().await;
            7
        }));
        assert!(drain.finish(Duration::from_secs(5)).await);
        assert_eq!(ended.await.unwrap(), Some(7));

        let stubborn = Drain::new();
        let stuck = tokio::spawn(stubborn.track(std::future::pending::<()>()));
        assert!(!stubborn.finish(Duration::from_secs(5)).await);
        assert_eq!(stuck.await.unwrap(), None);
    }
}
