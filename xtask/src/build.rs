//! `cargo xtask build`: the eBPF object, then the programs.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    command::{cache, cargo, run},
    setup::{self, Compiler, Need},
};

/// Objects that are kept: some for checkouts at work side by side, and not one for every build.
const KEPT_OBJECTS: usize = 16;

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

/// Builds the eBPF object and returns its path, which is named after its contents: the build folder is
/// shared by every checkout that uses this cache, and the next one to build must not replace the object
/// that this one is about to embed.
pub fn ebpf(root: &Path) -> Result<PathBuf> {
    let compiler = setup::ensure(Need::Build)?;
    eprintln!("eBPF compiler: {}", compiler.name);
    let target = target()?;
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let turn = File::create(target.join("culvert.lock")).context("cannot lock the eBPF build folder")?;
    turn.lock().context("cannot lock the eBPF build folder")?;
    run(ebpf_cargo(root, &compiler, &target)?.arg("build").args(EBPF_ARGS))?;
    keep(&target.join("bpfel-unknown-none/release/agent-ebpf"))
}

/// Lints the eBPF crate with the clippy that belongs to its compiler. `None` when there is none.
pub fn ebpf_clippy(root: &Path) -> Result<Option<()>> {
    let compiler = setup::ensure_ebpf_clippy()?;
    let Some(driver) = &compiler.clippy else { return Ok(None) };
    // What `cargo clippy` does for the host: clippy's driver stands in for the compiler of our crates.
    let mut command = ebpf_cargo(root, &compiler, &target()?.join("clippy"))?;
    command
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", LINTS.join("__CLIPPY_HACKERY__"))
        .arg("check")
        .args(EBPF_ARGS);
    run(&mut command).map(Some)
}

/// Warnings are errors, but for one: map operations take references, because passing a key by value makes
/// one more copy on a stack of 512 bytes.
const LINTS: [&str; 4] = ["-Dwarnings", "-A", "clippy::needless_borrows_for_generic_args", ""];

const EBPF_ARGS: [&str; 7] =
    ["--release", "-Z", "build-std=core", "--target", "bpfel-unknown-none", "-p", "agent-ebpf"];

/// Another linker is another folder: cargo does not see that it changed.
fn target() -> Result<PathBuf> {
    Ok(cache()?.join(format!("target-ebpf-{}-llvm{}", setup::BPF_LINKER, setup::LLVM)))
}

/// Cargo with the eBPF compiler: `build-std` is a nightly feature of cargo, which `RUSTC_BOOTSTRAP`
/// allows a stable one.
fn ebpf_cargo(root: &Path, compiler: &Compiler, target: &Path) -> Result<Command> {
    let linker = setup::linker_dir()?;
    #[allow(clippy::disallowed_methods, reason = "PATH is extended, not interpreted")]
    let path = std::env::var("PATH").context("PATH is not set")?;
    let mut command = cargo(root);
    command
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target)
        .env("PATH", format!("{}:{path}", linker.display()))
        .env_remove("RUSTFLAGS");
    Ok(command)
}

/// Copies an object into the cache under the digest of its contents.
fn keep(object: &Path) -> Result<PathBuf> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let folder = cache()?.join("objects");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{:016x}.o", hasher.finish()));
    if fs::read(&path).ok().as_ref() != Some(&bytes) {
        let half = folder.join(format!(".{}", std::process::id()));
        fs::write(&half, &bytes)?;
        fs::rename(&half, &path)?;
        forget_old(&folder)?;
    }
    Ok(path)
}

/// Removes the oldest objects beyond [`KEPT_OBJECTS`].
fn forget_old(folder: &Path) -> Result<()> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        objects.push((entry.metadata()?.modified()?, entry.path()));
    }
    objects.sort();
    let excess = objects.len().saturating_sub(KEPT_OBJECTS);
    objects.iter().take(excess).for_each(|(_, path)| drop(fs::remove_file(path)));
    Ok(())
}
