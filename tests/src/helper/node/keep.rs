//! Keeps programs running and reaps what they leave: the duty of a first process.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
};
use serde::Deserialize;

/// Before a program that ended is started again, and between two looks for a socket.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a socket is looked for.
const LOOKS: u32 = 600;
/// The programs' logs, on the node's disk.
const LOGS: &str = "/var/log/node";

/// A program of the node.
#[derive(Debug, Deserialize)]
pub struct Program {
    /// Name of its log file.
    pub name: String,
    /// Program and arguments.
    pub words: Vec<String>,
    /// The next program starts when this socket is there.
    pub socket: Option<PathBuf>,
}

/// Starts the programs in their order and starts again whatever ends; never returns but by an error.
pub fn keep(programs: &[Program]) -> Result<()> {
    let mut running = BTreeMap::new();
    for (index, program) in programs.iter().enumerate() {
        running.insert(start(program)?, index);
        program.socket.as_deref().map(wait).transpose()?;
    }
    loop {
        let pid = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid.as_raw(),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("nothing left to wait for"),
        };
        if let Some(program) = running.remove(&pid).and_then(|index| programs.get(index).map(|p| (index, p)))
        {
            eprintln!("{} ended; starting it again", program.1.name);
            thread::sleep(PAUSE);
            running.insert(start(program.1)?, program.0);
        }
    }
}

/// Its process id; whoever reaps it is [`keep`].
fn start(program: &Program) -> Result<i32> {
    let (name, words) = program.words.split_first().context("a program has a name")?;
    std::fs::create_dir_all(LOGS)?;
    let path = Path::new(LOGS).join(format!("{}.log", program.name));
    let log = File::options().create(true).append(true).open(path)?;
    let mut command = Command::new(name);
    command.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.env("PATH", "/opt/cluster/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    Ok(i32::try_from(child.id())?)
}

fn wait(socket: &Path) -> Result<()> {
    let there = (0..LOOKS).any(|_| {
        let there = socket.exists();
        if !there {
            thread::sleep(PAUSE);
        }
        there
    });
    there.then_some(()).with_context(|| format!("{} did not appear", socket.display()))
}
