//! The files of an image, and the layer made of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// One path of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder and its mode.
    Folder(u32),
    /// A file: mode and contents.
    File(u32, Vec<u8>),
    /// A symbolic link and where it points.
    Link(String),
}

/// Entries by absolute path; sorted, so that the same files give the same layer.
#[derive(Debug, Default)]
pub struct Rootfs {
    entries: BTreeMap<String, Entry>,
    /// Libraries that programs brought, as the machine has them.
    pub libraries: BTreeMap<String, PathBuf>,
}

impl Rootfs {
    /// Adds a folder and those above it.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.parents(path);
        self.entries.insert(path.to_string(), Entry::Folder(mode));
    }

    /// Adds a file and the folders above it.
    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.parents(path);
        self.entries.insert(path.to_string(), Entry::File(mode, bytes));
    }

    /// Adds a symbolic link and the folders above it.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entries.insert(path.to_string(), Entry::Link(target.to_string()));
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').skip(1) {
            self.entries.entry(path[..at].to_string()).or_insert(Entry::Folder(0o755));
        }
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Adds a program of the machine with the libraries and the loader that it needs.
    pub fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.program_bytes(&bytes, from, to)
    }

    /// The same with other contents than the file's own, whose libraries are taken.
    pub fn program_bytes(&mut self, bytes: &[u8], from: &Path, to: &str) -> Result<()> {
        self.file(to, 0o755, bytes.to_vec());
        for library in libraries(from)? {
            let name = library.display().to_string();
            if !self.has(&name) {
                let bytes = fs::read(&library).with_context(|| format!("cannot read {name}"))?;
                self.file(&name, 0o755, bytes);
                self.libraries.insert(name, library);
            }
        }
        Ok(())
    }

    /// Contents of a file.
    pub fn contents(&self, path: &str) -> Option<&[u8]> {
        match self.entries.get(path)? {
            Entry::File(_, bytes) => Some(bytes),
            Entry::Folder(_) | Entry::Link(_) => None,
        }
    }

    /// A tar of everything: sorted, of root, without times.
    pub fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let path = path.trim_start_matches('/');
            match entry {
                Entry::Folder(mode) => {
                    tar.append_data(&mut header(EntryType::Directory, *mode, 0), path, &[][..])
                }
                Entry::File(mode, bytes) => {
                    let size = u64::try_from(bytes.len())?;
                    tar.append_data(&mut header(EntryType::Regular, *mode, size), path, bytes.as_slice())
                }
                Entry::Link(target) => {
                    tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)
                }
            }
            .with_context(|| format!("cannot put {path} into a layer"))?;
        }
        tar.into_inner().context("cannot finish a layer")
    }
}

/// A header that says nothing of the machine.
pub fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Libraries and loader of a program; none of a static one, which `ldd` calls a failure.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    anyhow::ensure!(!text.contains("not found"), "{} misses a library:\n{text}", program.display());
    Ok(text.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/…/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let path = path.split(" (").next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The package manager's name and version of a file's package, where there is one.
pub fn package_of(library: &Path) -> Option<(String, String)> {
    // Packages know a file by its old place also where `/lib` is a link to `/usr/lib`.
    let real = fs::canonicalize(library).ok()?;
    let owner = [library, &real].iter().find_map(|path| dpkg(&["-S", &path.display().to_string()]))?;
    let name = owner.split(": ").next()?.split(',').next()?.to_string();
    let version = dpkg(&["-f", "${Version}", "-W", &name])?;
    Some((name.split(':').next()?.to_string(), version.trim().to_string()))
}

fn dpkg(words: &[&str]) -> Option<String> {
    let out = Command::new("dpkg-query").args(words).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Rootfs {
        let mut files = Rootfs::default();
        files.file("/usr/bin/b", 0o755, b"two".to_vec());
        files.link("/bin", "usr/bin");
        files.file("/etc/a", 0o644, b"one".to_vec());
        files
    }

    #[test]
    fn a_layer_has_the_folders_above_its_files_and_says_nothing_of_the_machine() {
        let layer = sample().layer().unwrap();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
            seen.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(seen, ["bin", "etc", "etc/a", "usr", "usr/bin", "usr/bin/b"]);
        assert_eq!(layer, sample().layer().unwrap());
    }

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x0000)"), None);
        assert_eq!(library("\tlibc.so.6 => /lib/libc.so.6 (0x0000)"), Some("/lib/libc.so.6".into()));
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x0)"),
            Some("/lib64/ld-linux-x86-64.so.2".into())
        );
    }
}
