//! The world of one program: one writer, readers that hold an immutable snapshot, and the last good
//! copy on disk, so that a restart does not depend on the control plane (I-7).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::{
    delta::Change,
    snapshot::{Dump, Snapshot},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Versions of the resources that were accepted: type URL → name → version.
pub type Versions = BTreeMap<String, BTreeMap<String, String>>;

/// Publishes snapshots. Cheap to share; writes are serialised.
#[derive(Debug)]
pub struct SnapshotStore {
    published: watch::Sender<Arc<Snapshot>>,
    writing: Mutex<()>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self::new(Snapshot::new())
    }
}

impl SnapshotStore {
    /// Starts from a snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        Self { published: watch::Sender::new(Arc::new(snapshot)), writing: Mutex::new(()) }
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
        if changes.is_empty() {
            return;
        }
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = (*self.current()).clone();
        next.apply(changes);
        self.published.send_replace(Arc::new(next));
    }
}

/// Why a cached snapshot cannot be used. The program starts without it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Reading or writing failed.
    #[error("snapshot cache {path} cannot be read or written")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not ours, of another version, or damaged.
    #[error("snapshot cache {path} is damaged or of another version ({problem}); it is ignored")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// First word of the file; the number changes with the format.
const FORMAT: &str = "culvert-snapshot-1";

#[derive(Serialize, Deserialize)]
struct Cached {
    versions: Versions,
    dump: Dump,
}

/// Writes a snapshot with the versions of its resources, atomically: a reader sees the old file or the new one.
///
/// # Errors
/// The folder cannot be written.
pub fn save(path: &Path, snapshot: &Snapshot, versions: &Versions) -> Result<(), CacheError> {
    let failed = |source| CacheError::Io { path: path.to_path_buf(), source };
    let cached = Cached { versions: versions.clone(), dump: snapshot.dump() };
    let body = serde_json::to_vec(&cached).map_err(|error| failed(io::Error::other(error)))?;
    let mut file = format!("{FORMAT} {:016x}\n", checksum(&body)).into_bytes();
    file.extend_from_slice(&body);
    let temporary = path.with_extension("new");
    fs::write(&temporary, file).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

/// Reads what [`save`] wrote; none when there is no file.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn load(path: &Path) -> Result<Option<(Snapshot, Versions)>, CacheError> {
    let file = match fs::read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CacheError::Io { path: path.to_path_buf(), source }),
    };
    let damaged = |problem: &str| CacheError::Damaged { path: path.to_path_buf(), problem: problem.into() };
    let end = file.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("no header"))?;
    let (header, body) = (&file[..end], &file[end + 1..]);
    if header != format!("{FORMAT} {:016x}", checksum(body)).as_bytes() {
        return Err(damaged("header or checksum differ"));
    }
    let cached: Cached = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
    Ok(Some((Snapshot::of(cached.dump.into_changes()), cached.versions)))
}

/// FNV-1a: finds a torn or edited file; the folder belongs to root, so it need not resist forgery.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use mesh_core::model::{Workload, WorkloadUid};

    use super::*;

    fn change(name: &str) -> Change {
        Change::Workload(Arc::new(Workload::new(WorkloadUid::pod("c", "default", name), "default", name)))
    }

    #[tokio::test]
    async fn readers_keep_their_world_and_are_told_of_the_next() {
        let store = SnapshotStore::default();
        let mut watcher = store.subscribe();
        let before = store.current();
        store.apply(vec![change("a"), change("b")]);
        watcher.changed().await.unwrap();
        assert_eq!((before.workload_count(), store.current().workload_count()), (0, 2));
    }

    #[test]
    fn a_snapshot_survives_on_disk_and_a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        assert!(load(&path).unwrap().is_none());
        let snapshot = Snapshot::of([change("a"), Change::Synced]);
        let versions = Versions::from([("t".into(), BTreeMap::from([("a".into(), "1".into())]))]);
        save(&path, &snapshot, &versions).unwrap();
        let (restored, restored_versions) = load(&path).unwrap().unwrap();
        assert_eq!((restored.workload_count(), restored.is_complete()), (1, true));
        assert_eq!(restored_versions, versions);

        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(load(&path), Err(CacheError::Damaged { .. })));
        fs::write(&path, "").unwrap();
        assert!(matches!(load(&path), Err(CacheError::Damaged { .. })));
    }
}
