//! What agents of another ABI left behind: their programs go, their pods stay closed, their tables are
//! never read.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{BpfError, Pod, PodState, detach::detach, maps::Maps};

/// Prefix of the pins of pods' links.
const POD: &str = "pod_";

/// Name of the pin of a pod's link.
pub(super) fn pod_link(cookie: u64) -> String {
    format!("{POD}{cookie}")
}

/// The pod whose link this pin is; none for the node's links.
pub(super) fn pod_of(link: &Path) -> Option<u64> {
    link.file_name()?.to_str()?.strip_prefix(POD)?.parse().ok()
}

/// Folders of the links of other ABI versions, one for each object.
pub(super) fn other_links(pins: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut dirs = Vec::new();
    for version in others(pins)? {
        dirs.extend(list(&version.join("links"))?);
    }
    Ok(dirs)
}

/// Closes the pods that agents of other versions captured, as far as this version does not know them yet.
/// Their links name them: the layout of the tables may be any. Without addresses a pod reaches nothing
/// but loopback, until it is enrolled anew.
///
/// # Errors
/// A folder cannot be read, or the table of pods is full.
pub(super) fn close_pods(pins: &Path, maps: &Maps) -> Result<(), BpfError> {
    let known: BTreeSet<u64> = maps.pods()?.iter().map(|pod| pod.netns).collect();
    let mut captured = BTreeSet::new();
    for dir in other_links(pins)? {
        captured.extend(list(&dir)?.iter().filter_map(|link| pod_of(link)));
    }
    for netns in captured.difference(&known) {
        maps.set_pod(&Pod { netns: *netns, v4: None, v6: None, state: PodState::Blocked, epoch: 0 })?;
    }
    Ok(())
}

/// Removes the pins of other versions' tables. Programs that are still attached keep theirs.
///
/// # Errors
/// A pin cannot be removed.
pub(super) fn forget_tables(pins: &Path) -> Result<(), BpfError> {
    for version in others(pins)? {
        for table in list(&version.join("maps"))? {
            remove_pin(&table)?;
        }
        // What still holds links of pods is not empty, and stays.
        for empty in [version.join("maps"), version.join("links"), version] {
            fs::remove_dir(empty).ok();
        }
    }
    Ok(())
}

/// Folders of the other versions of this node.
fn others(pins: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut versions = list(pins.parent().unwrap_or(pins))?;
    versions.retain(|version| version != pins);
    Ok(versions)
}

/// Ends a pinned link, whose program runs no more when this returns if it can be detached; none is no error.
pub(super) fn remove_link(path: &Path) -> Result<(), BpfError> {
    // One that cannot be detached ends without its pin as well, only later.
    detach(path).ok();
    remove_pin(path)
}

/// Removes a pin; none is no error.
pub(super) fn remove_pin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::Pins { path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

/// What is in a folder; nothing when there is none.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect()),
    };
    entries.map_err(|source| BpfError::Pins { path: dir.to_path_buf(), source })
}
