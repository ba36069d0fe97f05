//! The running control plane: watches the folder, compiles, serves.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_net::api::{
    envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tonic::transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming};

use crate::{
    admin::{Admin, router},
    all_findings,
    auth::Tokens,
    ca::{Ca, CaService, Given},
    compile::{Options, accounts, compile},
    finding::Finding,
    memory::Memory,
    provision::{FolderProvisioner, Provisioner},
    publish::{Published, encode},
    push::{Clients, Push},
    source::Store,
};

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Cluster folder.
    pub folder: PathBuf,
    /// State folder.
    pub state: PathBuf,
    /// Tokens file.
    pub tokens: PathBuf,
    /// Address of xDS and CA.
    pub listen: SocketAddr,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
    /// More names and addresses for the server certificate.
    pub names: Vec<String>,
    /// Range of virtual addresses.
    pub service_cidr: ipnet::Ipv4Net,
    /// Given intermediate.
    pub ca: Option<Given>,
    /// Compilation.
    pub options: Options,
}

const COALESCE: Duration = Duration::from_millis(30);
const RESCAN: Duration = Duration::from_secs(5);

/// Folder → published state, again and again.
struct Builder {
    folder: PathBuf,
    options: Options,
    store: Store,
    memory: Memory,
    provisioner: Box<dyn Provisioner>,
    compilations: Arc<(AtomicU64, AtomicU64)>,
    out: watch::Sender<Arc<Published>>,
}

impl Builder {
    fn build(&mut self) {
        let start = Instant::now();
        self.store.load(&self.folder);
        let compiled = compile(&self.store, &self.options, &mut self.memory);
        if let Err(error) = self.provisioner.ensure(&compiled.waypoints) {
            tracing::error!(%error, "waypoints cannot be provisioned");
        }
        let findings = all_findings(&self.store, &compiled);
        self.log(&findings);
        let objects = self.store.objects.iter().map(|(key, s)| (key.to_string(), s.file.clone(), s.line));
        let next = Published {
            types: encode(&compiled),
            findings,
            accounts: accounts(&self.store),
            objects: objects.collect(),
            compiled,
        };
        self.out.send_replace(Arc::new(next));
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.compilations.1.store(micros, Ordering::Relaxed);
        self.compilations.0.fetch_add(1, Ordering::Relaxed);
    }

    fn log(&self, findings: &[Finding]) {
        let before = self.out.borrow().clone();
        for finding in findings.iter().filter(|f| !before.findings.contains(f)) {
            tracing::warn!(file = %finding.file, line = finding.line, object = %finding.object,
                field = %finding.field, severity = %finding.severity, code = finding.code,
                reason = %finding.reason, remedy = %finding.remedy, "finding");
        }
    }
}

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
    let ca = Arc::new(Ca::open(&config.state, config.ca.as_ref(), &config.options.trust_domain)?);
    let (sender, current) = watch::channel(Arc::new(Published::default()));
    let (clients, certificates) = (Arc::new(Clients::default()), Arc::default());
    let compilations: Arc<(AtomicU64, AtomicU64)> = Arc::default();
    let builder = Builder {
        folder: config.folder.clone(),
        options: config.options.clone(),
        store: Store::default(),
        memory: Memory::new(config.service_cidr, Some(&config.state)),
        provisioner: Box::new(FolderProvisioner::new(&config.folder)),
        compilations: compilations.clone(),
        out: sender,
    };
    // Nobody is served before the folder was compiled once: an empty answer would mean "all is gone".
    let builder = built(builder).await?;
    let watching = tokio::spawn(watch_folder(builder));
    let tokens = Tokens(config.tokens.clone());
    let push = Push { current: current.clone(), tokens: tokens.clone(), clients: clients.clone() };
    let service = CaService {
        ca: ca.clone(),
        tokens,
        current: current.clone(),
        trust_domain: config.options.trust_domain.clone(),
        counts: Arc::clone(&certificates),
    };
    let admin = Admin { current, clients, certificates, compilations };
    let listener = TcpListener::bind(config.admin).await.context("admin address cannot be bound")?;
    let admin_address = listener.local_addr()?;
    let served = axum::serve(listener, router(admin));
    let mut names = vec!["localhost".to_string(), "127.0.0.1".into(), config.listen.ip().to_string()];
    names.extend(config.names.iter().cloned());
    let (chain, key) = ca.server(names)?;
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(chain, key));
    let incoming = TcpIncoming::bind(config.listen).map_err(anyhow::Error::msg)?;
    let address = incoming.local_addr()?;
    bound(address, admin_address);
    tracing::info!(listen = %address, admin = %admin_address, "control plane started");
    let grpc = Server::builder()
        .tls_config(tls)?
        .add_service(AggregatedDiscoveryServiceServer::new(push))
        .add_service(IstioCertificateServiceServer::new(service))
        .serve_with_incoming(incoming);
    tokio::select! {
        ended = grpc => ended.context("configuration server ended"),
        ended = served.into_future() => ended.context("admin server ended"),
        ended = watching => ended.context("folder watch ended")?,
        _ = tokio::signal::ctrl_c() => Ok(()),
        () = terminated() => Ok(()),
    }
}

async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

async fn built(mut builder: Builder) -> Result<Builder> {
    let work = move || {
        builder.build();
        builder
    };
    tokio::task::spawn_blocking(work).await.context("compilation panicked")
}

async fn watch_folder(mut builder: Builder) -> Result<()> {
    let (wake, mut woken) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !matches!(&event, Ok(e) if matches!(e.kind, EventKind::Access(_))) {
            let _ = wake.try_send(());
        }
    })?;
    watcher.watch(&builder.folder, RecursiveMode::Recursive).context("folder cannot be watched")?;
    loop {
        builder = built(builder).await?;
        if let Ok(None) = tokio::time::timeout(RESCAN, woken.recv()).await {
            anyhow::bail!("file watch ended");
        }
        tokio::time::sleep(COALESCE).await;
        let _ = woken.try_recv();
    }
}
