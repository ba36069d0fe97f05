//! What can be done with a demo that was kept.

use std::{
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use harness::{
    janitor, runner, shell, wait,
    world::{Pod, World},
};
use serde_json::Value;

use crate::kubernetes;

/// How long the control plane may take to read a file, and a waypoint to appear.
const LIMIT: Duration = Duration::from_secs(10);

/// What to do.
#[derive(Subcommand)]
pub enum Verb {
    /// Runs a command in a pod of the kept demo, with its input, output and exit status.
    Exec {
        /// `name` or `namespace/name`, of the pod or of its Deployment.
        pod: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Applies a YAML file, says what is wrong with it, and starts the pods that it asks for.
    Apply {
        /// The file.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Prints the last lines of every program of the kept demo.
    Logs {
        /// Only programs whose name contains this.
        name: Option<String>,
    },
    /// Runs kubectl on the kept demo, which is one on Kubernetes.
    Kubectl {
        /// What follows `kubectl`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Opens a shell, or runs a command, in which `kubectl`, `helm` and `culvert` reach the kept demo's cluster.
    Shell {
        /// The command; none for a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Removes the kept demo, or all of them.
    Down {
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

/// Does it with the kept demo of that id, or with the only one.
pub fn run(verb: &Verb, world: Option<&str>) -> Result<ExitCode> {
    let ids: Vec<String> =
        janitor::worlds().into_iter().filter(|id| janitor::folder(id).join("keep").exists()).collect();
    if matches!(verb, Verb::Down { all: true }) {
        ids.iter().try_for_each(|id| janitor::remove(id))?;
        println!("removed {} demos", ids.len());
        return Ok(ExitCode::SUCCESS);
    }
    let id = choose(&ids, world)?;
    match verb {
        Verb::Shell { command } => return kubernetes::shell(id, command),
        Verb::Kubectl { words } => return kubernetes::kubectl(id, words),
        Verb::Exec { pod, command } if kubernetes::is_cluster(id) => {
            return kubernetes::exec(id, pod, command);
        }
        Verb::Exec { pod, command } => return exec(&World::attach(id)?, pod, command),
        Verb::Apply { file } => return apply(&mut World::attach(id)?, file),
        Verb::Logs { name } => print!("{}", logs(&janitor::folder(id), name.as_deref())?),
        Verb::Down { .. } => {
            janitor::remove(id)?;
            println!("removed {id}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn choose<'a>(ids: &'a [String], wanted: Option<&str>) -> Result<&'a String> {
    match (ids, wanted) {
        ([], _) => bail!("no demo is kept; start one with: cargo xtask demo --keep"),
        (_, Some(id)) => ids
            .iter()
            .find(|known| *known == id)
            .with_context(|| format!("no kept demo {id}; there is {}", ids.join(", "))),
        ([id], None) => Ok(id),
        _ => bail!("several demos are kept; choose one with --world: {}", ids.join(", ")),
    }
}

/// By `namespace/name` or `name`, of the pod itself or of its Deployment.
fn find<'a>(world: &'a World, wanted: &str) -> Result<&'a Pod> {
    let full = if wanted.contains('/') { wanted.to_string() } else { format!("default/{wanted}") };
    let of_deployment = |name: &&String| name.strip_prefix(&full).is_some_and(|rest| rest.starts_with("-0-"));
    let name = world.pods.keys().find(|name| **name == full);
    let name = name.or_else(|| world.pods.keys().find(of_deployment));
    name.and_then(|name| world.pods.get(name)).with_context(|| {
        format!("no pod {full}; there are {}", world.pods.keys().cloned().collect::<Vec<_>>().join(", "))
    })
}

fn exec(world: &World, pod: &str, command: &[String]) -> Result<ExitCode> {
    let (program, words) = command.split_first().context("a command is needed")?;
    let mut command = find(world, pod)?.command(program)?;
    let status = command.args(words).stdin(Stdio::inherit()).status().context("cannot enter the pod")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn apply(world: &mut World, file: &Path) -> Result<ExitCode> {
    ensure!(file.is_file(), "{} is no file", file.display());
    let before = debug_objects(world)?["version"].clone();
    let name = Path::new("user").join(file.file_name().context("a file has a name")?);
    let unchanged = std::fs::read(world.cluster().join(&name)).ok() == std::fs::read(file).ok();
    world.apply(file)?;
    if !unchanged {
        // A file that changes nothing (comments, objects of kinds that are not ours) makes no version.
        let _ = wait::until(Duration::from_secs(3), "the control plane to read it", || {
            (debug_objects(world).ok()?["version"] != before).then_some(())
        });
    }
    let made = reconciled(world)?;
    println!(
        "applied {}; new pods: {}",
        name.display(),
        if made.is_empty() { "none".into() } else { made.join(", ") }
    );
    // The pods stay when this command ends: the kept world's group holds them until `down`.
    std::mem::take(&mut world.running).into_values().for_each(std::mem::forget);
    runner::write_hosts(world)?;
    findings(world, &name.to_string_lossy())
}

/// Starts what Deployments ask for, until each waypoint that the control plane wants has its pod.
fn reconciled(world: &mut World) -> Result<Vec<String>> {
    let mut made = runner::reconcile(world)?;
    wait::until(LIMIT, "the waypoints' pods", || {
        made.extend(runner::reconcile(world).ok()?);
        let objects = debug_objects(world).ok()?;
        let mut wanted = objects["waypoints"].as_object()?.keys();
        let is_there = |namespace: &String| {
            world.pods.keys().any(|name| name.starts_with(&format!("{namespace}/waypoint-")))
        };
        wanted.all(is_there).then_some(())
    })?;
    Ok(made)
}

fn debug_objects(world: &World) -> Result<Value> {
    Ok(serde_json::from_str(&world.control_get("/debug/objects")?)?)
}

/// Prints what the control plane says of a file; errors make the exit status 1.
fn findings(world: &World, file: &str) -> Result<ExitCode> {
    let objects = debug_objects(world)?;
    let all = objects["findings"].as_array().cloned().unwrap_or_default();
    let mut code = ExitCode::SUCCESS;
    for finding in all.iter().filter(|finding| finding["file"] == file) {
        let text = |field: &str| finding[field].as_str().unwrap_or_default().to_string();
        if finding["severity"] == "error" {
            code = ExitCode::FAILURE;
        }
        println!(
            "{} {}:{} {}: {}: {}",
            text("severity"),
            file,
            finding["line"],
            text("object"),
            text("field"),
            text("reason")
        );
        println!("  remedy: {}", text("remedy"));
    }
    Ok(code)
}

fn logs(root: &Path, name: Option<&str>) -> Result<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root.join("logs"))? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.is_none_or(|name| stem.contains(name)) {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "no program's name contains {}", name.unwrap_or_default());
    shell::output(std::process::Command::new("tail").args(["-n", "15"]).args(&files))
}
