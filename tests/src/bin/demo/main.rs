//! `cargo xtask demo`: the mesh at work on this machine, in ten steps with evidence and checks.
#![forbid(unsafe_code)]

mod kept;
mod kubernetes;
mod stage;
mod steps;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;
use harness::guard;
use serde_json::{Value, json};

/// Real pods on several nodes through eBPF redirection, mutual TLS and a waypoint.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Cli {
    #[command(subcommand)]
    verb: Option<kept::Verb>,
    /// Which kept demo, when there are several.
    #[arg(long, global = true, value_name = "ID")]
    world: Option<String>,
    /// Stays up after the last step.
    #[arg(long)]
    keep: bool,
    /// Tells the tutorial's story on a Kubernetes cluster of the real programs.
    #[arg(long)]
    kubernetes: bool,
    /// Only starts that cluster, without Culvert, and keeps it: for following the README on it.
    #[arg(long, requires = "kubernetes")]
    bare: bool,
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.verb {
        Some(verb) => kept::run(verb, cli.world.as_deref()),
        None if cli.supervised => show(&cli),
        None => guard::supervise(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn show(cli: &Cli) -> Result<ExitCode> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a program lies in a folder")?.to_path_buf();
    let programs = cli.programs.clone().unwrap_or(beside);
    if cli.kubernetes {
        let what = if cli.bare { kubernetes::What::Bare } else { kubernetes::What::Story { keep: cli.keep } };
        return kubernetes::show(programs, what);
    }
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
    let last = report.last().filter(|step| step["ok"] == true);
    let summary = last.map(|step| step["evidence"].clone()).unwrap_or_default();
    println!("\n{}", if ok { "every check held" } else { "a check did not hold" });
    write_report(cli.json.as_deref(), ok, &report, &summary)?;
    if cli.keep {
        let id = stage.world.keep()?;
        println!(
            "kept as world {id}; look around with: cargo xtask demo exec client -- curl -s nginx-service:8000"
        );
        println!("remove it with: cargo xtask demo down");
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
