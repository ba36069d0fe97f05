//! Good versions on disk: what is refused after a restart has the version that was read before it
//! (decision 0032).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use super::{Load, Origin, Store, Stored, files::Document};
use crate::{disk::Place, object::Key};

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

/// Most bytes of good versions that replicas keep together: a ConfigMap holds a megabyte in all.
const SHARED: usize = 512 << 10;

/// Where good versions are kept.
#[derive(Debug)]
pub struct Good {
    /// Those of the folder.
    folder: Place,
    /// Those of the API server.
    shared: Place,
    /// Hash of what was written last.
    written: u64,
}

impl Good {
    /// Documents of a folder are kept in one place and objects of an API server in another.
    pub fn new(folder: Place, shared: Place) -> Self {
        Self { folder, shared, written: 0 }
    }

    /// A store that knows the good versions of the last run. Its first load drops those whose documents
    /// are good or gone.
    pub fn restore(&self) -> Store {
        let kept: Vec<Kept> = self.folder.load();
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
        if let Place::Shared(..) = self.shared {
            self.shared.save(&of_refused(store), "good versions");
        }
        let Place::File(_) = self.folder else { return };
        let kept = |(key, stored): &(&Key, &Stored)| {
            stored.origin == Origin::Folder && !stored.stand_in && !VOLATILE.contains(&&*key.kind)
        };
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
            self.folder.save(&list, "good versions");
            self.written = hash;
        }
    }
}

/// The API server has every good version but those of objects that it replaced by refused ones: only these
/// are kept.
fn of_refused(store: &Store) -> BTreeMap<String, String> {
    let mut room = SHARED;
    let refused = store.api().into_iter().flat_map(|api| api.refused());
    refused
        .filter_map(|key| Some((key, store.objects.get(key)?)))
        .filter(|(_, stored)| stored.origin == Origin::Kubernetes && !stored.stand_in)
        .filter(|(key, stored)| {
            let fits = stored.text.len() <= room;
            room -= if fits { stored.text.len() } else { 0 };
            if !fits {
                tracing::error!(object = %key, "no room for the good version of a refused object");
            }
            fits
        })
        .map(|(key, stored)| (key.to_string(), stored.text.clone()))
        .collect()
}
