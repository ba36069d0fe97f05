//! The files of a cluster folder: reading and replacing them. That a list stands for its items
//! is the control plane's rule too.

use std::{fs, io, path::Path};

use mesh_net::folder;
use serde::Deserialize;
use serde_json::Value;

pub use mesh_net::folder::list;

/// Why the documents of a file are not known.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call failed.
    #[error("cannot be read: {0}")]
    Unread(#[from] io::Error),
    /// Its bytes are no objects, or not at this moment.
    #[error("is not understood: {0}")]
    Strange(String),
}

/// The documents of a file; empty ones are left out.
///
/// # Errors
/// It cannot be read, is too large or no YAML.
pub fn read(path: &Path) -> Result<Vec<Value>, FileError> {
    let strange = |error: &dyn std::fmt::Display| FileError::Strange(error.to_string());
    let text = folder::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => strange(&error),
        _ => FileError::Unread(error),
    })?;
    let documents = serde_norway::Deserializer::from_str(&text).map(Value::deserialize);
    let mut documents = documents.collect::<Result<Vec<_>, _>>().map_err(|error| strange(&error))?;
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

/// The objects of a document: its items when it is a list, else itself.
pub fn objects(document: &Value) -> Vec<&Value> {
    match is_list(document) {
        true => document["items"].as_array().into_iter().flatten().collect(),
        false => vec![document],
    }
}

/// The same, to be changed.
pub fn objects_mut(document: &mut Value) -> Vec<&mut Value> {
    match is_list(document) {
        true => document["items"].as_array_mut().into_iter().flatten().collect(),
        false => vec![document],
    }
}

fn is_list(document: &Value) -> bool {
    document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"))
}

/// Replaces a file in one step, so that no watcher reads half of it.
///
/// # Errors
/// The folder cannot be written.
pub fn write(path: &Path, documents: &[Value]) -> io::Result<()> {
    let text = match documents {
        [one] if path.extension().is_some_and(|end| end == "json") => serde_json::to_string_pretty(one)?,
        several => yaml(several)?,
    };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("pod");
    let hidden = path.with_file_name(format!(".{name}.agent"));
    fs::write(&hidden, text)?;
    fs::rename(&hidden, path)
}

fn yaml(documents: &[Value]) -> io::Result<String> {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(document).map_err(io::Error::other)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_not_waited_for_by_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.yaml");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&pipe).unwrap_err().to_string().contains("no regular file"));
        let file = folder.path().join("file.yaml");
        fs::write(&file, "kind: Pod\n").unwrap();
        assert_eq!(read(&file).unwrap().len(), 1);
    }
}
