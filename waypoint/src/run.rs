//! The process: one control runtime for configuration, certificates and admin, and worker threads
//! that share the HBONE port through `SO_REUSEPORT`.

use std::{
    collections::BTreeMap, io, net::SocketAddr, rc::Rc, sync::Arc, thread::JoinHandle, time::Duration,
};

use anyhow::Context;
use mesh_core::snapshot::Snapshot;
use mesh_net::{
    admin::{Admin, Answer, bind_unix, serve_tcp, serve_unix},
    ca::{CertState, CertificateManager, IstioCa, ManagerConfig, follow_roots},
    store::{Cache, SnapshotStore, Versions},
    task::Ready,
    telemetry,
    wire::{ADDRESS_TYPE, L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE},
    xds::{self, ControlEndpoint, Session, XdsConfig, XdsStatus},
};
use prometheus::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    limits::LimitBook,
    telemetry::Families,
    tunnel::{client::Tunnels, server},
    worker::Worker,
};

/// Validity to ask the CA for, seconds.
const VALIDITY: i64 = 86_400;

/// Time for flows that a drain closes to say so in log and metrics.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What every worker starts from.
#[derive(Clone)]
struct Shared {
    config: Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    certificate: watch::Receiver<CertState>,
    families: Families,
    limits: LimitBook,
    drain: CancellationToken,
}

/// Runs the waypoint until it is told to stop and has drained.
///
/// # Errors
/// A port cannot be bound or a runtime cannot be made.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let registry = Registry::new();
    let ready = Ready::new();
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    let endpoint = ControlEndpoint {
        url: config.control.clone(),
        roots: config.ca_root.clone(),
        server_name: config.control_name.clone(),
        token: config.token_file.clone(),
        cluster: config.cluster.clone(),
    };
    if let Some(folder) = &config.state_dir {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--state-dir {} cannot be made", folder.display()))?;
    }
    let cache = config.cache().map(Cache::new);
    let (store, versions) = last_good(cache.as_ref());
    // A world from disk is enough to be ready.
    let awaited = if store.current().is_complete() { Ready::new() } else { ready.clone() };
    let kept = cache.map(|cache| tokio::spawn(cache.keep(store.clone(), stop.clone())));
    let snapshots = store.subscribe();
    let synced = awaited.awaits("configuration");
    let (status, _) = watch::channel(XdsStatus::default());
    let session = Session::resume(versions);
    tokio::spawn(xds::run(
        xds_config(&config, endpoint.clone()),
        store.clone(),
        session,
        status,
        synced,
        stop.clone(),
    ));

    let roots = config.ca_root.clone();
    let signer = IstioCa { endpoint, validity_seconds: VALIDITY, impersonate: false };
    let manager = CertificateManager::new(signer, ManagerConfig::default());
    if let Some(file) = roots {
        tokio::spawn(follow_roots(file, manager.renewer(), stop.clone()));
    }
    let certificate = manager.subscribe(&config.me().workload.identity());
    let awaited = ready.awaits("certificate");
    let mut first = certificate.clone();
    tokio::spawn(async move {
        let _ = first.wait_for(|state| matches!(state, CertState::Ready(_))).await;
        drop(awaited);
    });

    telemetry::build(&registry, "culvert-waypoint", env!("CARGO_PKG_VERSION"))?;
    let admin = Admin::new(registry.clone(), ready, drain.clone())
        .with_handler(move |path, _| show(store.clone(), path));
    serve_admin(&config, admin, &stop).await?;

    let families = Families::register(&registry)?;
    let shared = Shared {
        config,
        snapshots,
        certificate,
        families,
        limits: LimitBook::default(),
        drain: drain.clone(),
    };
    let mut workers = Vec::new();
    for index in 0..shared.config.workers.max(1) {
        workers.push(spawn(index, shared.clone())?);
    }
    tracing::info!(listen = %shared.config.listen, workers = workers.len(), "waypoint started");
    stopped().await?;
    linger(Duration::from_secs(shared.config.linger_seconds)).await?;
    tracing::info!("draining");
    drain.cancel();
    tokio::task::spawn_blocking(move || workers.into_iter().for_each(|w| drop(w.join()))).await?;
    stop.cancel();
    // It writes what it holds before it ends.
    if let Some(kept) = kept {
        kept.await?;
    }
    Ok(())
}

/// The last good configuration, so that a restart does not depend on the control plane (I-7).
fn last_good(cache: Option<&Cache>) -> (Arc<SnapshotStore>, Versions) {
    let Some((snapshot, versions)) = cache.and_then(Cache::load) else {
        return (Arc::default(), Versions::default());
    };
    tracing::info!(workloads = snapshot.workload_count(), "starting from the last good configuration");
    (Arc::new(SnapshotStore::from_disk(snapshot)), versions)
}

/// Serves until cancelled.
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

async fn show(store: Arc<SnapshotStore>, path: String) -> Option<Answer> {
    (path == "/debug/config").then(|| Answer::json(&store.current().dump()))
}

fn xds_config(config: &Config, endpoint: ControlEndpoint) -> XdsConfig {
    let pod = config.pod_name.as_deref().unwrap_or(&config.name);
    let namespace = &config.namespace;
    let metadata = [
        ("NAME", pod),
        ("NAMESPACE", namespace),
        ("NODE_NAME", &config.node),
        ("CLUSTER_ID", &config.cluster),
        ("WAYPOINT_NAME", &config.name),
    ];
    XdsConfig {
        endpoint,
        node_id: format!("waypoint~{}~{pod}.{namespace}~{namespace}.svc.cluster.local", config.pod_ip),
        metadata: BTreeMap::from(metadata.map(|(key, value)| (key.to_owned(), value.to_owned()))),
        // Policies first: a service must not be served before what protects it is known.
        types: vec![L7_POLICY_TYPE, ADDRESS_TYPE, LABELS_TYPE, ROUTES_TYPE],
    }
}

fn spawn(index: usize, shared: Shared) -> anyhow::Result<JoinHandle<()>> {
    let listen = shared.config.listen;
    let listener = listener(listen).with_context(|| format!("port {listen}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            match TcpListener::from_std(listener) {
                Ok(listener) => worker(shared, listener).await,
                Err(error) => tracing::error!(%error, "listener unusable"),
            }
        });
    };
    Ok(std::thread::Builder::new().name(format!("worker-{index}")).spawn(work)?)
}

async fn worker(shared: Shared, listener: TcpListener) {
    let me = shared.config.me();
    let deadline = Duration::from_secs(shared.config.drain_seconds);
    let dial = Rc::new(Tunnels::new(shared.certificate.clone(), &me.workload));
    let families = shared.families.clone();
    let worker =
        Worker::new(me, shared.snapshots, dial, shared.families, shared.limits, shared.drain.clone());
    server::listen(worker.clone(), listener, shared.certificate).await;
    // Connections have been told to end; those that are still answering get until the deadline.
    let busy = || families.active.get() > 0 || Rc::strong_count(&worker) > 1;
    idle_within(deadline, busy).await;
    worker.expired.cancel();
    idle_within(LAST_WORDS, || Rc::strong_count(&worker) > 1).await;
}

async fn idle_within(limit: Duration, busy: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while tokio::time::Instant::now() < end && busy() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Those who still believe that this waypoint serves find it serving until the news has reached them. Who asks
/// a second time does not want to wait.
async fn linger(time: Duration) -> io::Result<()> {
    if time.is_zero() {
        return Ok(());
    }
    tracing::info!(seconds = time.as_secs(), "told to stop; accepting until everybody knows");
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        again = stopped() => again,
    }
}

async fn stopped() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
