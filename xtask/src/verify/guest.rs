//! The static program that runs in the guest.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{
    build,
    command::{cargo, run, target},
};

/// The C library is linked in, so that the guest needs none.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds it around the object that ships.
pub fn build(root: &Path) -> Result<PathBuf> {
    let object = build::ebpf(root)?;
    run(cargo(root)
        .env("CULVERT_EBPF_OBJECT", object)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--quiet", "--package", "verify-guest", "--target", TRIPLE]))?;
    let program = target(root)?.join(TRIPLE).join("debug/verify-guest");
    program.exists().then_some(program).context("cargo built no verify-guest")
}
