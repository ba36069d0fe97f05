//! The virtual machine: QEMU under software emulation, with its console read as text.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::package;
use crate::command::{find as find_program, output};

/// A kernel boots and passes in about 15 s on a busy machine; after this it hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Lines shown of a run that failed.
const TAIL: usize = 40;
/// QEMU's Debian package.
const PACKAGE: &str = "qemu-system-x86";

/// A QEMU that starts here.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    /// Root of the unpacked package; none when it is installed.
    tree: Option<PathBuf>,
}

/// What a run printed.
#[derive(Debug)]
pub struct Console {
    /// The serial console.
    pub text: String,
    /// From start to end.
    pub seconds: f64,
    /// Whether the limit ended it.
    pub timed_out: bool,
}

impl Console {
    /// Its last lines.
    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// Finds the installed QEMU, or one in the cache, or unpacks one there.
pub fn find() -> Result<Qemu> {
    ensure!(cfg!(target_arch = "x86_64"), "the kernels are of x86_64, and this machine is not");
    if let Some(program) = find_program("qemu-system-x86_64") {
        return Ok(Qemu { program, tree: None });
    }
    let qemu = unpacked()?;
    if qemu.starts() {
        return Ok(qemu);
    }
    // The tree lacks libraries that were installed when it was made, and are not any more.
    fs::remove_dir_all(qemu.tree.iter().next().context("unpacked")?)?;
    let qemu = unpacked()?;
    ensure!(qemu.starts(), "{} does not start", qemu.program.display());
    Ok(qemu)
}

fn unpacked() -> Result<Qemu> {
    let tree = package::fetch_all(PACKAGE, &package::with_dependencies(PACKAGE)?)?;
    Ok(Qemu { program: tree.join("usr/bin/qemu-system-x86_64"), tree: Some(tree) })
}

impl Qemu {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(tree) = &self.tree {
            let lib = |path: &str| tree.join(path).display().to_string();
            let libraries =
                ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph", "lib/x86_64-linux-gnu"];
            command.env("LD_LIBRARY_PATH", libraries.map(lib).join(":"));
            command.env("QEMU_MODULE_DIR", lib("usr/lib/x86_64-linux-gnu/qemu"));
            for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(tree.join(data));
            }
        }
        command
    }

    fn starts(&self) -> bool {
        output(self.command().arg("--version")).is_ok()
    }
}

/// Boots a kernel and reads its console until the machine goes off or the limit is reached.
pub fn run(qemu: &Qemu, kernel: &Path, initramfs: &Path) -> Result<Console> {
    let started = Instant::now();
    let mut command = qemu.command();
    command
        .args(["-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        // Only emergencies on the console: a warning must not fall into the middle of a result line.
        .args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("QEMU does not start")?;
    let mut serial = child.stdout.take().context("QEMU's output is piped")?;
    let (ended, end) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        serial.read_to_end(&mut bytes).ok();
        ended.send(()).ok();
        bytes
    });
    let timed_out = end.recv_timeout(LIMIT).is_err();
    // Also after the console's end: a QEMU that closed it without ending must not stay behind.
    child.kill().ok();
    child.wait().context("QEMU")?;
    let bytes = reader.join().ok().context("the console's reader panicked")?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Console { text, seconds: started.elapsed().as_secs_f64(), timed_out })
}
