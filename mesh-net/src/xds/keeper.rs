//! Keeps the last good snapshot on disk while it changes.

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;

use super::Session;
use crate::store::{self, SnapshotStore};

/// Changes within this time are written together.
const COALESCE: Duration = Duration::from_secs(1);
/// Writing takes at most this share of the time, however large the mesh.
const SHARE: u32 = 20;

/// When to write, and where.
pub(super) struct Keeper {
    path: Option<PathBuf>,
    due: Option<Instant>,
    pause: Duration,
}

impl Keeper {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, due: None, pause: COALESCE }
    }

    /// Something has changed.
    pub(super) fn changed(&mut self) {
        if self.path.is_some() && self.due.is_none() {
            self.due = Some(Instant::now() + self.pause);
        }
    }

    /// Completes when it is time to write.
    pub(super) async fn due(&self) {
        match self.due {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Writes what has changed, if anything. A disk that refuses costs the cache and nothing else.
    pub(super) async fn save_now(&mut self, store: &SnapshotStore, session: &Session) {
        let (Some(path), Some(_)) = (self.path.clone(), self.due.take()) else { return };
        let (snapshot, versions) = (store.current(), session.versions().clone());
        let begun = Instant::now();
        let saved = tokio::task::spawn_blocking(move || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|source| store::CacheError::Io { path: folder.to_path_buf(), source })?;
            }
            store::save(&path, &snapshot, &versions)
        });
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last good configuration is not kept"),
            Err(error) => tracing::error!(%error, "keeping the last good configuration panicked"),
        }
        self.pause = COALESCE.max(begun.elapsed() * SHARE);
    }
}
