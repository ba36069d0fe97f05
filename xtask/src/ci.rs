//! `cargo xtask ci`: what must hold before a change lands. The CI script only calls this.

use std::path::Path;

use anyhow::Result;

use crate::{
    build,
    command::{cache, cargo, find, run},
    tidy,
};

/// Runs every gate, cheapest first.
pub fn run_gates(root: &Path) -> Result<()> {
    run(cargo(root).args(["fmt", "--all", "--check"]))?;
    tidy::run(root)?;
    deny(root)?;
    let object = build::ebpf(root)?;
    run(cargo(root).env("CULVERT_EBPF_OBJECT", &object).args([
        "clippy",
        "--workspace",
        "--exclude",
        "agent-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    // The README's test command.
    run(cargo(root).args(["xtask", "test"]))
}

/// Licences, sources and bans; the advisory database needs the network, so it is said to be not run.
fn deny(root: &Path) -> Result<()> {
    println!("advisories: not run (no advisory database on this machine)");
    let tools = cache()?.join("tools-cargo-deny");
    if find("cargo-deny").is_none() && !tools.join("bin/cargo-deny").exists() {
        println!("SKIP cargo deny: cargo-deny is not installed; run: cargo install cargo-deny --locked");
        return Ok(());
    }
    run(cargo(root).args(["deny", "check", "bans", "licenses", "sources"]))
}
