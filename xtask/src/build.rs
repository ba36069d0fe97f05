//! `cargo xtask build`: the eBPF object, then the programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    command::{cache, cargo, run},
    setup,
};

/// Builds everything.
pub fn all(root: &Path, release: bool) -> Result<()> {
    let object = ebpf(root)?;
    let mut command = cargo(root);
    command.env("CULVERT_EBPF_OBJECT", object).arg("build");
    if release {
        command.arg("--release");
    }
    run(&mut command)
}

/// Builds the eBPF object and returns its path.
///
/// Debian's compiler with its library source does the work: `build-std` needs nightly features of
/// cargo, which `RUSTC_BOOTSTRAP` allows a stable one.
pub fn ebpf(root: &Path) -> Result<PathBuf> {
    setup::ensure()?;
    let target = cache()?.join("target-ebpf");
    run(&mut ebpf_cargo(root, &target, "build")?)?;
    Ok(target.join("bpfel-unknown-none/release/agent-ebpf"))
}

/// A cargo verb on the eBPF crate with the eBPF compiler.
pub fn ebpf_cargo(root: &Path, target: &Path, verb: &str) -> Result<Command> {
    let linker = setup::linker_dir()?;
    #[allow(clippy::disallowed_methods, reason = "PATH is extended, not interpreted")]
    let path = std::env::var("PATH").context("PATH is not set")?;
    let mut command = cargo(root);
    command
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target)
        .env("PATH", format!("{}:{path}", linker.display()))
        .env_remove("RUSTFLAGS")
        .args([
            verb,
            "--release",
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "-p",
            "agent-ebpf",
        ]);
    Ok(command)
}
