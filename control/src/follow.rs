//! Follows the cluster folder: reads, compiles and publishes it after every change.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{mpsc, watch},
    time::{self, timeout_at},
};

use crate::{
    all_findings,
    compile::{Compiled, Options, compile},
    finding::{Finding, Severity},
    memory::Memory,
    metrics::Metrics,
    provision::Provisioner,
    publish::Published,
    source::{Store, files},
};

/// A burst of edits is read when it pauses this long.
const QUIET: Duration = Duration::from_millis(20);
/// And at the latest after this long.
const LONGEST: Duration = Duration::from_millis(100);
/// The folder is compared this often without an event: where watching fails, and for a folder that comes back.
const RESCAN: Duration = Duration::from_secs(2);
/// A folder that is away, or cannot be watched, is looked for this often.
const AWAY: Duration = Duration::from_millis(250);

/// Folder → published state.
pub struct Follower {
    /// Cluster folder.
    pub folder: PathBuf,
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
    /// Objects of the folder.
    pub store: Store,
    /// Files as they were when last read; none before.
    pub read: Option<Vec<Print>>,
}

/// A file's path, size and time of change.
pub type Print = (PathBuf, u64, Option<SystemTime>);

impl Follower {
    /// Reads, compiles and publishes.
    pub fn build(&mut self) {
        let start = Instant::now();
        self.read = Some(prints(&self.folder));
        self.store.load(&self.folder);
        self.metrics.folder_readable.set(self.store.readable.into());
        // Nothing is compiled before the folder was read once: what is remembered would be forgotten.
        let compiled = match self.store.read {
            true => compile(&self.store, &self.options, &mut self.memory),
            false => Compiled::default(),
        };
        if self.store.readable
            && let Err(error) = self.provisioner.ensure(&compiled.waypoints)
        {
            tracing::error!(%error, "waypoints cannot be provisioned");
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

    /// Builds if any file is another than when last read.
    fn build_if_different(&mut self) {
        if self.read.as_ref() != Some(&prints(&self.folder)) {
            self.build();
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

fn prints(folder: &Path) -> Vec<Print> {
    let print = |path: PathBuf| {
        let data = fs::metadata(&path).ok();
        let size = data.as_ref().map_or(0, fs::Metadata::len);
        (path, size, data.and_then(|d| d.modified().ok()))
    };
    let listing = files::list(folder);
    let unreadable = listing.unreadable.into_iter().map(|(path, _)| (path, u64::MAX, None));
    listing.files.into_iter().map(print).chain(unreadable).collect()
}

/// Builds once, off the runtime's threads.
///
/// # Errors
/// Compilation panicked.
pub async fn built(follower: Follower, work: fn(&mut Follower)) -> Result<Follower> {
    let run = move || {
        let mut follower = follower;
        work(&mut follower);
        follower
    };
    tokio::task::spawn_blocking(run).await.context("compilation panicked")
}

/// Builds after every change, until the process ends.
///
/// # Errors
/// Compilation panicked.
pub async fn follow(mut follower: Follower) -> Result<()> {
    let (wake, mut woken) = mpsc::channel(1);
    let mut watched = Watched { wake, current: None };
    // The watch comes before the next look, so that no edit falls between them.
    loop {
        watched.renew(&follower.folder);
        follower = match time::timeout(watched.patience(), woken.recv()).await {
            Ok(_) => {
                settle(&mut woken).await;
                built(follower, Follower::build).await?
            }
            Err(_) => built(follower, Follower::build_if_different).await?,
        };
    }
}

/// Waits until a burst pauses, but not long.
async fn settle(woken: &mut mpsc::Receiver<()>) {
    let deadline = time::Instant::now() + LONGEST;
    while time::Instant::now() < deadline {
        let pause = deadline.min(time::Instant::now() + QUIET);
        if !matches!(timeout_at(pause, woken.recv()).await, Ok(Some(()))) {
            return;
        }
    }
}

/// The watch on the folder; renewed when another folder is at its path.
struct Watched {
    wake: mpsc::Sender<()>,
    current: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watched {
    fn renew(&mut self, folder: &Path) {
        let now = fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()));
        if self.current.as_ref().map(|(_, id)| *id) == now {
            return;
        }
        self.current = now.and_then(|id| match self.watch(folder) {
            Ok(watcher) => Some((watcher, id)),
            Err(error) => {
                tracing::debug!(%error, "the folder cannot be watched; it is compared again and again instead");
                None
            }
        });
        if self.current.is_some() {
            // What changed before the watch was there is looked at now.
            let _ = self.wake.try_send(());
        }
    }

    fn patience(&self) -> Duration {
        if self.current.is_some() { RESCAN } else { AWAY }
    }

    fn watch(&self, folder: &Path) -> notify::Result<RecommendedWatcher> {
        let wake = self.wake.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !matches!(&event, Ok(e) if matches!(e.kind, EventKind::Access(_))) {
                let _ = wake.try_send(());
            }
        })?;
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_read_when_it_pauses_and_a_long_one_several_times() {
        let (wake, mut woken) = mpsc::channel(1);
        let burst = tokio::spawn(async move {
            for _ in 0..200 {
                let _ = wake.try_send(());
                time::sleep(Duration::from_millis(2)).await;
            }
        });
        let mut rounds = 0;
        while woken.recv().await.is_some() {
            settle(&mut woken).await;
            rounds += 1;
        }
        burst.await.unwrap();
        assert!((4..=6).contains(&rounds), "400 ms of edits are read {rounds} times");
    }
}
