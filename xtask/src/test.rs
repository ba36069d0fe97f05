//! `cargo xtask test`: every test that this machine can run, and one line that says what came of it.

mod cluster;
mod skips;
mod summary;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build,
    command::{cargo, is_root, run, shown, target},
    setup::{self, Need, kubernetes::Part},
};
pub use cluster::Cluster;
use summary::Summary;

/// Every member but the kernel programs, which have another target and no tests.
const MEMBERS: [&str; 3] = ["--workspace", "--exclude", "agent-ebpf"];

/// What the tests on Kubernetes need of it.
const ALL: [Part; 3] = [Part::ControlPlane, Part::Nodes, Part::Helm];

/// Runs the tests of all crates, or those whose name contains `filter`. As root the kernel and
/// namespace tests must run: a skip there is a failure. Those beside Istio's node agents need a ztunnel.
pub fn run_tests(root: &Path, filter: Option<&str>, ztunnel: Option<&Path>) -> Result<()> {
    setup::ensure(if is_root() { Need::Cluster } else { Need::Test })?;
    let object = build::ebpf(root)?;
    build_programs(root, &object, &["--tests"])?;
    let cluster = if is_root() { prepare(root, &ALL, ztunnel)? } else { None };
    let mut summary = Summary::default();
    let status = stream(tests(root, &object, cluster.as_ref(), filter), &mut summary)?;
    println!("{summary}");
    conclude(&summary, status, filter)
}

/// The cluster's programs and images, with those of Istio's parts when a ztunnel is given.
fn prepare(root: &Path, parts: &[Part], ztunnel: Option<&Path>) -> Result<Option<Cluster>> {
    let built = target(root)?.join("debug");
    let cluster = Cluster::prepare(root, &built, parts)?;
    match (cluster, ztunnel) {
        (Some(cluster), Some(ztunnel)) => Ok(Some(cluster.with_ztunnel(root, &built, ztunnel)?)),
        (cluster, _) => Ok(cluster),
    }
}

/// Runs the cases on the Kubernetes cluster, or those whose name contains `case`; those beside Istio's
/// node agents need a ztunnel.
pub fn on_kubernetes(root: &Path, case: Option<&str>, keep: bool, ztunnel: Option<&Path>) -> Result<()> {
    ensure!(is_root(), "a cluster needs network namespaces and mounts: run this as root");
    setup::ensure(Need::Cluster)?;
    let object = build::ebpf(root)?;
    build_programs(root, &object, &["--test", "k8s"])?;
    let cluster = prepare(root, &[Part::ControlPlane, Part::Nodes], ztunnel)?;
    let cluster = cluster.context("the cluster's programs are built with Go, which is not on PATH")?;
    let mut command = cargo(root);
    command.env("CULVERT_EBPF_OBJECT", &object).arg("test").args(MEMBERS).args(["--test", "k8s"]);
    cluster.tell(&mut command);
    command.arg("--").args(case).args(keep.then_some("--keep"));
    let mut summary = Summary::default();
    let status = stream(command, &mut summary)?;
    println!("{summary}");
    conclude(&summary, status, case)
}

/// End-to-end tests of the agent that name no control plane: they hold under any that speaks its protocols.
const UNDER_ISTIOD: [&str; 10] =
    ["away", "bypass", "enrol", "flows", "identity", "policy", "services", "stop", "told", "uninstall"];

/// Runs the agent's end-to-end tests, or those whose name contains `filter`, with a real istiod.
pub fn under_istiod(root: &Path, filter: Option<&str>) -> Result<()> {
    ensure!(is_root(), "namespaces and eBPF are needed: run this as root");
    setup::ensure(Need::Cluster)?;
    let object = build::ebpf(root)?;
    let tests: Vec<&str> = UNDER_ISTIOD.iter().flat_map(|test| ["--test", test]).collect();
    build_programs(root, &object, &tests)?;
    let programs = setup::kubernetes::ensure(root, &[Part::ControlPlane, Part::Istiod])?;
    let programs = programs.context("istiod is built with Go, which is not on PATH")?;
    let mut command = cargo(root);
    command.env("CULVERT_EBPF_OBJECT", &object).env("CULVERT_REQUIRE", "root,bpf,cluster");
    command.env("CULVERT_CLUSTER_PROGRAMS", programs).env("CULVERT_TEST_CONTROL", "istiod");
    command.arg("test").args(MEMBERS).arg("--no-fail-fast");
    command.args(tests).args(filter);
    command.args(["--", "--test-threads=1", "--show-output"]);
    let mut summary = Summary::default();
    let status = stream(command, &mut summary)?;
    println!("{summary}");
    conclude(&summary, status, filter)
}

/// Builds the programs that end-to-end tests start, together with the tests, so that both are one set of
/// dependencies with one set of features.
fn build_programs(root: &Path, object: &Path, tests: &[&str]) -> Result<()> {
    run(cargo(root).env("CULVERT_EBPF_OBJECT", object).arg("build").args(MEMBERS).arg("--bins").args(tests))
}

fn tests(root: &Path, object: &Path, cluster: Option<&Cluster>, filter: Option<&str>) -> Command {
    let mut command = cargo(root);
    command.env("CULVERT_EBPF_OBJECT", object).arg("test").args(MEMBERS).arg("--no-fail-fast");
    if is_root() {
        command.env("CULVERT_REQUIRE", "root,bpf");
    }
    if let Some(cluster) = cluster {
        cluster.tell(&mut command);
    }
    command.args(filter);
    // Namespaces, cgroups and two cores are shared by the tests of one binary. What passing tests print
    // is where a skip says so.
    command.args(["--", "--test-threads=2", "--show-output"]);
    command
}

/// Runs a command and shows its output as it comes, but for what the summary swallows.
fn stream(mut command: Command, summary: &mut Summary) -> Result<ExitStatus> {
    println!("+ {}", shown(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo's output is piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        if summary.take(&line) {
            println!("{line}");
        }
    }
    child.wait().context("cargo")
}

/// Fails when a test did, when the run broke off, and when a skip has no excuse.
fn conclude(summary: &Summary, status: ExitStatus, filter: Option<&str>) -> Result<()> {
    if !status.success() {
        bail!("tests: cargo ended with {status}");
    }
    ensure!(summary.failed == 0, "{} tests failed", summary.failed);
    let inexcusable: Vec<String> = summary
        .skipped
        .iter()
        .filter(|skip| !skips::excused(&skip.why))
        .map(|skip| format!("{} ({})", skip.name, skip.why))
        .collect();
    ensure!(inexcusable.is_empty(), "skipped, but this machine can run: {}", inexcusable.join(", "));
    if let Some(filter) = filter {
        ensure!(summary.passed + summary.skipped.len() > 0, "no test's name contains {filter}");
    }
    Ok(())
}
