//! Good versions on disk: what is refused after a restart has the version that was read before it
//! (decision 0032).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use super::{Load, Store, Stored, files::Document};
use crate::{disk, object::Key};

/// Kinds that others write all the time: of these only the present counts.
const VOLATILE: [&str; 3] = ["Pod", "Node", "EndpointSlice"];

/// One document and which of its objects it is the good version of.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    file: String,
    line: usize,
    text: String,
    objects: BTreeSet<String>,
}

/// The file of good versions.
#[derive(Debug)]
pub struct Good {
    file: Option<PathBuf>,
    /// Hash of what was written last.
    written: u64,
}

impl Good {
    /// Kept in a file; without one nothing is.
    pub fn new(file: Option<PathBuf>) -> Self {
        Self { file, written: 0 }
    }

    /// A store that knows the good versions of the last run. Its first load drops those whose documents
    /// are good or gone.
    pub fn restore(&self) -> Store {
        let kept: Vec<Kept> = self.file.as_deref().map(disk::load).unwrap_or_default();
        let mut store = Store::default();
        for Kept { file, line, text, objects } in kept {
            let mut load = Load::default();
            load.document(&Document { file, line, text });
            store
                .objects
                .extend(load.objects.into_iter().filter(|(key, _)| objects.contains(&key.to_string())));
        }
        store
    }

    /// Writes the good versions of a store if they are others than the last time.
    pub fn keep(&mut self, store: &Store) {
        let Some(file) = &self.file else { return };
        let kept = |(key, stored): &(&Key, &Stored)| !stored.stand_in && !VOLATILE.contains(&&*key.kind);
        let mut documents = BTreeMap::new();
        for (key, stored) in store.objects.iter().filter(kept) {
            let objects: &mut BTreeSet<String> =
                documents.entry((&stored.file, stored.line, &stored.text)).or_default();
            objects.insert(key.to_string());
        }
        let list: Vec<Kept> = documents
            .into_iter()
            .map(|((file, line, text), objects)| Kept {
                file: file.clone(),
                line,
                text: text.clone(),
                objects,
            })
            .collect();
        let hash = XxHash64::oneshot(0, &serde_json::to_vec(&list).unwrap_or_default());
        if hash != self.written {
            disk::save(file, &list, "good versions");
            self.written = hash;
        }
    }
}
