//! Debian packages unpacked into the cache; nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cache, find, is_root, output, run};

/// Folder of everything that `verify` keeps.
pub fn folder() -> Result<PathBuf> {
    let dir = cache()?.join("verify");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// A package of this version, or unpacked from the archive. The folder's name carries the version, and
/// it appears under its name only when complete: an interrupted download leaves no half of one.
pub fn fetch(package: &str) -> Result<PathBuf> {
    fetch_all(package, &[package.to_string()])
}

/// Several packages into one tree that is named after the first one's version.
pub fn fetch_all(package: &str, packages: &[String]) -> Result<PathBuf> {
    let version = candidate(package)?;
    let dir = folder()?.join(format!("{package}_{}", version.replace([':', '/'], "-")));
    if dir.exists() {
        return Ok(dir);
    }
    println!("verify: downloading {package} {version} ({} packages)", packages.len());
    let half = folder()?.join(format!(".{}-{package}", std::process::id()));
    let done = unpack(&half, packages).and_then(|()| Ok(fs::rename(half.join("root"), &dir)?));
    fs::remove_dir_all(&half).ok();
    // Another run may have been faster; its folder is as good.
    if dir.exists() { Ok(dir) } else { done.map(|()| dir) }
}

fn unpack(dir: &Path, packages: &[String]) -> Result<()> {
    fs::create_dir_all(dir.join("root"))?;
    run(Command::new("apt-get").current_dir(dir).args(["-qq", "download"]).args(packages))?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&path).arg(dir.join("root")))?;
        }
    }
    Ok(())
}

/// The version that apt would take.
fn candidate(package: &str) -> Result<String> {
    let text = apt_cache(&["policy", package])?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let version = line.filter(|version| *version != "(none)");
    version.map(str::to_string).with_context(|| format!("apt knows no package {package}"))
}

/// Package names that match, by Debian's own search; lists that are not there yet are fetched once.
pub fn search(pattern: &str) -> Result<Vec<String>> {
    let names = || -> Result<Vec<String>> {
        let text = apt_cache(&["search", "--names-only", pattern])?;
        Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_string).collect())
    };
    let found = names()?;
    if !found.is_empty() {
        return Ok(found);
    }
    ensure!(is_root(), "apt knows no package {pattern}; run: sudo apt-get update");
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    names()
}

fn apt_cache(args: &[&str]) -> Result<String> {
    if find("apt-cache").is_none() {
        bail!("there is no apt here, and kernels come as Debian packages");
    }
    output(Command::new("apt-cache").args(args))
}

/// What installing a package would bring along: what to unpack beside it.
pub fn with_dependencies(package: &str) -> Result<Vec<String>> {
    let text = output(Command::new("apt-get").args(["install", "-s", "--no-install-recommends", package]))?;
    let packages: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .map(str::to_string)
        .collect();
    ensure!(!packages.is_empty(), "apt would install nothing for {package}");
    Ok(packages)
}
