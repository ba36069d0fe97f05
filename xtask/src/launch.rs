//! `cargo xtask demo` and `cargo xtask bench`: build what they need, then become them.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{
    build,
    command::{cargo, is_root, run, target},
    setup::{self, Need, kubernetes::Part},
    test::Cluster,
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
    let folder = target(root)?.join("release");
    let binary = folder.join(program);
    let kubernetes = args.iter().any(|word| word == "--kubernetes");
    let cluster = kubernetes.then(|| cluster(root, &folder)).transpose()?;
    let mut command = if is_root() {
        Command::new(&binary)
    } else {
        println!("{program} makes network namespaces and loads eBPF programs: it runs with sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(&binary);
        sudo
    };
    if let Some(cluster) = cluster {
        cluster.tell(&mut command);
    }
    let status = command.args(args).status().with_context(|| format!("cannot start {program}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// What a cluster's demo needs besides.
fn cluster(root: &Path, folder: &Path) -> Result<Cluster> {
    setup::ensure(Need::Cluster)?;
    let cluster = Cluster::prepare(root, folder, &[Part::ControlPlane, Part::Nodes])?;
    cluster.context("the cluster's programs are built with Go, which is not on PATH")
}
