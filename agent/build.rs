//! Embeds the eBPF object that `cargo xtask build` made. Without one (plain `cargo check` or clippy on
//! a machine without the eBPF compiler) an empty object is embedded and loading it says what to do.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=CULVERT_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("culvert.o");
    let object = env::var_os("CULVERT_EBPF_OBJECT").map(PathBuf::from);
    let bytes = object.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    if let Some(path) = &object {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    if bytes.is_empty() {
        println!("cargo::warning=no eBPF object embedded; cargo xtask build makes one");
    }
    if let Err(error) = fs::write(&out, bytes) {
        println!("cargo::error=cannot write {}: {error}", out.display());
    }
}
