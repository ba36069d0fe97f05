//! Processes of pods, by their control groups.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::netns::Held;

/// Length of a container's id in the names of its control groups.
const ID: usize = 64;

/// A process, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    /// When it started, in clock ticks since boot.
    started: u64,
    /// Its id below `/proc`.
    pub(super) pid: u32,
}

/// A `/proc`, this one's or the node's.
pub struct Processes {
    root: PathBuf,
}

impl Processes {
    /// The processes of a mounted proc file system.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Processes by the uid of their pod or the id of their container, of those asked for. Processes that end meanwhile are none.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn of(&self, ids: &BTreeSet<&str>) -> io::Result<HashMap<String, Vec<Process>>> {
        let mut found: HashMap<String, Vec<Process>> = HashMap::new();
        let failed =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.root.display()));
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok()) else {
                continue;
            };
            let Some(id) = self.owner(pid).filter(|id| ids.contains(id.as_str())) else { continue };
            if let Some(started) = self.started(pid) {
                found.entry(id).or_default().push(Process { started, pid });
            }
        }
        Ok(found)
    }

    /// The process's network namespace, if it is still the process that was seen.
    ///
    /// # Errors
    /// It has ended, or CAP_SYS_PTRACE is missing.
    pub(super) fn namespace(&self, process: &Process) -> io::Result<Held> {
        let held = Held::new(File::open(self.file(process.pid, "ns/net"))?)?;
        // The id may be another process's by now; one that started at the same tick cannot have it.
        match self.started(process.pid) == Some(process.started) {
            true => Ok(held),
            false => Err(io::Error::new(io::ErrorKind::NotFound, "it has ended")),
        }
    }

    fn file(&self, pid: u32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    fn owner(&self, pid: u32) -> Option<String> {
        owner_of(&fs::read_to_string(self.file(pid, "cgroup")).ok()?)
    }

    fn started(&self, pid: u32) -> Option<u64> {
        let text = fs::read_to_string(self.file(pid, "stat")).ok()?;
        // The second field is the program's name, which may hold anything (proc_pid_stat(5)).
        text.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
    }
}

/// What a process belongs to, from the text of `/proc/<pid>/cgroup`: of the groups in its path the outermost
/// that is named after a pod or a container. What is further in, a container may have made itself under any
/// name. Of several lines the unified hierarchy's counts.
fn owner_of(text: &str) -> Option<String> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let unified = lines().find(|(controllers, _)| controllers.is_empty());
    let path = unified.and_then(|(_, path)| outermost(path));
    path.or_else(|| lines().find_map(|(_, path)| outermost(path)))
}

fn outermost(path: &str) -> Option<String> {
    path.split('/').find_map(|name| pod(name).or_else(|| container(name)))
}

/// `kubepods-burstable-pod<uid with underscores>.slice`, `pod<uid>`; a static pod's uid has no dashes.
fn pod(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = name.rsplit_once("pod")?.1.replace('_', "-");
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let is = match uid.len() {
        36 => uid
            .bytes()
            .enumerate()
            .all(|(at, b)| if [8, 13, 18, 23].contains(&at) { b == b'-' } else { hex(b) }),
        32 => uid.bytes().all(hex),
        _ => false,
    };
    is.then_some(uid)
}

/// `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`, `<id>`.
fn container(name: &str) -> Option<String> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit(['-', ':']).next()?;
    let hex = id.len() == ID && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hex.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_the_outermost_group_that_has_the_name_of_a_pod_or_a_container() {
        let (own, other) = ("a1".repeat(32), "b2".repeat(32));
        let is = |text: &str| assert_eq!(owner_of(text).as_deref(), Some(own.as_str()), "{text}");
        is(&format!("0::/k8s.io/{own}\n"));
        is(&format!("0::/../../system.slice/cri-containerd-{own}.scope\n"));
        is(&format!("0::/kubepods.slice/crio-{own}.scope/container\n"));
        is(&format!("4:memory:/kubepods/{own}\n1:name=systemd:/kubepods/{own}\n0::/\n"));
        // A group that a container made below its own, with another one's name, does not make it the other.
        is(&format!("0::/kubepods/{own}/{other}\n"));
        is(&format!("0::/kubepods/{own}/pod0f0e0d0c-1111-2222-3333-444455556666\n"));
        is(&format!("4:memory:/{other}\n0::/k8s.io/{own}\n"));
        let uid = "0f0e0d0c-1111-2222-3333-444455556666";
        for text in [
            format!("0::/kubepods/burstable/pod{uid}/{own}"),
            format!(
                "0::/../kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/x/{own}",
                uid.replace('-', "_")
            ),
        ] {
            assert_eq!(owner_of(&text).as_deref(), Some(uid), "{text}");
        }
        let static_uid = "0123456789abcdef0123456789abcdef";
        assert_eq!(owner_of(&format!("0::/kubepods/pod{static_uid}/{own}")).as_deref(), Some(static_uid));
        for none in
            ["", "0::/", "0::/user.slice/session-3.scope", "nonsense", "0::/kubepods/podu1/A1", "0::/pods"]
        {
            assert_eq!(owner_of(none), None, "{none}");
        }
    }
}
