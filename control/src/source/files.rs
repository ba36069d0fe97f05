//! Files of a cluster folder and the documents in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Deepest folder that is looked into; more is a loop of links.
const DEPTH: usize = 32;
/// Largest file that is read, bytes.
const FILE_LIMIT: u64 = 64 << 20;

/// A document of a file.
pub struct Document {
    /// File, relative to the folder.
    pub file: String,
    /// Its first line, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
}

/// What can and what cannot be read below a folder.
#[derive(Default)]
pub struct Listing {
    /// YAML files, sorted.
    pub files: Vec<PathBuf>,
    /// Folders that cannot be read, and why.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

/// YAML files below a folder; names that start with a dot are skipped.
pub fn list(folder: &Path) -> Listing {
    let mut listing = Listing::default();
    walk(folder, DEPTH, &mut listing);
    listing.files.sort();
    listing
}

fn walk(folder: &Path, depth: usize, listing: &mut Listing) {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => return listing.unreadable.push((folder.into(), error)),
    };
    for path in entries.into_iter().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or(".");
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth > 0 {
                walk(&path, depth - 1, listing);
            }
        } else if [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end)) {
            listing.files.push(path);
        }
    }
}

/// The text of a file of bounded size.
///
/// # Errors
/// It cannot be read, is no regular file, no UTF-8 or too large.
pub fn read(path: &Path) -> io::Result<String> {
    let found = fs::metadata(path)?;
    // Reading a pipe or a device may never end.
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let size = found.len();
    if size > FILE_LIMIT {
        return Err(io::Error::other(format!("{size} bytes are more than {FILE_LIMIT}")));
    }
    fs::read_to_string(path)
}

/// Splits a file where YAML begins or ends a document: at `---` and `...`, whatever else is on the line.
pub fn split(file: &str, text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut start, mut current) = (1, String::new());
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let Some(rest) = after_marker(line) else {
            current.push_str(line);
            current.push('\n');
            continue;
        };
        documents.push(Document { file: file.into(), line: start, text: std::mem::take(&mut current) });
        start = index + 2;
        if !rest.trim().is_empty() {
            start = index + 1;
            current = format!("{rest}\n");
        }
    }
    documents.push(Document { file: file.into(), line: start, text: current });
    documents.retain(|d| d.text.lines().any(says_something));
    documents
}

/// What follows `---` or `...` on its line; none for a line that is no marker.
fn after_marker(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."))?;
    (rest.is_empty() || rest.starts_with([' ', '\t', '\r'])).then_some(rest)
}

/// Comments and directives (`%YAML 1.2`) are no document.
fn says_something(line: &str) -> bool {
    let text = line.trim_start();
    !text.is_empty() && !text.starts_with('#') && !line.starts_with('%')
}
