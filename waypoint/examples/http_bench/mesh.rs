//! The processes of the bench that speak our protocols.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::{
    balance::Endpoint,
    delta::Change,
    identity::Identity,
    model::{
        AppProtocol, GatewayAddress, GatewayDestination, PortMapping, Service, ServiceName, Tunnel, Vip,
        Workload, WorkloadUid,
        l7::{
            Fault, HeaderOps, HttpRoute, RetryPolicy, RouteAction, ServiceRoutes, Subset, TrafficPolicy,
            WeightedDestination, WorkloadLabels,
        },
    },
    snapshot::Snapshot,
};
use mesh_net::{
    ca::{CertState, Issued},
    hbone,
    tls::WorkloadTls,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use waypoint::{
    flow::Flow,
    limits::LimitBook,
    peer::Peer,
    serve::serve,
    telemetry::Families,
    tunnel::{client::Tunnels, server},
    upstream::{Dial, Hop},
    worker::Worker,
    world::Me,
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Runs one of the processes.
pub fn run(arguments: &[String]) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ports: Vec<u16> = arguments[1..].iter().filter_map(|a| a.parse().ok()).collect();
    let folder = arguments.last().cloned().unwrap_or_default();
    let work = async {
        match arguments[0].as_str() {
            "plain" => plain(&ports).await,
            "logged" => {
                tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
                plain(&ports).await;
            }
            "hbone" => waypoint_over_hbone(&ports, Path::new(&folder)).await,
            _ => agents(&ports, Path::new(&folder)).await,
        }
    };
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

async fn listen(port: u16) -> TcpListener {
    TcpListener::bind((LOCALHOST, port)).await.unwrap()
}

fn account(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

fn worker(world: Snapshot, certificate: watch::Receiver<CertState>, hbone_port: u16) -> Rc<Worker> {
    let own = Workload { service_account: "waypoint".into(), ..workload("waypoint", 0) };
    let dial = Tunnels::new(certificate, &own).with_port(hbone_port);
    let me = Me { namespace: "default".into(), name: "waypoint".into(), workload: Arc::new(own) };
    let (publish, snapshots) = watch::channel(Arc::new(world));
    // Kept for the life of the process.
    std::mem::forget(publish);
    let families = Families::register(&prometheus::Registry::new()).unwrap();
    Worker::new(me, snapshots, Rc::new(dial), families, LimitBook::default(), Default::default())
}

async fn plain(ports: &[u16]) {
    let listener = listen(ports[0]).await;
    let (_, certificate) = watch::channel(CertState::Pending);
    let worker = worker(world([ports[1], ports[2]], Tunnel::None), certificate, 0);
    let snapshot = worker.world().snapshot.clone();
    while let Ok((socket, address)) = listener.accept().await {
        socket.set_nodelay(true).unwrap();
        let peer = Rc::new(Peer::new(address, account("client"), &snapshot));
        let flow = Flow::resolve(&worker.world(), peer, &"10.96.0.1:80".parse().unwrap()).unwrap();
        tokio::task::spawn_local(serve(worker.clone(), flow, Box::new(socket)));
    }
}

async fn waypoint_over_hbone(ports: &[u16], folder: &Path) {
    let (_, certificate) = watch::channel(CertState::Ready(issue(folder, "waypoint")));
    let worker = worker(world([ports[3], ports[4]], Tunnel::Hbone), certificate.clone(), ports[1]);
    server::listen(worker, listen(ports[0]).await, certificate).await;
}

/// The client's agent and the endpoints'.
async fn agents(ports: &[u16], folder: &Path) {
    let tls = WorkloadTls::new(&issue(folder, "web")).unwrap();
    let inbound = listen(ports[1]).await;
    tokio::task::spawn_local(async move {
        while let Ok((socket, address)) = inbound.accept().await {
            let acceptor = tls.acceptor();
            tokio::task::spawn_local(async move {
                let _ = hbone::server::serve(socket, address, &acceptor, Default::default(), deliver).await;
            });
        }
    });
    let (_, certificate) = watch::channel(CertState::Ready(issue(folder, "client")));
    let tunnels = Rc::new(Tunnels::new(certificate, &workload("client", 0)).with_port(ports[0]));
    let outbound = listen(ports[2]).await;
    while let Ok((mut socket, address)) = outbound.accept().await {
        socket.set_nodelay(true).unwrap();
        let tunnels = tunnels.clone();
        tokio::task::spawn_local(async move {
            let mut there = workload("waypoint", 80);
            there.service_account = "waypoint".into();
            there.tunnel = Tunnel::Hbone;
            let peer = Peer::new(address, account("client"), &Snapshot::new());
            let endpoint = Endpoint { workload: Arc::new(there), port: 80 };
            let hop = Hop { endpoint: &endpoint, client: &peer, service: None };
            let mut stream = tunnels.dial(hop).await.unwrap();
            let _ = copy_bidirectional(&mut socket, &mut stream).await;
        });
    }
}

async fn deliver(connect: hbone::server::Connect) {
    let to = (LOCALHOST, connect.authority.port());
    let Ok(socket) = TcpStream::connect(to).await else { return connect.refuse(503) };
    socket.set_nodelay(true).unwrap();
    let stream = connect.accept(None).unwrap();
    let counters = mesh_net::relay::Counters::default();
    use mesh_core::outcome::Reason;
    let _ =
        mesh_net::relay::tunnel(socket, stream, &counters, Reason::UpstreamReset, Reason::ClientReset).await;
}

/// Makes the CA that the processes share.
pub fn authority(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("root.der"), params.self_signed(&key).unwrap().der()).unwrap();
    fs::write(folder.join("key.der"), key.serialize_der()).unwrap();
}

fn issue(folder: &Path, name: &str) -> Arc<Issued> {
    let root = CertificateDer::from(fs::read(folder.join("root.der")).unwrap());
    let ca = PrivateKeyDer::try_from(fs::read(folder.join("key.der")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&root, KeyPair::try_from(&ca).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI(account(name).to_string().try_into().unwrap())];
    let leaf = params.signed_by(&key, &issuer).unwrap();
    Arc::new(Issued {
        identity: account(name),
        chain: vec![leaf.der().clone()],
        roots: vec![root],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        not_before: SystemTime::now(),
        not_after: SystemTime::now() + Duration::from_secs(86_400),
    })
}

fn workload(name: &str, port: u16) -> Workload {
    let uid = WorkloadUid::pod("Kubernetes", "default", &format!("{name}-{port}"));
    let mut workload = Workload::new(uid, "default", name);
    workload.addresses = vec![LOCALHOST];
    workload.service_account = name.into();
    workload
}

/// One service with two subsets of one endpoint each, 90/10.
fn world(backends: [u16; 2], tunnel: Tunnel) -> Snapshot {
    let web = ServiceName::new("default", "web.default.svc.cluster.local");
    let waypoint = ServiceName::new("default", "waypoint.default.svc.cluster.local");
    let mut service = Service::new(web.clone(), "web");
    let ports =
        |target_port| PortMapping { service_port: 80, target_port, app_protocol: AppProtocol::Http11 };
    service.ports = vec![ports(0)];
    let vips: [SocketAddr; 2] = ["10.96.0.1:80".parse().unwrap(), SocketAddr::new(LOCALHOST, 80)];
    service.vips = vips.map(|vip| Vip { network: "".into(), range: vip.ip().into() }).into();
    let destination = GatewayDestination::Hostname(waypoint);
    service.waypoint = Some(GatewayAddress { destination, hbone_port: 15008 });
    let mut changes = vec![Change::Service(Arc::new(service))];
    let (mut subsets, mut split) = (Vec::new(), Vec::new());
    for (index, (port, weight)) in backends.into_iter().zip([90, 10]).enumerate() {
        let version: Arc<str> = format!("v{}", index + 1).into();
        let labels = BTreeMap::from([("version".into(), version.clone())]);
        let mut endpoint = workload("web", port);
        endpoint.tunnel = tunnel;
        endpoint.services = BTreeMap::from([(web.clone(), vec![ports(port)])]).into();
        let named = WorkloadLabels { uid: endpoint.uid.clone(), labels: labels.clone() };
        changes.push(Change::Labels(Arc::new(named)));
        changes.push(Change::Workload(Arc::new(endpoint)));
        subsets.push(Subset { name: version.clone(), labels, traffic_policy: TrafficPolicy::default() });
        split.push(WeightedDestination {
            service: web.clone(),
            subset: Some(version),
            port: None,
            weight,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
        });
    }
    let route = HttpRoute {
        name: "canary".into(),
        matches: Vec::new(),
        action: RouteAction::Forward(split),
        rewrite: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retries: RetryPolicy::default(),
        fault: Fault::default(),
    };
    changes.push(Change::Routes(Arc::new(ServiceRoutes {
        service: web,
        protocols: BTreeMap::from([(80, AppProtocol::Http11)]),
        origin: "VirtualService default/web".into(),
        http: vec![route],
        tcp: Vec::new(),
        traffic_policy: TrafficPolicy::default(),
        subsets,
    })));
    Snapshot::of(changes)
}
