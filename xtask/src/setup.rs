//! `cargo xtask setup`: finds or installs what building, testing, the demo and benchmarks need.
//!
//! Every verb calls [`ensure`] for what it needs of it, which costs some milliseconds when everything
//! is there; the verb itself also says what was found. Programs that Debian packages come from there,
//! the rest is built into the cache, in folders that carry the version.

mod apt;
mod cargo_tools;
mod compiler;
mod go_tools;
pub mod kubernetes;
mod programs;

use std::path::Path;

use anyhow::{Context, Result};

pub use cargo_tools::{cargo_deny, linker_dir};
pub use compiler::Compiler;

/// bpf-linker's version and the LLVM it is built against; the eBPF compiler's LLVM must be the same.
pub const BPF_LINKER: &str = "0.13.0";
/// Major version of LLVM, see [`BPF_LINKER`].
pub const LLVM: &str = "22";

/// What a verb is going to do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Compile the programs and the eBPF object.
    Build,
    /// Run the tests, the demo or a benchmark.
    Test,
    /// Start a Kubernetes cluster; its Go programs come from [`kubernetes::ensure`].
    Cluster,
}

/// Installs what is missing, or says exactly which command would. Returns the eBPF compiler.
pub fn ensure(need: Need) -> Result<Compiler> {
    let found = compiler::find();
    let mut missing = programs::missing(need);
    missing.extend(compiler::missing_packages(found.is_some()));
    apt::install(&missing)?;
    let compiler = found.or_else(compiler::find).context(compiler::REMEDY)?;
    cargo_tools::ensure_linker()?;
    Ok(compiler)
}

/// Installs a program that only some runs of a verb need.
pub fn ensure_program(name: &str, package: &str) -> Result<()> {
    if programs::path(name).is_some() {
        return Ok(());
    }
    apt::install(&[package.to_string()])
}

/// Installs the clippy of the eBPF compiler where that is a package, and returns the compiler with it.
pub fn ensure_ebpf_clippy() -> Result<Compiler> {
    let compiler = ensure(Need::Build)?;
    let Some(package) = compiler.missing_clippy() else { return Ok(compiler) };
    apt::install(&[package])?;
    compiler::find().context(compiler::REMEDY)
}

/// Everything, with a line for each tool: whether it was there, and its version.
pub fn announce(root: &Path) -> Result<()> {
    apt::remove_leftover();
    let missing = programs::missing(Need::Cluster);
    let had_compiler = compiler::find().is_some();
    let had_linker = cargo_tools::linker_works();
    let had_deny = cargo_tools::has_cargo_deny()?;
    ensure(Need::Cluster)?;
    let compiler = ensure_ebpf_clippy()?;
    cargo_tools::cargo_deny()?;
    programs::announce(&missing);
    line("eBPF compiler", had_compiler, &compiler.name);
    line("bpf-linker", had_linker, &format!("{BPF_LINKER}, LLVM {LLVM}"));
    line("cargo-deny", had_deny, cargo_tools::CARGO_DENY);
    go_tools::announce();
    let parts = [kubernetes::Part::ControlPlane, kubernetes::Part::Nodes];
    match kubernetes::ensure(root, &parts)? {
        Some(folder) => println!("{:14} {:10} {}", "kubernetes", "built", folder.display()),
        None => {
            println!("{:14} {:10} it needs Go: tests on Kubernetes are skipped", "kubernetes", "not here")
        }
    }
    println!("setup: everything is there");
    Ok(())
}

fn line(tool: &str, was_there: bool, version: &str) {
    let how = if was_there { "found" } else { "installed" };
    println!("{tool:14} {how:10} {version}");
}
