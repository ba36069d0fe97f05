//! `cargo xtask demo`: the mesh at work on this machine, in ten steps with evidence and checks.
#![forbid(unsafe_code)]

mod stage;
mod steps;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use harness::{guard, janitor, runner, shell, world::World};
use serde_json::{Value, json};

/// Real pods on several nodes through eBPF redirection, mutual TLS and a waypoint.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Stays up after the last step.
    #[arg(long)]
    keep: bool,
    /// Writes the steps and their evidence here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=16))]
    nodes: u8,
    /// Extra pods that only idle.
    #[arg(long, default_value_t = 0)]
    pods: u8,
    /// Folder of our binaries.
    #[arg(long)]
    programs: Option<PathBuf>,
    #[arg(long, hide = true, global = true)]
    supervised: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs a command in a pod of the kept demo: `exec NAMESPACE/POD -- CMD`.
    Exec {
        /// `namespace/name`.
        pod: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Copies a YAML file into the kept demo's cluster folder and starts the pods it asks for.
    Apply {
        /// The file.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Prints the last lines of every program of the kept demo.
    Logs,
    /// Removes the kept demos.
    Down,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(verb) = &cli.verb {
        return kept(verb).map(|()| ExitCode::SUCCESS);
    }
    if cli.supervised { show(&cli) } else { guard::supervise() }
}

fn show(cli: &Cli) -> Result<ExitCode> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a program lies in a folder")?.to_path_buf();
    let programs = cli.programs.clone().unwrap_or(beside);
    let mut report = Vec::new();
    let mut stage = match stage::Stage::set(cli.nodes, cli.pods, programs) {
        Ok(stage) => stage,
        Err(error) => {
            let evidence = json!({"error": format!("{error:#}")});
            report.push(json!({"name": "0 set up", "ok": false, "seconds": 0, "evidence": evidence}));
            write_report(cli.json.as_deref(), false, &report, &json!({}))?;
            return Err(error);
        }
    };
    for (name, step) in steps::ALL {
        report.push(perform(&mut stage, name, *step));
    }
    let ok = report.iter().all(|step| step["ok"] == true);
    let summary = report.last().map(|step| step["evidence"].clone()).unwrap_or_default();
    println!("\n{}", if ok { "every check held" } else { "a check did not hold" });
    write_report(cli.json.as_deref(), ok, &report, &summary)?;
    if cli.keep {
        let id = stage.world.keep()?;
        println!("kept as world {id}; remove it with: cargo xtask demo down");
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_report(file: Option<&Path>, ok: bool, steps: &[Value], summary: &Value) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = json!({"ok": ok, "steps": steps, "summary": summary});
    Ok(std::fs::write(file, serde_json::to_string_pretty(&text)?)?)
}

fn perform(stage: &mut stage::Stage, name: &str, step: steps::Step) -> Value {
    println!("\n== {name}");
    let start = Instant::now();
    let outcome = step(stage);
    let seconds = start.elapsed().as_secs_f64();
    let (ok, evidence) = match outcome {
        Ok(evidence) => (true, evidence),
        Err(error) => (false, json!({"error": format!("{error:#}")})),
    };
    println!("{}", serde_json::to_string_pretty(&evidence).unwrap_or_default());
    println!("{} in {seconds:.1} s", if ok { "ok" } else { "FAILED" });
    json!({"name": name, "ok": ok, "seconds": seconds, "evidence": evidence})
}

fn kept(verb: &Verb) -> Result<()> {
    let ids: Vec<String> =
        janitor::worlds().into_iter().filter(|id| janitor::folder(id).join("keep").exists()).collect();
    if matches!(verb, Verb::Down) {
        return ids.iter().try_for_each(|id| janitor::remove(id));
    }
    let id = ids.first().context("no demo is kept; start one with: cargo xtask demo --keep")?;
    let mut world = World::attach(id)?;
    match verb {
        Verb::Exec { pod, command } => {
            let pod = world.pods.get(pod).with_context(|| {
                format!("no pod {pod}; there are {:?}", world.pods.keys().collect::<Vec<_>>())
            })?;
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            print!("{}", pod.exec(&words)?);
        }
        Verb::Apply { file } => apply(&mut world, file)?,
        Verb::Logs => print!("{}", logs(&world.root)?),
        Verb::Down => {}
    }
    Ok(())
}

fn apply(world: &mut World, file: &Path) -> Result<()> {
    world.apply(file)?;
    let made = runner::reconcile(world)?;
    println!("applied; new pods: {made:?}");
    // The pods stay when this command ends: the kept world's group holds them until `down`.
    std::mem::take(&mut world.running).into_values().for_each(std::mem::forget);
    runner::write_hosts(world).map(drop)
}

fn logs(root: &Path) -> Result<String> {
    let script = format!("tail -n 15 {}/logs/*.log", root.display());
    shell::output(std::process::Command::new("sh").args(["-c", &script]))
}
