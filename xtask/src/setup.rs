//! `cargo xtask setup`: finds or installs what building and testing need.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::command::{cache, find, is_root, run};

/// bpf-linker's version and the LLVM it is built against; the eBPF compiler's LLVM must be the same.
pub const BPF_LINKER: &str = "0.13.0";
/// Major version of LLVM, see [`BPF_LINKER`].
pub const LLVM: &str = "22";

/// A program and the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] =
    &[("nginx", "nginx-light"), ("curl", "curl"), ("ip", "iproute2"), ("tcpdump", "tcpdump")];

/// Installs what is missing, or says exactly which command would.
pub fn ensure() -> Result<()> {
    let mut packages: Vec<String> = Vec::new();
    for (program, package) in PROGRAMS {
        if !on_system(program) {
            packages.push((*package).to_string());
        }
    }
    if !Path::new("/usr/lib/rustlib/src/rust/library/core").exists() && ebpf_sysroot_missing() {
        packages.extend(["rustc-web".to_string(), "rust-web-src".to_string()]);
    }
    if !Path::new(&format!("/usr/lib/llvm-{LLVM}/bin/llvm-config")).exists() {
        packages.push(format!("llvm-{LLVM}-dev"));
    }
    install(&packages)?;
    linker()
}

/// [`ensure`], then says so.
pub fn announce() -> Result<()> {
    ensure()?;
    println!("setup: everything is there");
    Ok(())
}

fn on_system(program: &str) -> bool {
    find(program).is_some() || Path::new("/usr/sbin").join(program).exists()
}

/// Debian's compiler keeps its library source below its own sysroot.
fn ebpf_sysroot_missing() -> bool {
    let Ok(out) = Command::new("/usr/bin/rustc").args(["--print", "sysroot"]).output() else { return true };
    let sysroot = String::from_utf8_lossy(&out.stdout).trim().to_string();
    !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
}

fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find("apt-get").is_none() || !is_root() {
        bail!("missing packages; run: sudo apt-get update && sudo apt-get install -y {list}");
    }
    println!("setup: installing {list}");
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    run(Command::new("apt-get").args(["-qq", "install", "-y", "--no-install-recommends"]).args(packages))
}

fn linker() -> Result<()> {
    let tools = cache()?.join(format!("tools-bpf-linker-{BPF_LINKER}-llvm{LLVM}"));
    if tools.join("bin/bpf-linker").exists() {
        return Ok(());
    }
    println!("setup: building bpf-linker {BPF_LINKER} (about a minute)");
    run(Command::new("cargo")
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
        .env("RUSTUP_TOOLCHAIN", "1.95.0")
        .args(["install", "--quiet", "bpf-linker", "--version", BPF_LINKER, "--no-default-features"])
        .args(["--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(&tools))
}

/// Folder that holds `bpf-linker`.
pub fn linker_dir() -> Result<std::path::PathBuf> {
    Ok(cache()?.join(format!("tools-bpf-linker-{BPF_LINKER}-llvm{LLVM}/bin")))
}
