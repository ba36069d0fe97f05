//! Tools that cargo builds into the cache, each in a folder that carries its version: another version
//! is another folder, so a stale cache is never mistaken for a good one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Result;

use super::{BPF_LINKER, LLVM};
use crate::command::{cache, find, run};

/// cargo-deny's version; one that is installed is used as it is.
pub const CARGO_DENY: &str = "0.20.2";

/// Folder that holds `bpf-linker`.
pub fn linker_dir() -> Result<PathBuf> {
    Ok(linker_root()?.join("bin"))
}

fn linker_root() -> Result<PathBuf> {
    Ok(cache()?.join(format!("tools-bpf-linker-{BPF_LINKER}-llvm{LLVM}")))
}

/// Whether the linker is there and starts: its LLVM may have gone since it was built.
pub fn linker_works() -> bool {
    linker_dir().is_ok_and(|dir| starts(&dir.join("bpf-linker")))
}

/// Builds the linker when it is not there.
pub fn ensure_linker() -> Result<()> {
    if linker_works() {
        return Ok(());
    }
    println!("setup: building bpf-linker {BPF_LINKER} (about a minute)");
    let features = format!("llvm-{LLVM}");
    run(install("bpf-linker", BPF_LINKER, &linker_root()?)
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
        .args(["--force", "--no-default-features", "--features", &features]))
}

/// cargo-deny's path; it is built when it is not there.
pub fn cargo_deny() -> Result<PathBuf> {
    if let Some(installed) = find("cargo-deny") {
        return Ok(installed);
    }
    let root = deny_root()?;
    let program = root.join("bin/cargo-deny");
    if !starts(&program) {
        println!("setup: building cargo-deny {CARGO_DENY} (two to three minutes)");
        run(install("cargo-deny", CARGO_DENY, &root).args(["--force", "--locked"]))?;
    }
    Ok(program)
}

/// Whether [`cargo_deny`] would build nothing.
pub fn has_cargo_deny() -> Result<bool> {
    Ok(find("cargo-deny").is_some() || starts(&deny_root()?.join("bin/cargo-deny")))
}

fn deny_root() -> Result<PathBuf> {
    Ok(cache()?.join(format!("tools-cargo-deny-{CARGO_DENY}")))
}

fn install(package: &str, version: &str, root: &Path) -> Command {
    let mut command = Command::new("cargo");
    // The user's target folder is for this workspace.
    command.env_remove("CARGO_TARGET_DIR").args([
        "install",
        "--quiet",
        package,
        "--version",
        version,
        "--root",
    ]);
    command.arg(root);
    command
}

fn starts(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
