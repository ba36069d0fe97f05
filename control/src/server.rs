//! The running control plane: follows the folder, serves configuration, certificates and admin.

mod cluster;
mod tls;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use mesh_net::api::{
    envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{service::Routes, transport::Server};

use self::cluster::Cluster;
use crate::{
    admin::{
        Admin,
        bounded::{Bounded, CONNECTIONS},
        router, socket,
    },
    auth::Callers,
    ca::{CaService, Given},
    compile::Options,
    follow::{Follower, built, follow},
    kube,
    memory::Memory,
    metrics::Metrics,
    provision::{FolderProvisioner, Nobody, Provisioner},
    publish::Published,
    push::{Clients, Push},
    shelf::Shelf,
    validate,
};

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Cluster folder.
    pub folder: Option<PathBuf>,
    /// The API server as a source, alone or beside the folder.
    pub kubernetes: Option<Kubernetes>,
    /// State folder.
    pub state: PathBuf,
    /// Tokens file.
    pub tokens: Option<PathBuf>,
    /// Address of xDS and CA.
    pub listen: SocketAddr,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
    /// Unix socket that serves the admin endpoint too.
    pub admin_socket: Option<PathBuf>,
    /// More names and addresses for the server certificate.
    pub names: Vec<String>,
    /// Range of virtual addresses.
    pub service_cidr: ipnet::Ipv4Net,
    /// Given intermediate.
    pub ca: Option<Given>,
    /// Compilation.
    pub options: Options,
}

/// How the API server is reached, and as whom.
#[derive(Debug, Clone)]
pub struct Kubernetes {
    /// A kubeconfig file; none in a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Name of this pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Callers, CA and waypoints there.
    pub flags: kube::authority::Flags,
}

/// Changes of the API server that wait to be compiled: beyond them the watches wait.
const CHANGES: usize = 4096;
/// Largest request: a client that resumes says what it holds, about 100 bytes per resource.
const REQUEST_LIMIT: usize = 64 << 20;
/// Connections after their handshake that wait for the server.
const ACCEPTED: usize = 16;
/// A client that is gone without a word is noticed after these.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// Runs until the process ends.
///
/// # Errors
/// The CA, a listener or the watch cannot be set up.
pub async fn run(config: Config) -> Result<()> {
    run_with(config, |_, _| ()).await
}

/// Like [`run`]; tells the addresses of the configuration and admin listeners once they are bound.
///
/// # Errors
/// See [`run`].
pub async fn run_with(config: Config, bound: impl FnOnce(SocketAddr, SocketAddr)) -> Result<()> {
    let mut cluster = match &config.kubernetes {
        Some(settings) => Some(Cluster::start(settings, &config).await?),
        None => None,
    };
    let ca = cluster::ca(&config, cluster.as_ref())?;
    // From here on a signal ends the process in order, whatever is there already.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let metrics = Metrics::new()?;
    let (sender, current) = watch::channel(Arc::new(Published::default()));
    let clients = Arc::new(Clients::new(metrics.clone()));
    let shelf = Shelf::new();
    let follower = follower(&config, &metrics, &shelf, sender, cluster.as_ref());
    let (tell, changes) = mpsc::channel(CHANGES);
    let watches = match (&config.kubernetes, &cluster) {
        (Some(settings), Some(cluster)) => {
            Some(cluster.follow(settings, &metrics, shelf, tell, current.clone()))
        }
        _ => None,
    };
    let following = tokio::spawn(follow(built(follower, Follower::build).await?, changes));
    let reviewer = cluster.as_ref().map(|cluster| cluster.started.reviewer.clone());
    let callers = Callers::new(config.tokens.clone(), reviewer);
    let push = Push { current: current.clone(), callers: callers.clone(), clients: clients.clone() };
    let service = CaService {
        ca: ca.clone(),
        callers,
        current: current.clone(),
        trust_domain: config.options.trust_domain.clone(),
        counts: metrics.certificates.clone(),
    };
    let validations = metrics.validations.clone();
    let admin =
        router(Admin { folder: config.folder.clone(), watches, ca: ca.clone(), current, clients, metrics });
    let listener = TcpListener::bind(config.admin).await.context("admin address cannot be bound")?;
    let admin_address = listener.local_addr()?;
    let served = axum::serve(Bounded::new(listener, CONNECTIONS), admin.clone());
    // Bound to the end of this function: the file goes with it.
    let (local, _file) = match &config.admin_socket {
        Some(path) => socket::bind(path).await.map(|(listener, file)| (Some(listener), Some(file)))?,
        None => (None, None),
    };
    let locally = async {
        match local {
            Some(listener) => axum::serve(Bounded::new(listener, CONNECTIONS), admin).await,
            None => std::future::pending().await,
        }
    };
    let listener = TcpListener::bind(config.listen).await.context("address cannot be bound")?;
    let address = listener.local_addr()?;
    let (handed, incoming) = mpsc::channel(ACCEPTED);
    let accepting = tls::accept(listener, ca, names(&config), handed);
    bound(address, admin_address);
    tracing::info!(listen = %address, admin = %admin_address, "control plane started");
    let discovery = AggregatedDiscoveryServiceServer::new(push).max_decoding_message_size(REQUEST_LIMIT);
    let routes = Routes::new(discovery).add_service(IstioCertificateServiceServer::new(service));
    let grpc = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .add_routes(routes.into_axum_router().merge(validate::route(validations)).into())
        .serve_with_incoming(ReceiverStream::new(incoming));
    let ended = tokio::select! {
        ended = grpc => ended.context("configuration server ended"),
        ended = accepting => ended.context("accepting connections ended"),
        ended = served.into_future() => ended.context("admin server ended"),
        ended = locally => ended.context("admin socket ended"),
        ended = cluster::broken(cluster.as_mut()) => ended,
        ended = following => ended.context("following the sources ended").flatten(),
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
    };
    if let Some(cluster) = cluster {
        cluster.started.lease.release().await;
    }
    ended
}

fn follower(
    config: &Config,
    metrics: &Metrics,
    shelf: &Shelf,
    out: watch::Sender<Arc<Published>>,
    cluster: Option<&Cluster>,
) -> Follower {
    let memory = match config.kubernetes {
        Some(_) => Memory::shared(config.service_cidr, &config.state, shelf),
        None => Memory::new(config.service_cidr, Some(&config.state)),
    };
    let mut store = memory.good.restore();
    if config.kubernetes.is_some() {
        store = store.on_kubernetes(config.folder.is_some());
    }
    let provisioner: Box<dyn Provisioner> = match (cluster, &config.folder) {
        (Some(cluster), _) => Box::new(cluster.started.provisioner.clone()),
        (None, Some(folder)) => Box::new(FolderProvisioner::new(folder)),
        (None, None) => Box::new(Nobody),
    };
    Follower {
        store,
        folder: config.folder.clone(),
        options: config.options.clone(),
        memory,
        provisioner,
        metrics: metrics.clone(),
        out,
        read: None,
    }
}

/// Names and addresses that clients may know this server by.
fn names(config: &Config) -> Vec<String> {
    let mut names = vec!["localhost".to_string(), "127.0.0.1".into(), config.listen.ip().to_string()];
    names.extend(config.names.iter().cloned());
    let of_service = |settings: &Kubernetes| kube::authority::names(&settings.namespace);
    names.extend(config.kubernetes.iter().flat_map(of_service));
    names
}
