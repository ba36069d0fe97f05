//! `cargo xtask demo` and `cargo xtask bench`: build what they need, then become them.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{
    build,
    command::{cargo, is_root, run, target},
    setup::{self, Need},
};

/// Builds everything optimised and runs a program of the `tests` crate with the given arguments; its
/// exit status is ours.
pub fn launch(root: &Path, program: &str, args: &[String]) -> Result<ExitCode> {
    setup::ensure(Need::Test)?;
    if args.iter().any(|word| word.starts_with("--ztunnel")) {
        setup::ensure_program("iptables-restore", "iptables")?;
    }
    build::all(root, true)?;
    run(cargo(root).args(["build", "--release", "-p", "culvert-tests"]))?;
    if program == "culvert-bench" {
        run(cargo(root).args(["build", "--release", "-p", "waypoint", "--example", "http_bench"]))?;
    }
    let binary = target(root)?.join("release").join(program);
    let mut command = if is_root() {
        Command::new(&binary)
    } else {
        println!("{program} makes network namespaces and loads eBPF programs: it runs with sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(&binary);
        sudo
    };
    let status = command.args(args).status().with_context(|| format!("cannot start {program}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
