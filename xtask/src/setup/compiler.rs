//! The compiler for the eBPF target: any rustc with its library's source whose LLVM is bpf-linker's.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::LLVM;
use crate::command::{find as on_path, is_root};

/// Where Debian's compiler is.
const DEBIAN: &str = "/usr/bin/rustc";
/// What to do when there is none and nothing may be installed.
pub const REMEDY: &str = "no eBPF compiler; run: rustup toolchain install nightly --component rust-src, or on Debian: \
                          sudo apt-get install -y rustc-web rust-web-src";

/// A compiler that can build the object.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// Its `rustc`.
    pub rustc: PathBuf,
    /// What it is, for people.
    pub name: String,
    /// Its `clippy-driver`, when there is one.
    pub clippy: Option<PathBuf>,
}

/// The compiler to use: a rustup nightly first, because that is what a developer updates on purpose.
pub fn find() -> Option<Compiler> {
    nightly()
        .and_then(|rustc| usable(&rustc, "rustup nightly"))
        .or_else(|| usable(Path::new(DEBIAN), "Debian"))
}

/// Packages that bring a compiler and LLVM's library for bpf-linker, when they are not here.
pub fn missing_packages(has_compiler: bool) -> Vec<String> {
    let mut packages = Vec::new();
    if !has_compiler {
        packages.extend(["rustc-web", "rust-web-src"].map(str::to_string));
    }
    // bpf-linker is built against it, and runs with it.
    if !Path::new(&format!("/usr/lib/llvm-{LLVM}/bin/llvm-config")).exists() {
        packages.push(format!("llvm-{LLVM}-dev"));
    }
    packages
}

impl Compiler {
    /// The package with the clippy of Debian's compiler, when this is it and packages may be installed.
    pub fn missing_clippy(&self) -> Option<String> {
        let debian = self.rustc == Path::new(DEBIAN) && on_path("apt-get").is_some() && is_root();
        (self.clippy.is_none() && debian).then(|| "rust-web-clippy".to_string())
    }
}

fn nightly() -> Option<PathBuf> {
    let out = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().into())
}

fn usable(rustc: &Path, origin: &str) -> Option<Compiler> {
    let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        return None;
    }
    let about = ask(rustc, &["-vV"])?;
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (release, llvm) = (field("release:")?, field("LLVM version:")?);
    if llvm.split('.').next() != Some(LLVM) {
        return None;
    }
    let clippy = Some(rustc.with_file_name("clippy-driver")).filter(|path| path.is_file());
    let name = format!("{origin} rustc {release}, LLVM {llvm} ({})", rustc.display());
    Some(Compiler { rustc: rustc.to_path_buf(), name, clippy })
}

fn ask(rustc: &Path, args: &[&str]) -> Option<String> {
    let out = Command::new(rustc).args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}
