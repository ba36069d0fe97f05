//! `cargo xtask codegen`: protos → committed Rust in `mesh-net/src/api`, without a protoc binary; and the
//! manifests.

mod manifests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Files that are compiled; imports are found beside them.
const PROTOS: &[&str] =
    &["workload.proto", "authorization.proto", "citadel.proto", "discovery.proto", "l7.proto"];

/// Writes the generated code. With `check`, compares instead and fails when the committed code is stale.
pub fn run(root: &Path, check: bool) -> Result<()> {
    let out = root.join("mesh-net/src/api");
    let fresh = tempdir(root)?;
    generate(&root.join("mesh-net/proto"), &fresh)?;
    let result = match check {
        true => compare(&fresh, &out).and_then(|()| manifests::compare(root, &fresh)),
        false => replace(&fresh, &out).and_then(|()| manifests::replace(root)),
    };
    fs::remove_dir_all(&fresh).ok();
    result
}

fn generate(protos: &Path, out: &Path) -> Result<()> {
    let descriptors = protox::compile(PROTOS, [protos]).context("mesh-net/proto does not compile")?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .context("code generation failed")
}

fn tempdir(root: &Path) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("culvert-codegen-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    ensure!(dir != root, "temporary directory is the checkout");
    Ok(dir)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".rs"))
        .collect();
    names.sort();
    Ok(names)
}

fn replace(fresh: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    for name in names(out)? {
        fs::remove_file(out.join(name))?;
    }
    for name in names(fresh)? {
        fs::copy(fresh.join(&name), out.join(&name))?;
        println!("wrote mesh-net/src/api/{name}");
    }
    Ok(())
}

fn compare(fresh: &Path, out: &Path) -> Result<()> {
    ensure!(
        names(fresh)? == names(out)?,
        "mesh-net/src/api holds other files than codegen writes: run cargo xtask codegen"
    );
    for name in names(fresh)? {
        let same = fs::read(fresh.join(&name))? == fs::read(out.join(&name))?;
        ensure!(same, "mesh-net/src/api/{name} is stale: run cargo xtask codegen");
    }
    Ok(())
}
