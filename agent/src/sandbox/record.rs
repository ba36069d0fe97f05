//! What the CNI plugin notes of each sandbox, so that it outlives the agent: one small file each.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A sandbox with a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The runtime's id of the sandbox (`CNI_CONTAINERID`).
    pub container: String,
    /// Interface inside it (`CNI_IFNAME`).
    pub interface: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod as the kubelet knows it.
    pub uid: String,
    /// Path of the network namespace as the runtime told it.
    pub netns: PathBuf,
    /// Cookie of the network namespace; 0 when it is not known.
    pub cookie: u64,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
}

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("record {path} cannot be {doing}")]
pub struct RecordError {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

/// The folder of records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// Records in a folder; it is made when one is written.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// All that can be read. What cannot is nobody's: it is skipped.
    pub fn all(&self) -> Vec<Record> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let texts = entries.filter_map(|entry| fs::read(entry.path()).ok());
        texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
    }

    /// The record of a sandbox's interface.
    pub fn get(&self, container: &str, interface: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.path(container, interface)?).ok()?).ok()
    }

    /// Writes a record, in one step.
    ///
    /// # Errors
    /// The folder cannot be written, or a name in it is not one that a runtime gives.
    pub fn put(&self, record: &Record) -> Result<(), RecordError> {
        let unnamed = || RecordError {
            path: self.0.join("?"),
            doing: "named",
            source: io::Error::other("container id and interface must be letters, digits, `-`, `_`, `.`"),
        };
        let path = self.path(&record.container, &record.interface).ok_or_else(unnamed)?;
        let failed = |source| RecordError { path: path.clone(), doing: "written", source };
        fs::create_dir_all(&self.0).map_err(failed)?;
        let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        let hidden = path.with_extension("tmp");
        fs::write(&hidden, text).and_then(|()| fs::rename(&hidden, &path)).map_err(failed)
    }

    /// Removes a record; none is no error.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remove(&self, container: &str, interface: &str) -> Result<(), RecordError> {
        let Some(path) = self.path(container, interface) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError { path, doing: "removed", source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, container: &str, interface: &str) -> Option<PathBuf> {
        let plain = |text: &str| {
            !text.is_empty()
                && text.len() <= 128
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        (plain(container) && plain(interface)).then(|| self.0.join(format!("{container}.{interface}.json")))
    }
}
