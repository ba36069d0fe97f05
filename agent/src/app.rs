//! Putting the agent together: what starts in which order, and what ends in which.

mod hurry;
mod kubernetes;

use std::{collections::BTreeMap, fs::File, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_core::identity::Identity;
use mesh_net::{
    admin::{Admin, bind_unix, serve_tcp, serve_unix},
    ca::{CertificateManager, IstioCa, ManagerConfig, follow_roots},
    store::{Cache, SnapshotStore, Versions},
    task::{Drain, Ready},
    telemetry,
    wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE},
    xds::{self, ControlEndpoint, Session, XdsConfig, XdsStatus},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus::Registry as Metrics;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::View,
    bpf::{Bpf, BpfConfig, StatsSwitch},
    cgroup,
    config::Config,
    flow, kernel_events, mesh_sync, netns,
    pods::{
        PodSource,
        folder::{Folder, NodeFacts},
    },
    redirect::Ebpf,
    registry::Registry,
    serve::{self, Shared},
    supervisor::{self, Means},
};

/// Longest time that writing the last good configuration may take when the agent stops.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// Runs the agent until it is told to stop and has drained.
///
/// # Errors
/// The kernel side cannot be set up, or a port cannot be bound.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let bpf = Arc::new(Bpf::load(&bpf_config(&config)?)?);
    if config.uninstall {
        kubernetes::remove_plugin(&config)?;
        let bpf = Arc::into_inner(bpf).context("the kernel side is in use")?;
        bpf.remove_all()?;
        println!("node {}: capture has ended, programs and tables are removed", config.node);
        return Ok(());
    }
    raise_descriptor_limit();
    let metrics = Metrics::new();
    let families = flow::Families::register(&metrics)?;
    let (ready, stop, cancel) = (Ready::new(), Drain::new(), CancellationToken::new());

    let endpoint = endpoint(&config)?;
    let folder_of_state = &config.state_dir;
    std::fs::create_dir_all(folder_of_state)
        .with_context(|| format!("--state-dir {} cannot be made", folder_of_state.display()))?;
    let cache = Cache::new(config.state_dir.join("snapshot"));
    let (store, versions) = last_good(&cache);
    // A world from disk is enough to be ready.
    let awaited = if store.current().is_complete() { Ready::new() } else { ready.clone() };
    let kept = tokio::spawn(cache.keep(store.clone(), cancel.clone()));
    let (status, xds_status) = watch::channel(XdsStatus::default());
    tokio::spawn(xds::run(
        xds_config(&config, endpoint.clone()),
        store.clone(),
        Session::resume(versions),
        status,
        awaited.awaits("configuration"),
        cancel.clone(),
    ));

    let signer = IstioCa { endpoint, validity_seconds: config.certificate_seconds, impersonate: true };
    let manager = Arc::new(CertificateManager::new(signer, ManagerConfig::default()));
    let certificates = manager.clone();
    tokio::spawn(hurry::when_connected(manager.clone(), xds_status.clone()));
    tokio::spawn(hurry::when_told(manager.clone(), store.clone(), config.node.as_str().into()));
    if let Some(file) = config.ca_root.clone() {
        tokio::spawn(follow_roots(file, manager.renewer(), cancel.clone()));
    }

    let redirector = Arc::new(Ebpf(bpf.clone()));
    let source: Arc<dyn PodSource> = match &config.folder {
        Some(folder) => Arc::new(Folder::new(folder.clone(), node_facts(&config))),
        None => kubernetes::source(&config, redirector.clone(), &ready, &cancel).await?,
    };
    let shared = Shared {
        redirector: redirector.clone(),
        snapshots: store.subscribe(),
        families,
        max_flows: config.max_connections,
        max_tunnels: config.max_tunnels,
        stop: stop.clone(),
    };
    let workers = serve::start(config.worker_count(), &shared)?;
    let registry = Registry::default();
    let drain = Duration::from_secs(config.drain_seconds);
    let means = Means {
        source,
        redirector,
        workers: workers.clone(),
        certificates: Arc::new(move |identity: &Identity| certificates.subscribe(identity)),
        registry: registry.clone(),
        trust_domain: config.trust_domain.as_str().into(),
        stop: stop.clone(),
    };
    tokio::spawn(supervisor::run(Arc::new(means), ready.clone()));
    tokio::spawn(mesh_sync::run(bpf.clone(), store.subscribe(), config.mesh_cidrs.clone()));
    let watcher = kernel_events::Watcher {
        bpf: bpf.clone(),
        families: kernel_events::Families::register(&metrics)?,
        registry: registry.clone(),
        snapshots: store.subscribe(),
        network: config.network.as_str().into(),
    };
    tokio::spawn(watcher.run());

    let _counting = match config.no_bpf_stats {
        true => None,
        false => {
            StatsSwitch::on().inspect_err(|error| tracing::warn!(%error, "programs run unmeasured")).ok()
        }
    };
    telemetry::build(&metrics, "culvert-agent", env!("CARGO_PKG_VERSION"))?;
    let view = View {
        node: config.node.as_str().into(),
        ready: ready.clone(),
        stop: stop.clone(),
        store,
        registry,
        workers,
        bpf,
        xds: xds_status,
    };
    let admin = Admin::new(metrics, ready, stop.token());
    serve_admin(&config, view.onto(admin), &cancel).await?;
    tracing::info!(node = config.node, workers = config.worker_count(), "agent started");
    stopped().await?;
    tracing::info!("draining; capture stays on, new connections are refused until an agent is back");
    if !stop.finish(drain).await {
        tracing::warn!("connections that outlived the drain were closed");
    }
    cancel.cancel();
    // What was learnt last must be known to the next agent though the control plane is away then.
    if tokio::time::timeout(LAST_WRITE, kept).await.is_err() {
        tracing::warn!("the last configuration was not written in time");
    }
    Ok(())
}

