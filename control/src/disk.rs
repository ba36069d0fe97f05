//! Where things are remembered: a file of the state folder, or together with other replicas.

use std::{io, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use crate::shelf::Shelf;

/// A place for one thing.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// It lasts as long as the process.
    #[default]
    Nowhere,
    /// A file.
    File(PathBuf),
    /// A text of a shelf.
    Shared(Shelf, &'static str),
}

impl Place {
    /// What is there; nothing when there is nothing. What cannot be parsed is reported.
    pub fn load<T: DeserializeOwned + Default>(&self) -> T {
        let (text, name) = match self {
            Self::Nowhere => return T::default(),
            Self::File(file) => (std::fs::read(file).ok(), file.display().to_string()),
            Self::Shared(shelf, name) => (shelf.get(name).map(String::into_bytes), (*name).to_string()),
        };
        let Some(text) = text else { return T::default() };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::error!(%error, state = name, "state cannot be parsed and is forgotten");
            T::default()
        })
    }

    /// Keeps a value: a file is written beside its old version and swapped with it. A failure is reported:
    /// state then lasts as long as the process.
    pub fn save(&self, value: &impl Serialize, what: &str) {
        let kept = match self {
            Self::Nowhere => Ok(()),
            Self::File(file) => serde_json::to_vec_pretty(value).map_err(io::Error::from).and_then(|text| {
                let hidden = file.with_extension("tmp");
                std::fs::write(&hidden, text)?;
                std::fs::rename(&hidden, file)
            }),
            Self::Shared(shelf, name) => {
                serde_json::to_string(value).map_err(io::Error::from).map(|text| shelf.put(name, text))
            }
        };
        if let Err(error) = kept {
            tracing::error!(%error, what, "state cannot be kept");
        }
    }
}
