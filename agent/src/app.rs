//! Putting the agent together: what starts in which order, and what ends in which.

use std::{collections::BTreeMap, fs::File, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_core::{identity::Identity, snapshot::Snapshot};
use mesh_net::{
    ca::{CertificateManager, IstioCa, ManagerConfig},
    store::{self, SnapshotStore, Versions},
    task::{Drain, Ready},
    wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE},
    xds::{self, ControlEndpoint, Session, XdsConfig, XdsStatus},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus::Registry as Metrics;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Admin},
    bpf::{Bpf, BpfConfig, StatsSwitch},
    cgroup,
    config::Config,
    kernel_events, mesh_sync, netns,
    pods::folder::{Folder, NodeFacts},
    record,
    redirect::Ebpf,
    registry::Registry,
    supervisor::{self, Means},
    worker::{self, Shared},
};

/// Runs the agent until it is told to stop and has drained.
///
/// # Errors
/// The kernel side cannot be set up, or a port cannot be bound.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let bpf = Arc::new(Bpf::load(&bpf_config(&config)?)?);
    if config.uninstall {
        let bpf = Arc::into_inner(bpf).context("the kernel side is in use")?;
        bpf.remove_all()?;
        println!("node {}: capture has ended, programs and tables are removed", config.node);
        return Ok(());
    }
    raise_descriptor_limit();
    let folder = config.folder.clone().context("--folder is needed")?;
    let metrics = Metrics::new();
    let families = record::Families::register(&metrics)?;
    let (ready, stop, cancel) = (Ready::new(), Drain::new(), CancellationToken::new());

    let endpoint = endpoint(&config)?;
    let (store, versions) = last_good(&config);
    let (status, xds_status) = watch::channel(XdsStatus::default());
    tokio::spawn(xds::run(
        xds_config(&config, endpoint.clone()),
        store.clone(),
        Session::resume(versions),
        status,
        ready.awaits("configuration"),
        cancel.clone(),
    ));

    let signer = IstioCa { endpoint, validity_seconds: config.certificate_seconds, impersonate: true };
    let manager = Arc::new(CertificateManager::new(signer, ManagerConfig::default()));
    let certificates = manager.clone();

    let redirector = Arc::new(Ebpf(bpf.clone()));
    let shared = Shared {
        redirector: redirector.clone(),
        snapshots: store.subscribe(),
        families,
        max_flows: config.max_connections,
        stop: stop.clone(),
    };
    let workers = worker::start(config.worker_count(), &shared)?;
    let registry = Registry::default();
    let drain = Duration::from_secs(config.drain_seconds);
    let means = Means {
        source: Arc::new(Folder::new(folder, node_facts(&config))),
        redirector,
        workers: workers.clone(),
        certificates: Arc::new(move |identity: &Identity| certificates.subscribe(identity)),
        registry: registry.clone(),
        trust_domain: config.trust_domain.as_str().into(),
        drain,
        stop: stop.clone(),
    };
    tokio::spawn(supervisor::run(Arc::new(means), ready.awaits("pods of this node")));
    tokio::spawn(mesh_sync::run(bpf.clone(), store.subscribe(), config.mesh_cidrs.clone()));
    tokio::spawn(kernel_events::run(
        bpf.clone(),
        kernel_events::Families::register(&metrics)?,
        registry.clone(),
        store.subscribe(),
    ));

    let _counting = match config.no_bpf_stats {
        true => None,
        false => {
            StatsSwitch::on().inspect_err(|error| tracing::warn!(%error, "programs run unmeasured")).ok()
        }
    };
    let admin = Admin {
        node: config.node.as_str().into(),
        metrics,
        ready,
        stop: stop.clone(),
        store,
        registry,
        workers,
        bpf,
        xds: xds_status,
    };
    admin::start(admin, config.admin, config.admin_socket.as_deref()).await?;
    tracing::info!(node = config.node, workers = config.worker_count(), "agent started");
    stopped().await?;
    tracing::info!("draining; capture stays on, new connections are refused until an agent is back");
    if !stop.finish(drain).await {
        tracing::warn!("connections that outlived the drain were closed");
    }
    cancel.cancel();
    if let Some(path) = &config.admin_socket {
        // It may be another agent's by now; then it is not there under this name.
        let _ = std::fs::remove_file(path);
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
        capacities: std::collections::HashMap::new(),
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

fn cache_file(config: &Config) -> PathBuf {
    config.state_dir.join("snapshot")
}

/// The last good configuration, so that a restart does not depend on the control plane (I-7).
fn last_good(config: &Config) -> (Arc<SnapshotStore>, Versions) {
    let path = cache_file(config);
    let (snapshot, versions) = match store::load(&path) {
        Ok(Some(cached)) => {
            tracing::info!(path = %path.display(), workloads = cached.0.workload_count(), "starting from the last good configuration");
            cached
        }
        Ok(None) => (Snapshot::new(), Versions::default()),
        Err(error) => {
            tracing::warn!(%error, "starting without configuration");
            (Snapshot::new(), Versions::default())
        }
    };
    (Arc::new(SnapshotStore::new(snapshot)), versions)
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
        cache: Some(cache_file(config)),
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
