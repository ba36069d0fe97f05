//! What the agent last knew of namespaces, on disk: what the plugin decides by when the agent is away.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use mesh_core::eligibility::{MODE_LABEL, Remembered, may_be_eligible};
use serde::{Deserialize, Serialize};

/// Largest file that is read, in bytes: some 100,000 namespaces.
const LARGEST: u64 = 64 << 20;

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether pods of this node were seen in it that ask for the mesh by a label of their own.
    #[serde(default)]
    pub own_labels: bool,
}

/// See the module's description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// By name. One that is not here is unknown.
    pub namespaces: BTreeMap<String, Namespace>,
}

/// Why it could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be written; the CNI plugin decides by older news when the agent is away")]
pub struct KnownError {
    path: PathBuf,
    source: io::Error,
}

impl Known {
    /// What is on disk; nothing when it is missing or damaged, and then every namespace is unknown.
    pub fn load(path: &Path) -> Self {
        let read = || {
            let size = fs::metadata(path).ok()?.len();
            (size <= LARGEST).then(|| fs::read(path).ok()).flatten()
        };
        read().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Writes it in one step.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KnownError> {
        let failed = |source| KnownError { path: path.into(), source };
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let hidden = path.with_extension("tmp");
        fs::write(&hidden, text).and_then(|()| fs::rename(&hidden, path)).map_err(failed)
    }

    /// Whether a pod of which nothing but its namespace is known may belong into the mesh.
    pub fn may_be_eligible(&self, namespace: &str, excluded: &[String]) -> bool {
        let known = self.namespaces.get(namespace);
        may_be_eligible(&Remembered {
            namespace,
            labels: known.map(|known| &known.labels),
            own_labels: known.is_some_and(|known| known.own_labels),
            excluded_namespaces: excluded,
        })
    }
}

/// Whether a pod asks for the mesh by its own label.
pub fn asks_itself(labels: &BTreeMap<String, String>) -> bool {
    labels.get(MODE_LABEL).is_some_and(|mode| mode == "ambient")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known.json");
        assert_eq!(Known::load(&path), Known::default());
        let labels = BTreeMap::from([(MODE_LABEL.to_owned(), "ambient".to_owned())]);
        assert!(asks_itself(&labels));
        let shop = Namespace { labels, own_labels: false };
        let known = Known {
            namespaces: [("shop".to_owned(), shop), ("plain".to_owned(), Namespace::default())].into(),
        };
        known.save(&path).unwrap();
        let known = Known::load(&path);
        assert!(known.may_be_eligible("shop", &[]) && !known.may_be_eligible("plain", &[]));
        assert!(known.may_be_eligible("new", &[]) && !known.may_be_eligible("new", &["new".to_owned()]));
        fs::write(&path, "{\"namespaces\": {\"plain\": ").unwrap();
        assert!(Known::load(&path).may_be_eligible("plain", &[]), "a damaged file knows nobody");
        assert!(known.save(&folder.path().join("none/known.json")).is_err());
    }
}
