//! A kernel series → the newest Debian package of it, unpacked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::package;

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Package and version.
    pub package: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Folder with the modules.
    pub modules: PathBuf,
}

/// Finds the newest package of a series (old ones vanish from the archive), or what the cache has.
pub fn find(series: &str) -> Result<Kernel> {
    let found = newest(series).and_then(|package| package::fetch(&package));
    let dir = match found {
        Ok(dir) => dir,
        Err(error) => cached(series)?.ok_or(error).with_context(|| format!("no kernel {series}"))?,
    };
    open(&dir)
}

/// Debian names kernels of a release `linux-image-6.1.0-56-cloud-amd64`, and backported ones
/// `linux-image-6.12.117+deb12-cloud-amd64`.
fn newest(series: &str) -> Result<String> {
    let pattern = format!("^linux-image-{}[.][0-9.+~a-z-]*cloud-amd64$", series.replace('.', "[.]"));
    let packages = package::search(&pattern)?.into_iter().filter(|name| !name.contains("unsigned"));
    packages.max_by_key(|name| version(name)).with_context(|| format!("apt knows no kernel {series}"))
}

/// Every number of a name, so that 6.1.0-9 comes before 6.1.0-56.
fn version(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// The newest one of the series that an earlier run unpacked.
fn cached(series: &str) -> Result<Option<PathBuf>> {
    let (folder, prefix) = (package::folder()?, format!("linux-image-{series}."));
    let found = fs::read_dir(&folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix));
    Ok(found.max_by_key(|name| version(name)).map(|name| folder.join(name)))
}

fn open(dir: &Path) -> Result<Kernel> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = first(&dir.join("boot"), "vmlinuz-")?;
    // Newer packages put modules below /usr.
    let below = ["lib/modules", "usr/lib/modules"].map(|path| dir.join(path));
    let modules = below.iter().find(|path| path.is_dir()).context("the package has no modules")?;
    Ok(Kernel { package: name, image, modules: first(modules, "")?.join("kernel") })
}

fn first(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    paths.into_iter().min().with_context(|| format!("nothing named {prefix}* in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_packages_are_ordered_by_number_not_by_letter() {
        let mut names = ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"];
        names.sort_by_key(|name| version(name));
        assert_eq!(names[1], "linux-image-6.1.0-56-cloud-amd64");
        let (old, new) = ("linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64");
        assert!(version(old) < version(new));
    }
}
