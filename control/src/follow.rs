//! Follows the sources – the cluster folder, the API server, or both – and compiles and publishes after every
//! change.

mod folder;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, watch},
    time::{self, timeout_at},
};

use self::folder::{Print, Watched, prints};
use crate::{
    all_findings,
    compile::{Compiled, Options, compile},
    finding::{Finding, Severity},
    memory::Memory,
    metrics::Metrics,
    provision::Provisioner,
    publish::Published,
    source::{Store, api::Change},
};

/// A burst of changes is compiled when it pauses this long.
const QUIET: Duration = Duration::from_millis(20);
/// And at the latest after this long.
const LONGEST: Duration = Duration::from_millis(100);
/// Or when it has this many changes of the API server: they are kept in memory until then.
const MOST: usize = 10_000;

/// Sources → published state.
pub struct Follower {
    /// Cluster folder.
    pub folder: Option<PathBuf>,
    /// Settings of compilation.
    pub options: Options,
    /// What is remembered.
    pub memory: Memory,
    /// Makes waypoints.
    pub provisioner: Box<dyn Provisioner>,
    /// Figures.
    pub metrics: Metrics,
    /// Where the result goes.
    pub out: watch::Sender<Arc<Published>>,
    /// Objects of the sources.
    pub store: Store,
    /// Files as they were when last read; none before.
    pub read: Option<Vec<Print>>,
}

impl Follower {
    /// Reads the folder, compiles and publishes.
    pub fn build(&mut self) {
        let start = Instant::now();
        self.load();
        self.publish(start);
    }

    fn load(&mut self) {
        if let Some(folder) = &self.folder {
            self.read = Some(prints(folder));
            self.store.load(folder);
            self.metrics.folder_readable.set(self.store.readable.into());
        }
    }

    /// Takes a round of changes over, and publishes if anything is different.
    fn round(&mut self, round: Round) {
        let start = Instant::now();
        let edited = match round.folder {
            Edited::No => false,
            Edited::Yes => true,
            Edited::Perhaps => self.read != self.folder.as_deref().map(prints),
        };
        if edited {
            self.load();
        }
        let known = self.store.read;
        let mut different = false;
        for change in round.changes {
            different |= self.store.apply(change);
        }
        // While lists are read, what is missing is published, for whoever asks why nothing is ready.
        if edited || (different && self.store.read) || !known {
            self.publish(start);
        }
    }

    fn publish(&mut self, start: Instant) {
        // Nothing is compiled before every source was read once: what is remembered would be forgotten.
        self.memory.adopt();
        let mut compiled = match self.store.read {
            true => compile(&self.store, &self.options, &mut self.memory),
            false => Compiled::default(),
        };
        // Nothing is removed before it is known what is wanted.
        if self.store.read
            && self.store.readable
            && let Err(error) = self.provisioner.ensure(&compiled.wanted())
        {
            tracing::error!(%error, "waypoints cannot be provisioned");
        }
        for (place, reason) in self.provisioner.problems() {
            compiled.not_made(place, reason);
        }
        let findings = all_findings(&self.store, &compiled);
        let before = self.out.borrow().clone();
        log(&findings, &before);
        let next = Published::next(&before, &self.store, compiled, findings);
        self.count(&next);
        self.metrics.compiled(start.elapsed());
        self.out.send_replace(Arc::new(next));
        // After publishing: nobody waits for the disk. Before the first reading only old ones are known.
        if self.store.read {
            self.memory.good.keep(&self.store);
        }
    }

    fn count(&self, next: &Published) {
        let m = &self.metrics;
        m.version.set(i64::try_from(next.version).unwrap_or(i64::MAX));
        m.objects.reset();
        for (key, ..) in &next.objects {
            m.objects.with_label_values(&[known(&key.kind)]).inc();
        }
        m.findings.reset();
        for finding in &next.findings {
            let kind = known(finding.object.split(' ').next().unwrap_or_default());
            m.findings.with_label_values(&[kind, &finding.severity.to_string(), finding.code]).inc();
        }
    }
}

fn known(kind: &str) -> &str {
    crate::object::KINDS.iter().find(|known| **known == kind).copied().unwrap_or("other")
}

