//! runc without resource limits: where other hierarchies own the controllers, the node's cgroup v2 mount
//! has no files for limits, and runc refuses to start a container that wants some. A kubelet that keeps no
//! limits does not name pods' groups either: that is made up for here, as node agents find pods by them.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// Adapts the container's description and becomes runc.
pub fn become_it(words: &[OsString]) -> Result<()> {
    let verb = words.iter().find_map(|word| match word.to_str() {
        Some(verb @ ("create" | "run" | "update")) => Some(verb),
        _ => None,
    });
    match verb {
        // Nothing but limits can be updated.
        Some("update") => return Ok(()),
        Some(_) => adapt(&bundle(words).join("config.json"))?,
        None => {}
    }
    Err(Command::new("runc").args(words).exec()).context("cannot start runc")
}

fn bundle(words: &[OsString]) -> PathBuf {
    let flag = words.iter().position(|word| word == "--bundle" || word == "-b");
    flag.and_then(|at| words.get(at + 1)).map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn adapt(file: &Path) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut spec: Value = serde_json::from_str(&text).context("a container's description")?;
    if let Some(resources) = spec.pointer_mut("/linux/resources").and_then(Value::as_object_mut) {
        resources.retain(|name, _| name == "devices");
    }
    if let Some(path) = group(&spec) {
        spec["linux"]["cgroupsPath"] = path.into();
    }
    Ok(fs::write(file, serde_json::to_string(&spec)?)?)
}

/// The group of a pod's container as kubelets with limits name it.
fn group(spec: &Value) -> Option<String> {
    let pod = spec["annotations"]["io.kubernetes.cri.sandbox-uid"].as_str()?;
    let id = spec["linux"]["cgroupsPath"].as_str()?.rsplit('/').next()?;
    Some(format!("/kubepods/besteffort/pod{pod}/{id}"))
}
