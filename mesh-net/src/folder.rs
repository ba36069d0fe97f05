//! A folder of YAML that stands in for an API server: which files in it count. Control plane and agents
//! read the same folder by the same rule.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Deepest folder that is looked into; more is a loop of links.
const DEPTH: usize = 32;
/// Largest file that is read, bytes.
const FILE_LIMIT: u64 = 64 << 20;

/// What can and what cannot be read below a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files of objects, sorted.
    pub files: Vec<PathBuf>,
    /// Folders that cannot be read, and why: what is in them is not known.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

/// Files of objects below a folder; names that start with a dot are skipped.
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
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
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

/// The text of a file.
///
/// # Errors
/// It cannot be read; with kind `InvalidData`: it is no regular file, too large or no UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    let found = fs::metadata(path)?;
    let strange = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    // Reading a pipe or a device may never end.
    if !found.is_file() {
        return strange("it is no regular file".into());
    }
    let size = found.len();
    if size > FILE_LIMIT {
        return strange(format!("{size} bytes are more than {FILE_LIMIT}"));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_objects_are_listed_in_order_and_hidden_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| fs::write(folder.path().join(name), "kind: Pod\n").unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        fs::create_dir(folder.path().join(".hidden")).unwrap();
        ["b.yml", "a.yaml", "deep/c.json", ".d.yaml", ".hidden/e.yaml", "f.txt"]
            .iter()
            .for_each(|name| make(name));
        let listing = list(folder.path());
        let names: Vec<_> =
            { listing.files.iter() }.map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
        assert_eq!(names, ["a.yaml", "b.yml", "deep/c.json"].map(Path::new));
        assert!(listing.unreadable.is_empty());
        let gone = folder.path().join("gone");
        assert_eq!(list(&gone).unreadable[0].0, gone);
    }

    #[test]
    fn what_is_no_regular_file_is_not_waited_for_and_what_is_no_text_is_told_from_what_is_unread() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.yaml");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(&pipe).unwrap_err();
        assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("no regular file"));
        let file = folder.path().join("file.yaml");
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::write(&file, "kind: Pod\n").unwrap();
        assert_eq!(read(&file).unwrap(), "kind: Pod\n");
        assert_eq!(read(&folder.path().join("gone.yaml")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