fn log(findings: &[Finding], before: &Published) {
    for finding in findings.iter().filter(|f| !before.findings.contains(f)) {
        let Finding { file, line, object, field, code, reason, remedy, .. } = finding;
        match finding.severity {
            Severity::Info => tracing::info!(file, line, object, field, code, reason, remedy, "finding"),
            Severity::Warning => tracing::warn!(file, line, object, field, code, reason, remedy, "finding"),
            Severity::Error => {
                tracing::warn!(file, line, object, field, code, reason, remedy, refused = true, "finding");
            }
        }
    }
}

/// Works on the follower off the runtime's threads.
///
/// # Errors
/// Compilation panicked.
pub async fn built(
    follower: Follower,
    work: impl FnOnce(&mut Follower) + Send + 'static,
) -> Result<Follower> {
    let run = move || {
        let mut follower = follower;
        work(&mut follower);
        follower
    };
    tokio::task::spawn_blocking(run).await.context("compilation panicked")
}

/// Whether files were edited.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Edited {
    No,
    Yes,
    /// Nothing was heard for a while: compare.
    Perhaps,
}

/// What happened since the last compilation.
#[derive(Debug)]
struct Round {
    folder: Edited,
    changes: Vec<Change>,
}

/// Where news come from.
struct News {
    folder: mpsc::Receiver<()>,
    api: mpsc::Receiver<Change>,
}

impl News {
    /// Waits for the first news, at most for `patience`, and then until a burst pauses, but not long.
    async fn round(&mut self, patience: Option<Duration>) -> Round {
        let mut round = Round { folder: Edited::No, changes: Vec::new() };
        let waited = async { time::sleep(patience.unwrap_or_default()).await };
        tokio::select! {
            Some(()) = self.folder.recv() => round.folder = Edited::Yes,
            Some(change) = self.api.recv() => round.changes.push(change),
            () = waited, if patience.is_some() => {
                round.folder = Edited::Perhaps;
                return round;
            }
            else => std::future::pending().await,
        }
        self.settle(&mut round).await;
        round
    }

    async fn settle(&mut self, round: &mut Round) {
        let deadline = time::Instant::now() + LONGEST;
        while time::Instant::now() < deadline && round.changes.len() < MOST {
            let pause = deadline.min(time::Instant::now() + QUIET);
            let next = async {
                tokio::select! {
                    Some(()) = self.folder.recv() => round.folder = Edited::Yes,
                    Some(change) = self.api.recv() => round.changes.push(change),
                    else => std::future::pending().await,
                }
            };
            if timeout_at(pause, next).await.is_err() {
                return;
            }
        }
    }
}

/// Builds after every change of the folder or of the API server, until the process ends.
///
/// # Errors
/// Compilation panicked.
pub async fn follow(mut follower: Follower, api: mpsc::Receiver<Change>) -> Result<()> {
    let (wake, folder) = mpsc::channel(1);
    let mut watched = Watched::new(wake);
    let mut news = News { folder, api };
    // The watch comes before the next look, so that no edit falls between them.
    loop {
        let patience = follower.folder.as_deref().map(|folder| {
            watched.renew(folder);
            watched.patience()
        });
        let round = news.round(patience).await;
        follower = built(follower, move |follower| follower.round(round)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_read_when_it_pauses_and_a_long_one_several_times() {
        let (wake, folder) = mpsc::channel(1);
        let (_none, api) = mpsc::channel(1);
        let mut news = News { folder, api };
        let burst = tokio::spawn(async move {
            for _ in 0..200 {
                let _ = wake.try_send(());
                time::sleep(Duration::from_millis(2)).await;
            }
        });
        let mut rounds = 0;
        while news.round(Some(Duration::from_secs(1))).await.folder == Edited::Yes {
            rounds += 1;
        }
        burst.await.unwrap();
        assert!((4..=6).contains(&rounds), "400 ms of edits are read {rounds} times");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_of_the_api_server_are_taken_together_and_in_order() {
        let (_none, folder) = mpsc::channel(1);
        let (send, api) = mpsc::channel(8);
        let mut news = News { folder, api };
        let kind = &crate::source::kinds::KINDS[0];
        tokio::spawn(async move {
            for name in 0..50 {
                let gone = Change::Deleted(kind, None, name.to_string());
                send.send(gone).await.unwrap();
            }
        });
        let round = news.round(None).await;
        let names = round.changes.iter().map(|change| match change {
            Change::Deleted(_, _, name) => name.clone(),
            other => panic!("{other:?}"),
        });
        assert_eq!(names.collect::<Vec<_>>(), (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(round.folder, Edited::No);
    }
}
