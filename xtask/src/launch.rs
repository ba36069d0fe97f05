//! `cargo xtask demo` and `cargo xtask bench`: build what they need, then become them.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    build,
    command::{cargo, find, is_root, run, target},
};

/// Programs beyond `setup`'s that a demo or a benchmark drives, and their Debian packages.
const LOAD: &[(&str, &str)] =
    &[("wrk", "wrk"), ("iperf3", "iperf3"), ("prometheus", "prometheus"), ("nsenter", "util-linux")];

/// Builds everything optimised and runs a program of the `tests` crate with the given arguments.
pub fn launch(root: &Path, program: &str, args: &[String]) -> Result<()> {
    load_programs()?;
    build::all(root, true)?;
    run(cargo(root).args(["build", "--release", "-p", "culvert-tests"]))?;
    let binary = target(root)?.join("release").join(program);
    let mut command = if is_root() {
        Command::new(&binary)
    } else {
        println!("{program} makes network namespaces and loads eBPF programs: it runs with sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(&binary);
        sudo
    };
    run(command.args(args))
}

fn load_programs() -> Result<()> {
    let missing: Vec<&str> =
        LOAD.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() || !is_root() {
        bail!("missing packages; run: sudo apt-get update && sudo apt-get install -y {list}");
    }
    println!("setup: installing {list}");
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    run(Command::new("apt-get").args(["-qq", "install", "-y", "--no-install-recommends"]).args(missing))
}
