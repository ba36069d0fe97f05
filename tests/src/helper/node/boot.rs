//! The node's view of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use serde::Deserialize;

use super::keep::Program;

/// What the harness wants of a node.
#[derive(Debug, Deserialize)]
pub struct Plan {
    /// Its name.
    pub hostname: String,
    /// Its disk: `etc` (changes), `etc.work`, `var`, `opt`, `tmp`.
    pub state: PathBuf,
    /// Folders of the machine and where the node sees them, in this order.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// What to keep running, in this order.
    pub programs: Vec<Program>,
}

const NONE: Option<&str> = None;

/// Makes the mounts. The namespace is new and private, so the machine sees none of them.
pub fn boot(plan: &Plan) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", &plan.hostname).context("cannot set the host name")?;
    let part = |name: &str| plan.state.join(name);
    bind(&part("opt"), Path::new("/opt"))?;
    for (from, to) in &plan.binds {
        fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
        bind(from, to)?;
    }
    fresh("sysfs", "/sys")?;
    // The cgroup namespace is new too: its root is the node's group.
    fresh("cgroup2", "/sys/fs/cgroup")?;
    fresh("bpf", "/sys/fs/bpf")?;
    // Only for looking around.
    let _ = fresh("tracefs", "/sys/kernel/tracing");
    let overlay =
        format!("lowerdir=/etc,upperdir={},workdir={}", part("etc").display(), part("etc.work").display());
    let done = mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(overlay.as_str()));
    done.context("cannot lay the node's files over /etc")?;
    // Before /run and /var hide the place of the node's disk.
    bind(&part("tmp"), Path::new("/tmp"))?;
    let hidden = Path::new("/opt/cluster/state");
    fs::create_dir_all(hidden)?;
    bind(&plan.state, hidden)?;
    bind(&hidden.join("var"), Path::new("/var"))?;
    fresh("tmpfs", "/run")?;
    for folder in ["netns", "lock", "containerd"] {
        fs::create_dir_all(Path::new("/run").join(folder))?;
    }
    mount(NONE, "/", NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE).context("cannot share the mounts")?;
    // A group with groups below it that have limits must have no process of its own.
    let own = Path::new("/sys/fs/cgroup/init");
    fs::create_dir_all(own)?;
    Ok(fs::write(own.join("cgroup.procs"), "1")?)
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

fn fresh(kind: &str, to: &str) -> Result<()> {
    mount(Some(kind), to, Some(kind), MsFlags::empty(), NONE)
        .with_context(|| format!("cannot mount {kind} on {to}"))
}
