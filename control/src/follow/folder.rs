//! Watching the cluster folder.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::source::files;

/// The folder is compared this often without an event: where watching fails, and for a folder that comes back.
const RESCAN: Duration = Duration::from_secs(2);
/// A folder that is away, or cannot be watched, is looked for this often.
const AWAY: Duration = Duration::from_millis(250);

/// A file's path, size and time of change.
pub type Print = (PathBuf, u64, Option<SystemTime>);

/// Every file of a folder as it is now.
pub(super) fn prints(folder: &Path) -> Vec<Print> {
    let print = |path: PathBuf| {
        let data = fs::metadata(&path).ok();
        let size = data.as_ref().map_or(0, fs::Metadata::len);
        (path, size, data.and_then(|d| d.modified().ok()))
    };
    let listing = files::list(folder);
    let unreadable = listing.unreadable.into_iter().map(|(path, _)| (path, u64::MAX, None));
    listing.files.into_iter().map(print).chain(unreadable).collect()
}

/// The watch on the folder; renewed when another folder is at its path.
pub(super) struct Watched {
    wake: mpsc::Sender<()>,
    current: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watched {
    /// Tells `wake` about edits; does nothing before the first renewal.
    pub(super) fn new(wake: mpsc::Sender<()>) -> Self {
        Self { wake, current: None }
    }

    /// Watches the folder that is at the path now.
    pub(super) fn renew(&mut self, folder: &Path) {
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

    /// How long to wait for an event before the folder is compared.
    pub(super) fn patience(&self) -> Duration {
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
