//! The last good snapshot in a file: one header line, the body as JSON, one line with its checksum.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_core::snapshot::{Dump, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{SnapshotStore, Versions};

/// First line of the file; the number changes with the format.
const FORMAT: &[u8] = b"culvert-snapshot-2\n";
/// Digits of the checksum and the line end before it.
const TRAILER: usize = 17;
/// Largest file that is written or read, bytes: a mesh of more than 500,000 workloads.
const LARGEST: u64 = 512 << 20;
/// Least time between two writes.
const EVERY: Duration = Duration::from_secs(1);
/// A write may take one part in so many of the time: a large mesh is written less often.
const SHARE: u32 = 20;

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

/// Keeps a file up to date with a store.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// The file; its folder must exist by the time of the first write.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The last good snapshot; none when there is none that can be used, and the log says why.
    pub fn load(&self) -> Option<(Snapshot, Versions)> {
        match load(&self.path) {
            Ok(cached) => cached,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "starting without the last good configuration");
                None
            }
        }
    }

    /// Writes the store's world after it has changed, as long as it is complete: at most once a second
    /// and for at most a twentieth of the time, and once more when cancelled. A write that fails is
    /// logged and tried again at the next change.
    pub async fn keep(self, store: Arc<SnapshotStore>, cancel: CancellationToken) {
        let mut watch = store.subscribe();
        // What was written before this task ran counts as a change.
        watch.mark_changed();
        while let Some(Ok(())) = cancel.run_until_cancelled(watch.changed()).await {
            watch.borrow_and_update();
            let begun = Instant::now();
            self.write(&store).await;
            let pause = EVERY.max(begun.elapsed() * SHARE);
            if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        if watch.has_changed().unwrap_or(false) {
            self.write(&store).await;
        }
    }

    async fn write(&self, store: &Arc<SnapshotStore>) {
        let (path, store) = (self.path.clone(), store.clone());
        let written = tokio::task::spawn_blocking(move || match store.held() {
            Some((snapshot, versions)) if snapshot.is_complete() => save(&path, &snapshot, &versions),
            _ => Ok(()),
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "last good configuration was not written");
            }
            Err(error) => tracing::error!(%error, "writing the last good configuration panicked"),
        }
    }
}

#[derive(Serialize)]
struct Saved<'a> {
    versions: &'a Versions,
    dump: Dump,
}

#[derive(Deserialize)]
struct Loaded {
    versions: Versions,
    dump: Dump,
}

/// Writes a snapshot with the versions of its resources, atomically: a reader sees the old file or the
/// new one. It is written as it is made: a large mesh needs no buffer of its size.
///
/// # Errors
/// The folder cannot be written, or the file would pass 512 MiB.
pub fn save(path: &Path, snapshot: &Snapshot, versions: &Versions) -> Result<(), CacheError> {
    let temporary = path.with_extension("new");
    let written = write(&temporary, &Saved { versions, dump: snapshot.dump() })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // Best effort: what failed is told already.
        let _ = fs::remove_file(&temporary);
        CacheError::Io { path: path.to_path_buf(), source }
    })
}

fn write(path: &Path, saved: &Saved<'_>) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(64 << 10, File::create(path)?);
    file.write_all(FORMAT)?;
    let mut body = Checked { file, sum: Checksum::default(), left: LARGEST };
    serde_json::to_writer(&mut body, saved)?;
    let Checked { mut file, sum, .. } = body;
    write!(file, "\n{:016x}", sum.0)?;
    // The rename must not reach the disk before the bytes do.
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()
}

/// Reads what [`save`] wrote; none when there is no file. It is as complete as it was when saved.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn load(path: &Path) -> Result<Option<(Snapshot, Versions)>, CacheError> {
    let failed = |source| CacheError::Io { path: path.to_path_buf(), source };
    let damaged = |problem: &str| CacheError::Damaged { path: path.to_path_buf(), problem: problem.into() };
    let file = match fs::metadata(path) {
        Ok(file) if file.len() > LARGEST + 64 => {
            return Err(damaged("it is larger than any that is written"));
        }
        Ok(_) => fs::read(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let rest = file.strip_prefix(FORMAT).ok_or_else(|| damaged("the first line differs"))?;
    let (body, trailer) = rest
        .len()
        .checked_sub(TRAILER)
        .map(|end| rest.split_at(end))
        .ok_or_else(|| damaged("it ends too soon"))?;
    let mut sum = Checksum::default();
    sum.add(body);
    if trailer != format!("\n{:016x}", sum.0).as_bytes() {
        return Err(damaged("the checksum differs"));
    }
    let loaded: Loaded = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
    let mut snapshot = Snapshot::new();
    snapshot.apply(loaded.dump.into_changes());
    Ok(Some((snapshot, loaded.versions)))
}

/// FNV-1a: finds a torn or edited file; the folder belongs to root, so it need not resist forgery.
struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Sums what is written and ends it at a limit.
struct Checked<W> {
    file: W,
    sum: Checksum,
    left: u64,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all(bytes)?;
        self.sum.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
