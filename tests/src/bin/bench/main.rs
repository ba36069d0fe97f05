//! `cargo xtask bench`: no mesh, Culvert and optionally ztunnel, alternating in one run.
#![forbid(unsafe_code)]

mod peers;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use harness::{guard, load, world};

/// Measures the mesh against its peers; every figure is the median of alternating rounds.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    /// A ztunnel binary to compare with.
    #[arg(long)]
    ztunnel: Option<PathBuf>,
    /// Its in-pod redirect script; required with --ztunnel.
    #[arg(long, requires = "ztunnel")]
    ztunnel_redirect: Option<PathBuf>,
    /// Leaves Culvert out.
    #[arg(long)]
    without_culvert: bool,
    /// Measures only what has this in its name: `bulk` or `http`.
    #[arg(long)]
    only: Option<String>,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Writes the raw figures and medians here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder of our binaries.
    #[arg(long)]
    programs: Option<PathBuf>,
    #[arg(long, hide = true)]
    supervised: bool,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if !cli.supervised {
        return guard::supervise();
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a program lies in a folder")?.to_path_buf();
    let programs = cli.programs.clone().unwrap_or(beside);
    let mut world = world::World::new(&world::Spec { nodes: 2, programs })?;
    let mut pairs = vec![peers::plain(&mut world)?];
    if let (Some(binary), Some(script)) = (&cli.ztunnel, &cli.ztunnel_redirect) {
        pairs.push(peers::ztunnel(&mut world, binary, script)?);
    }
    if !cli.without_culvert {
        pairs.push(peers::culvert(&mut world)?);
    }
    let mut results = report::Results::default();
    for round in 0..cli.rounds {
        for pair in &pairs {
            println!("round {}: {}", round + 1, pair.name);
            measure(pair, &cli, &mut results)?;
        }
    }
    results.print();
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_string_pretty(&results.json())?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(pair: &peers::Pair, cli: &Cli, results: &mut report::Results) -> Result<()> {
    let wanted = |group: &str| cli.only.as_deref().is_none_or(|only| only == group);
    if wanted("bulk") {
        bulk(pair, cli.seconds, results)?;
    }
    if wanted("http") {
        requests(pair, cli.seconds, results)?;
    }
    Ok(())
}

fn bulk(pair: &peers::Pair, seconds: u32, results: &mut report::Results) -> Result<()> {
    use load::Direction;
    let server = pair.server.ip.as_str();
    for (name, streams, direction) in [
        ("1 stream up, Gb/s", 1, Direction::Up),
        ("1 stream down, Gb/s", 1, Direction::Down),
        ("8 streams up, Gb/s", 8, Direction::Up),
        ("8 streams down, Gb/s", 8, Direction::Down),
    ] {
        let before = report::cpu_seconds()?;
        let figure = load::bulk(&pair.client, server, streams, seconds, direction)?;
        let cpu = report::cpu_seconds()? - before;
        results.add(name, &pair.name, figure);
        if streams == 1 && direction == Direction::Up {
            let gibibytes = figure * f64::from(seconds) / 8.0 / 1.073_741_824;
            results.add("CPU s per GiB", &pair.name, cpu / gibibytes);
        }
    }
    Ok(())
}

fn requests(pair: &peers::Pair, seconds: u32, results: &mut report::Results) -> Result<()> {
    use load::Mode;
    let url = format!("http://{}/", pair.server.ip);
    let one = load::http(&pair.client, &url, 1, seconds, Mode::KeepAlive)?;
    results.add("p50 us, 1 connection", &pair.name, one.p50_us);
    results.add("p99 us, 1 connection", &pair.name, one.p99_us);
    let before = report::cpu_seconds()?;
    let many = load::http(&pair.client, &url, 32, seconds, Mode::KeepAlive)?;
    let cpu = report::cpu_seconds()? - before;
    results.add("requests/s, 32 keep-alive", &pair.name, many.rate);
    let requests = many.rate * f64::from(seconds);
    results.add("CPU s per 10k requests", &pair.name, cpu / requests * 10_000.0);
    let fresh = load::http(&pair.client, &url, 32, seconds, Mode::NewConnections)?;
    results.add("new connections/s", &pair.name, fresh.rate);
    results.add("failed requests", &pair.name, to_f64(one.errors + many.errors + fresh.errors));
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "counts of errors are far below 2^52")]
fn to_f64(count: u64) -> f64 {
    count as f64
}
