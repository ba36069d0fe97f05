//! The waypoint's HTTP engine with one worker, beside Envoy with one worker.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::report::Results;

/// What the waypoint's own bench measured of one proxy.
#[derive(Deserialize)]
struct Figures {
    proxy: String,
    requests_per_second: Vec<f64>,
    cpu_us_per_request: Vec<f64>,
}

/// Runs the `http_bench` of the waypoint crate, which has the engine without and with HBONE around it.
pub fn measure(
    programs: &Path,
    envoy: Option<&Path>,
    rounds: u32,
    seconds: u32,
    results: &mut Results,
) -> Result<()> {
    let program = programs.join("examples/http_bench");
    let json = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(&program);
    command.args(["--rounds", &rounds.to_string(), "--seconds", &seconds.to_string()]);
    command.arg("--json").arg(json.path());
    if let Some(envoy) = envoy {
        command.arg("--envoy").arg(envoy);
    }
    println!("waypoint: {rounds} rounds");
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "the waypoint's bench ended with {status}");
    let all: Vec<Figures> = serde_json::from_reader(json.reopen()?)?;
    for figures in all {
        let (row, peer) = match figures.proxy.as_str() {
            "plain" => ("", "culvert"),
            "envoy" => ("", "envoy"),
            "logged" => (" + access log", "culvert"),
            _ => (" + HBONE both ways", "culvert"),
        };
        let rate = format!("waypoint{row}, requests/s");
        figures.requests_per_second.iter().for_each(|figure| results.add(&rate, peer, *figure));
        let cpu = format!("waypoint{row}, CPU us/request");
        figures.cpu_us_per_request.iter().for_each(|figure| results.add(&cpu, peer, *figure));
    }
    Ok(())
}
