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
    if program == "culvert-bench" && args.first().is_some_and(|part| part == "control") {
        return control(root, args);
    }
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
    let mut command = as_root(&binary, "makes network namespaces and loads eBPF programs");
    if let Some(cluster) = cluster {
        cluster.tell(&mut command);
    }
    become_it(command.args(args))
}

/// The control plane's benchmark needs an API server and no kernel program.
fn control(root: &Path, args: &[String]) -> Result<ExitCode> {
    setup::ensure(Need::Cluster)?;
    run(cargo(root).args(["build", "--release", "-p", "control", "-p", "culvert-tests"]))?;
    let programs = setup::kubernetes::ensure(root, &[Part::ControlPlane])?;
    let programs = programs.context("the API server is built with Go, which is not on PATH")?;
    let mut command = as_root(&target(root)?.join("release/culvert-bench"), "makes network namespaces");
    become_it(command.env("CULVERT_CLUSTER_PROGRAMS", programs).args(args))
}

fn as_root(binary: &Path, why: &str) -> Command {
    if is_root() {
        return Command::new(binary);
    }
    println!("{} {why}: it runs with sudo", binary.display());
    let mut sudo = Command::new("sudo");
    sudo.arg("-E").arg(binary);
    sudo
}

fn become_it(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// What a cluster's demo needs besides.
fn cluster(root: &Path, folder: &Path) -> Result<Cluster> {
    setup::ensure(Need::Cluster)?;
    let cluster = Cluster::prepare(root, folder, &[Part::ControlPlane, Part::Nodes])?;
    cluster.context("the cluster's programs are built with Go, which is not on PATH")
}
