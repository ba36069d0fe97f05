//! `cargo xtask ci`: what must hold before a change lands. The CI script only calls this.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    build,
    command::{cargo, run},
    setup, tidy,
};

/// A gate and its name.
type Gate = (&'static str, fn(&Path) -> Result<()>);

/// Cheapest first, so that what is wrong shows early.
const GATES: &[Gate] = &[
    ("format", format),
    ("tidy", tidy::run),
    ("deny", deny),
    ("clippy", clippy),
    ("clippy eBPF", clippy_ebpf),
    // The README's test command.
    ("test", |root| run(cargo(root).args(["xtask", "test"]))),
    ("verify", |root| run(cargo(root).args(["xtask", "verify"]))),
];

/// Runs every gate up to the first that fails, and says how long each took.
pub fn run_gates(root: &Path) -> Result<()> {
    let mut times = Vec::new();
    for (name, gate) in GATES {
        println!("ci: {name}");
        let started = Instant::now();
        gate(root).with_context(|| format!("ci: the gate \"{name}\" does not hold"))?;
        times.push((name, started.elapsed()));
    }
    for (name, time) in &times {
        println!("ci: {name:12} {:>6.1} s", time.as_secs_f64());
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("ci: green after {:.1} minutes", total.as_secs_f64() / 60.0);
    Ok(())
}

fn format(root: &Path) -> Result<()> {
    run(cargo(root).args(["fmt", "--all", "--check"]))
}

/// Bans, licences and sources need nothing but the lock file and the registry's own data. Advisories
/// need a database: where it cannot be had they are not run, which is not the same as passed.
fn deny(root: &Path) -> Result<()> {
    let deny = setup::cargo_deny()?;
    let program = || {
        let mut command = Command::new(&deny);
        command.current_dir(root);
        command
    };
    // An allowance that nothing needs at the moment is no reason for noise.
    run(program().args(["check", "-A", "license-not-encountered", "bans", "licenses", "sources"]))?;
    let fetched = program().args(["fetch", "db"]).output().context("cargo-deny does not start")?;
    if !fetched.status.success() {
        println!("advisories: not run (the advisory database cannot be had here)");
        return Ok(());
    }
    run(program().args(["--offline", "check", "advisories"]))
}

fn clippy(root: &Path) -> Result<()> {
    let object = build::ebpf(root)?;
    let members = ["--workspace", "--exclude", "agent-ebpf", "--all-targets"];
    run(cargo(root)
        .env("CULVERT_EBPF_OBJECT", object)
        .arg("clippy")
        .args(members)
        .args(["--", "-D", "warnings"]))
}

fn clippy_ebpf(root: &Path) -> Result<()> {
    if build::ebpf_clippy(root)?.is_none() {
        println!("clippy eBPF: not run (the eBPF compiler here comes without clippy)");
    }
    Ok(())
}
