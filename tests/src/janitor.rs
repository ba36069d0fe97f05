//! Removing worlds: at the end of a run, and what a killed run left behind.
//!
//! Only things that carry a world's id are touched, and only when the owner (pid and start time)
//! is gone and the world was not kept on purpose.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{cgroup, shell};

/// Folder of all worlds on this machine.
pub const WORLDS: &str = "/run/culvert-worlds";
/// Prefix of every namespace that a world makes.
pub const NETNS_PREFIX: &str = "cvh";

/// The folder of a world.
pub fn folder(id: &str) -> PathBuf {
    Path::new(WORLDS).join(id)
}

/// Start time of a process in clock ticks since boot: with the pid it names one process for ever.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(") ")?.1;
    after.split(' ').nth(19)?.parse().ok()
}

/// Claims a fresh world for this process and returns its id.
///
/// The folder appears under its name only with the owner written in it: a sweep by another process
/// never sees a world without an owner that is about to get one.
pub fn claim() -> Result<String> {
    let pid = std::process::id();
    let started = start_time(pid).context("own start time")?;
    for salt in 0_u64.. {
        let id = format!("{:04x}", (u64::from(pid) * 31 + started + salt * 977) & 0xffff);
        let fresh = Path::new(WORLDS).join(format!(".{pid}-{salt}"));
        fs::create_dir_all(WORLDS)?;
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
    unreachable!("the loop only ends by returning")
}

/// Ids of the worlds that exist.
pub fn worlds() -> Vec<String> {
    let Ok(entries) = fs::read_dir(WORLDS) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Removes every world whose owner is gone and that was not kept.
pub fn sweep() -> Result<()> {
    for id in worlds() {
        if !is_owned(&id) && !folder(&id).join("keep").exists() {
            // Another run may sweep the same world at this moment.
            remove(&id).or_else(|error| if folder(&id).exists() { Err(error) } else { Ok(()) })?;
        }
    }
    Ok(())
}

fn is_owned(id: &str) -> bool {
    let Ok(owner) = fs::read_to_string(folder(id).join("owner")) else { return false };
    let Some((pid, started)) = owner.split_once(' ') else { return false };
    pid.parse().ok().and_then(start_time).is_some_and(|now| now.to_string() == started)
}

/// Removes a world: processes, namespaces, mounts, groups, files.
pub fn remove(id: &str) -> Result<()> {
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
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}
