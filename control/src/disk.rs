//! Small files of the state folder.

use std::{io, path::Path};

use serde::{Serialize, de::DeserializeOwned};

/// What a file remembers; nothing when it is not there. One that cannot be parsed is reported.
pub fn load<T: DeserializeOwned + Default>(file: &Path) -> T {
    let Ok(text) = std::fs::read(file) else { return T::default() };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::error!(%error, file = %file.display(), "state cannot be parsed and is forgotten");
        T::default()
    })
}

/// Writes a file beside its old version and swaps them. A failure is reported: state then lasts as long
/// as the process.
pub fn save(file: &Path, value: &impl Serialize, what: &str) {
    let written = serde_json::to_vec_pretty(value).map_err(io::Error::from).and_then(|text| {
        let hidden = file.with_extension("tmp");
        std::fs::write(&hidden, text)?;
        std::fs::rename(&hidden, file)
    });
    if let Err(error) = written {
        tracing::error!(%error, what, "state cannot be kept");
    }
}
