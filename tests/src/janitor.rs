//! Removing worlds: at the end of a run, and what a killed run left behind.
//!
//! Only things that carry a world's id are touched, and only when the owner (pid and start time)
//! is gone and the world was not kept on purpose.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{cgroup, shell, wait};

/// Folder of all worlds on this machine.
pub const WORLDS: &str = "/run/culvert-worlds";
/// Prefix of every namespace that a world makes.
pub const NETNS_PREFIX: &str = "cvh";

/// How long programs may go on that a killed owner had started.
const ORPHANS: Duration = Duration::from_secs(5);

static CLAIMS: AtomicU64 = AtomicU64::new(0);

/// The folder of a world.
pub fn folder(id: &str) -> PathBuf {
    Path::new(WORLDS).join(id)
}

/// Folder of a world's admin sockets, where `culvert` looks for them.
pub fn sockets(id: &str) -> PathBuf {
    Path::new("/run/culvert").join(id)
}

/// Folder of a world's large files: on a disk, and real file systems for containers.
pub fn disk(id: &str) -> PathBuf {
    Path::new("/var/lib/culvert-worlds").join(id)
}

/// Start time of a process in clock ticks since boot: with the pid it names one process for ever.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(") ")?.1;
    after.split(' ').nth(19)?.parse().ok()
}

/// Held while worlds appear and vanish: without it a sweep that is still removing a dead world would
/// take away a new one that was given the same id meanwhile. Released when the file is dropped.
fn lock() -> Result<fs::File> {
    fs::create_dir_all(WORLDS)?;
    let file = fs::File::create(Path::new(WORLDS).join(".lock"))?;
    file.lock().context("cannot lock the worlds")?;
    Ok(file)
}

/// Claims a fresh world for this process and returns its id.
///
/// The folder appears under its name only with the owner written in it: a sweep by another process
/// never sees a world without an owner that is about to get one.
pub fn claim() -> Result<String> {
    let pid = std::process::id();
    let started = start_time(pid).context("own start time")?;
    let _held = lock()?;
    loop {
        // Counted on, so that one process never uses an id twice.
        let salt = CLAIMS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:04x}", (u64::from(pid) * 31 + started + salt * 977) & 0xffff);
        let fresh = Path::new(WORLDS).join(format!(".{pid}-{salt}"));
        if fs::create_dir(&fresh).is_err() {
            continue;
        }
        fs::write(fresh.join("owner"), format!("{pid} {started}"))?;
        // A world's folder is never empty, so renaming onto an existing one fails.
        if fs::rename(&fresh, folder(&id)).is_ok() {
            return Ok(id);
        }
        fs::remove_dir_all(&fresh)?;
    }
}

/// Ids of the worlds that exist.
pub fn worlds() -> Vec<String> {
    let Ok(entries) = fs::read_dir(WORLDS) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Removes every world whose owner is gone and that was not kept.
pub fn sweep() -> Result<()> {
    let _held = lock()?;
    let gone = worlds().into_iter().filter(|id| !is_owned(id) && !folder(id).join("keep").exists());
    gone.into_iter().try_for_each(|id| taken_down(&id))
}

fn is_owned(id: &str) -> bool {
    let Ok(owner) = fs::read_to_string(folder(id).join("owner")) else { return false };
    let Some((pid, started)) = owner.split_once(' ') else { return false };
    pid.parse().ok().and_then(start_time).is_some_and(|now| now.to_string() == started)
}

/// Removes a world: processes, namespaces, mounts, groups, files.
pub fn remove(id: &str) -> Result<()> {
    let _held = lock()?;
    // A sweep may have been faster.
    if folder(id).exists() { taken_down(id) } else { Ok(()) }
}

/// Tries until it is gone: what a killed owner had started, such as a mount, may be at work for a moment.
fn taken_down(id: &str) -> Result<()> {
    let mut last = None;
    let gone = wait::until(ORPHANS, "what is left of a world to go", || match take_down(id) {
        Ok(()) => Some(()),
        Err(error) => {
            last = Some(error);
            None
        }
    });
    gone.map_err(|slow| last.unwrap_or(slow))
}

fn take_down(id: &str) -> Result<()> {
    cgroup::remove(&cgroup::of_world(id)?)?;
    let prefix = format!("{NETNS_PREFIX}{id}");
    for line in shell::ip("netns list")?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if name.starts_with(&prefix) {
            shell::ip(&format!("netns del {name}"))?;
            let _ = fs::remove_dir_all(Path::new("/etc/netns").join(name));
        }
    }
    let root = folder(id);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(point).starts_with(&root) {
            shell::output(Command::new("umount").arg(point))?;
        }
    }
    let _ = fs::remove_dir_all(sockets(id));
    let _ = fs::remove_dir_all(disk(id));
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}
