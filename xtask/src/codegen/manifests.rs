//! Manifests, chart and tables of rights and settings: written by `culvert manifests`, which knows them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::command::{cargo, output, run};

/// Folder of which every file is generated, apart from [`OWN`].
const FOLDER: &str = "manifests";
/// What people write there.
const OWN: [&str; 1] = ["manifests/README.md"];

/// Writes them below `out`, and returns their names.
fn write(root: &Path, out: &Path) -> Result<BTreeSet<String>> {
    let program = build(root)?;
    let said = output(Command::new(program).args(["manifests", "--out"]).arg(out))?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// With the features of the whole workspace, so that nothing is built twice.
fn build(root: &Path) -> Result<PathBuf> {
    let words = ["build", "--quiet", "--workspace", "--exclude", "agent-ebpf", "--bin", "culvert"];
    run(cargo(root).args(words))?;
    let text = output(cargo(root).args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata has no target_directory")?;
    Ok(Path::new(target).join("debug/culvert"))
}

/// Writes what is new and removes what is no longer made.
pub(super) fn replace(root: &Path) -> Result<()> {
    let names = write(root, root)?;
    for stale in existing(root)?.difference(&names) {
        fs::remove_file(root.join(stale)).with_context(|| format!("cannot remove {stale}"))?;
        println!("removed {stale}");
    }
    println!("wrote {} files of {FOLDER} and docs", names.len());
    Ok(())
}

/// Fails when a file is other than what would be written, or would not be written.
pub(super) fn compare(root: &Path, fresh: &Path) -> Result<()> {
    let names = write(root, fresh)?;
    for name in &names {
        let same = fs::read(root.join(name)).ok() == Some(fs::read(fresh.join(name))?);
        ensure!(same, "{name} is stale: run cargo xtask codegen");
    }
    let stale: Vec<_> = existing(root)?.difference(&names).cloned().collect();
    ensure!(stale.is_empty(), "{} is no longer made: run cargo xtask codegen", stale.join(", "));
    Ok(())
}

/// Files below [`FOLDER`] that people did not write.
fn existing(root: &Path) -> Result<BTreeSet<String>> {
    let (mut files, mut open) = (BTreeSet::new(), vec![root.join(FOLDER)]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if !OWN.contains(&name.as_str()) {
                files.insert(name);
            }
        }
    }
    Ok(files)
}
