//! Processes inside a world: in a namespace and a cgroup, with their output in a log file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait;

/// Where a process runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the network namespace.
    pub netns: String,
    /// Its cgroup; created when missing.
    pub cgroup: PathBuf,
    /// Whether it sees the pod's own `/etc/hosts` (and a fresh `/sys`), as a container does.
    pub container: bool,
}

impl Place {
    /// A command that runs `program` in this place.
    ///
    /// The shell joins the group first, so that every socket of the program is made inside it.
    pub fn command(&self, program: &str) -> Result<Command> {
        fs::create_dir_all(&self.cgroup)
            .with_context(|| format!("cannot create {}", self.cgroup.display()))?;
        let enter = if self.container {
            format!("ip netns exec {}", self.netns)
        } else {
            format!("nsenter --net=/run/netns/{}", self.netns)
        };
        let procs = self.cgroup.join("cgroup.procs");
        let script = format!("echo $$ > {} && exec {enter} \"$@\"", procs.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", program]).stdin(Stdio::null());
        Ok(command)
    }
}

/// A long-running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with both outputs appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id: `exec` all along, so that it is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for nothing.
    pub fn ask_to_end(&self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait::until(limit, "a process to end", || self.child.try_wait().ok().flatten())
    }

    /// SIGTERM, then SIGKILL after `limit`.
    pub fn terminate(&mut self, limit: Duration) {
        self.ask_to_end();
        if self.ended(limit).is_err() {
            self.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
