//! `bench control`: what a large mesh that changes all the time costs the control plane, and how soon its
//! clients know of a change. A real API server with etcd, fake nodes, and clients that are the agent's own.
//!
//! No kwok and no controllers: this program writes the pods' status itself. So the churn is exactly what was
//! asked for, and the moment is known at which the API server had each change.

mod api;
mod churn;
mod clients;
mod figures;
mod fleet;
mod program;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::cluster::{Cluster, crds::Crds};

use self::{api::Api, churn::Churn, clients::Clients, figures::Report, fleet::Fleet, program::Program};
use crate::report::cpu_seconds;

/// Longest time that control is looked at without churn.
const REST: Duration = Duration::from_secs(5);

/// Measures the control plane alone, on a real API server with fake nodes; no eBPF.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Pods.
    #[arg(long, default_value_t = 5000)]
    pods: u32,
    /// Services that select them.
    #[arg(long, default_value_t = 500)]
    services: u32,
    /// Nodes; nothing runs on them.
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// VirtualServices, each of a service of its own.
    #[arg(long, default_value_t = 0)]
    routes: u32,
    /// Clients that are told of everything, as a node's agent is.
    #[arg(long, default_value_t = 10)]
    clients: u32,
    /// Changes in a second.
    #[arg(long, default_value_t = 50)]
    churn: u32,
    /// Seconds of churn.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Writes the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder of our binaries.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// Measures and prints.
pub fn run(args: &Args, beside: &Path) -> Result<ExitCode> {
    ensure!(args.services > 0 && args.pods >= args.services, "each service needs a pod, and there is one");
    ensure!(args.nodes > 0 && args.clients > 0 && args.churn > 0 && args.seconds > 0, "0 measures nothing");
    ensure!(args.routes <= args.services, "more routes than services");
    let cluster = Cluster::api_server(&Crds::ALL)?;
    let fleet = Fleet { pods: args.pods, services: args.services, nodes: args.nodes, routes: args.routes };
    println!("{fleet}: written to the API server");
    let kubeconfig = cluster.kubeconfig();
    let made = Instant::now();
    let config = &kubeconfig;
    inside(&cluster, async move { fleet.create(&Api::new(config).await?).await })?;
    println!("{} objects after {:.1} s", fleet.objects(), made.elapsed().as_secs_f64());

    let folder = args.programs.as_deref().unwrap_or(beside);
    let program = Program::start(&cluster, folder, args.clients)?;
    let report = inside(&cluster, measure(args, fleet, &program, &kubeconfig))
        .with_context(|| format!("last lines of control:\n{}", cluster.tail(program::NAME)))?;
    print!("{report}");
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&report.json())?)?;
    }
    ensure!(report.lost() == 0, "{} changes did not reach a client", report.lost());
    Ok(ExitCode::SUCCESS)
}

/// Runs in the cluster's network. Threads of the runtime are made in there, so they are in there too.
fn inside<T: Send>(cluster: &Cluster, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(work)
    };
    cluster.inside(run)?
}

async fn measure(args: &Args, fleet: Fleet, program: &Program, kubeconfig: &Path) -> Result<Report> {
    let mut report = Report::of(&fleet, args.clients);
    report.add("ready_s", "from start to ready, s", program.ready_after.as_secs_f64());
    let clients = Clients::start(program, args.clients, &fleet).await?;
    report.millis("first_push_ms", "first full push, one client, ms", clients.first);
    report.millis("all_pushes_ms", "first full push, all clients, ms", clients.all);
    report.add("memory_before_mib", "control's memory before churn, MiB", program.resident()?);
    let (at, cpu) = (Instant::now(), program.cpu()?);
    tokio::time::sleep(REST.min(Duration::from_secs(args.seconds.into()))).await;
    let rest = (program.cpu()? - cpu) / at.elapsed().as_secs_f64();
    report.add("cpu_at_rest", "control's CPU at rest, cores", rest);

    println!("{} changes a second for {} s", args.churn, args.seconds);
    let churn = Churn::new(Api::new(kubeconfig).await?, clients.stores(), fleet);
    let (before, cpu, machine) = (program.compilations()?, program.cpu()?, cpu_seconds()?);
    let began = Instant::now();
    let changes = churn.run(args.churn, Duration::from_secs(args.seconds.into())).await;
    let wall = began.elapsed().as_secs_f64();
    let (cpu, machine) = (program.cpu()? - cpu, cpu_seconds()? - machine);
    let after = program.compilations()?;
    // What is still on its way is awaited, but no longer part of the load.
    report.changes(changes.outcome().await?, wall);
    report.add("cpu", "control's CPU under churn, cores", cpu / wall);
    report.add("machine_cpu", "the machine's CPU, all programs, cores", machine / wall);
    report.add("compilations_per_s", "compilations/s", (after.count - before.count) / wall);
    let each = (after.seconds - before.seconds) / (after.count - before.count).max(1.0);
    report.add("compilation_ms", "a compilation with encoding, ms", each * 1000.0);
    report.add("memory_mib", "control's memory after churn, MiB", program.resident()?);
    report.add("memory_peak_mib", "its peak, MiB", program.peak()?);
    clients.stop();
    Ok(report)
}
