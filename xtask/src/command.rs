//! Running other programs, and where things are.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The checkout: as cargo says at run time, because checkouts that share a target folder may share the
/// compiled program too.
#[allow(clippy::disallowed_methods, reason = "xtask reads the environment here")]
pub fn root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    Ok(manifest.parent().context("xtask lies inside the workspace")?.to_path_buf())
}

/// The folder for tools and build outputs that outlive a checkout: `CULVERT_CACHE`, or
/// `culvert` in the user's cache folder.
#[allow(clippy::disallowed_methods, reason = "xtask's one reader of the environment")]
pub fn cache() -> Result<PathBuf> {
    if let Ok(dir) = std::env::var("CULVERT_CACHE") {
        return Ok(dir.into());
    }
    if let Ok(dir) = std::env::var("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("culvert"));
    }
    let home = std::env::var("HOME").context("neither CULVERT_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/culvert"))
}

/// Whether a program can be found on PATH.
#[allow(clippy::disallowed_methods, reason = "PATH is what the shell would search")]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').map(|dir| Path::new(dir).join(program)).find(|candidate| candidate.is_file())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0")
}

/// Prints and runs a command; fails when it does.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !out.status.success() {
        bail!("{} ended with {}", shown(command), out.status);
    }
    String::from_utf8(out.stdout).context("output is not UTF-8")
}

/// `cargo` in the checkout.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root);
    command
}

/// Cargo's target folder, wherever the user put it.
pub fn target(root: &Path) -> Result<PathBuf> {
    let text = output(cargo(root).args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names its target folder")?.into())
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