/// Serves until the agent has drained: the socket is left for the next agent to take over.
async fn serve_admin(config: &Config, admin: Admin, cancel: &CancellationToken) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(config.admin).await.with_context(|| format!("admin port {}", config.admin))?;
    tokio::spawn(serve_tcp(admin.clone(), listener, cancel.clone()));
    if let Some(path) = &config.admin_socket {
        let socket = bind_unix(path).with_context(|| format!("admin socket {}", path.display()))?;
        tokio::spawn(serve_unix(admin, socket, cancel.clone()));
    }
    Ok(())
}

fn bpf_config(config: &Config) -> anyhow::Result<BpfConfig> {
    let host = File::open(&config.host_netns)
        .with_context(|| format!("--host-netns {} cannot be opened", config.host_netns.display()))?;
    let cgroup = match &config.cgroup {
        Some(path) => path.clone(),
        None => cgroup::v2_mount()?,
    };
    Ok(BpfConfig {
        node: config.node.clone(),
        cgroup,
        bpffs: config.bpffs.clone(),
        host_netns: netns::cookie(&host).context("the node's network namespace cannot be entered")?,
        capacities: config.map_capacity.iter().copied().collect(),
        debug: config.bpf_debug,
    })
}

fn endpoint(config: &Config) -> anyhow::Result<ControlEndpoint> {
    Ok(ControlEndpoint {
        url: config.control.clone().context("--control is needed")?,
        roots: config.ca_root.clone(),
        server_name: config.control_name.clone(),
        token: config.token_file.clone(),
        cluster: config.cluster.clone(),
    })
}

fn node_facts(config: &Config) -> NodeFacts {
    NodeFacts {
        node: config.node.clone(),
        cluster: config.cluster.as_str().into(),
        network: config.network.as_str().into(),
        excluded: config.exclude_namespaces.clone(),
    }
}

/// The last good configuration, so that a restart does not depend on the control plane (I-7).
fn last_good(cache: &Cache) -> (Arc<SnapshotStore>, Versions) {
    let Some((snapshot, versions)) = cache.load() else { return (Arc::default(), Versions::default()) };
    tracing::info!(workloads = snapshot.workload_count(), "starting from the last good configuration");
    (Arc::new(SnapshotStore::from_disk(snapshot)), versions)
}

fn xds_config(config: &Config, endpoint: ControlEndpoint) -> XdsConfig {
    let (pod, namespace) = (&config.pod_name, &config.pod_namespace);
    let metadata = [
        ("NAME", pod),
        ("NAMESPACE", namespace),
        ("NODE_NAME", &config.node),
        ("CLUSTER_ID", &config.cluster),
        ("NETWORK", &config.network),
    ];
    XdsConfig {
        endpoint,
        node_id: format!("ztunnel~{}~{pod}.{namespace}~{namespace}.svc.cluster.local", config.instance_ip),
        metadata: BTreeMap::from(metadata.map(|(key, value)| (key.to_owned(), value.clone()))),
        // Referents first: a workload that names a policy which is not known is closed to everybody.
        types: vec![AUTHORIZATION_TYPE, ADDRESS_TYPE],
    }
}

/// As many descriptors as the machine allows: two per connection.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "the limit of file descriptors cannot be raised"),
    }
}

async fn stopped() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
