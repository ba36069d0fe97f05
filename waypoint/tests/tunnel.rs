//! The waypoint over real sockets, TLS and HBONE: client tunnel → waypoint → endpoint's tunnel → application.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_core::{
    balance::Endpoint,
    delta::Change,
    identity::Identity,
    model::{
        AppProtocol, GatewayAddress, GatewayDestination, PortMapping, Service, ServiceName, Tunnel, Vip,
        Workload, WorkloadUid,
    },
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
};
use mesh_net::{
    ca::{CertState, Issued},
    hbone::{self, server::Connect},
    tls::WorkloadTls,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::watch};
use waypoint::{
    io::BoxIo,
    limits::LimitBook,
    peer::Peer,
    telemetry::Families,
    tunnel::{client::Tunnels, server},
    upstream::{Dial, Hop},
    worker::Worker,
    world::Me,
};

type Ca = CertifiedIssuer<'static, KeyPair>;
type Seen = Rc<RefCell<Vec<String>>>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(ca: &Ca, identity: &Identity) -> Arc<Issued> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
    let leaf = params.signed_by(&key, ca).unwrap();
    Arc::new(Issued {
        identity: identity.clone(),
        chain: vec![leaf.der().clone()],
        roots: vec![ca.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        not_before: SystemTime::now(),
        not_after: SystemTime::now() + Duration::from_secs(3600),
    })
}

fn account(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

fn workload(name: &str, ip: &str) -> Workload {
    let mut workload = Workload::new(WorkloadUid::pod("Kubernetes", "default", name), "default", name);
    workload.addresses = vec![ip.parse().unwrap()];
    workload.service_account = name.into();
    workload.tunnel = Tunnel::Hbone;
    workload
}

/// The endpoint's node: terminates HBONE and answers with what it saw.
async fn application(listener: TcpListener, own: Arc<Issued>, seen: Seen) {
    let acceptor = WorkloadTls::new(&own).unwrap().acceptor();
    while let Ok((socket, address)) = listener.accept().await {
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        tokio::task::spawn_local(async move {
            let handle = move |connect| tunnelled(connect, seen.clone());
            let _ = hbone::server::serve(socket, address, &acceptor, Default::default(), handle).await;
        });
    }
}

async fn tunnelled(connect: Connect, seen: Seen) {
    let forwarded = connect.forwarded.clone().unwrap();
    seen.borrow_mut().push(format!("{} {} {forwarded}", connect.identity, connect.authority));
    let io = TokioIo::new(connect.accept(None).unwrap());
    let service = service_fn(async |request: Request<hyper::body::Incoming>| {
        let close = request.uri() == "/close";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = Response::new(Full::new(body));
        if close {
            response.headers_mut().insert("connection", "close".parse().unwrap());
        }
        Ok::<_, Infallible>(response)
    });
    // As an agent's relay: our direction ends, and the stream lives until the other one has.
    let served = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
    let Ok(parts) = served.without_shutdown().await else { return };
    let mut stream = parts.io.into_inner();
    let _ = stream.shutdown().await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

struct Setup {
    client: Tunnels,
    seen: Seen,
    ca: Ca,
    port: u16,
}

impl Setup {
    /// `upstream`: the identity that the endpoint's certificate really carries.
    async fn new(upstream: &str) -> Self {
        Self::with(upstream, |_, _| {}).await
    }

    /// The same with other properties of the service and its endpoint.
    async fn with(upstream: &str, edit: impl FnOnce(&mut Service, &mut Workload)) -> Self {
        let ca = ca();
        let application_port = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let me = Me {
            namespace: "default".into(),
            name: "waypoint".into(),
            workload: Arc::new(workload("waypoint", "127.0.0.1")),
        };
        let (_, own) = watch::channel(CertState::Ready(issue(&ca, &account("waypoint"))));
        let dial =
            Tunnels::new(own.clone(), &me.workload).with_port(application_port.local_addr().unwrap().port());
        let (_, snapshots) = watch::channel(Arc::new(world(edit)));
        let families = Families::register(&prometheus::Registry::new()).unwrap();
        let worker =
            Worker::new(me, snapshots, Rc::new(dial), families, LimitBook::default(), Default::default());
        let seen = Rc::default();
        tokio::task::spawn_local(application(
            application_port,
            issue(&ca, &account(upstream)),
            Rc::clone(&seen),
        ));
        tokio::task::spawn_local(server::listen(worker, listener, own));
        let client = client(&ca, "client", port);
        Self { client, seen, ca, port }
    }

    async fn open(&self, client: &Tunnels, ip: &str) -> Result<BoxIo, Refusal> {
        let mut there = workload("waypoint", ip);
        there.uid = WorkloadUid::new(ip);
        let peer = Peer::new("127.0.0.1:4000".parse().unwrap(), account("client"), &Snapshot::new());
        let endpoint = Endpoint { workload: Arc::new(there), port: 80 };
        client.dial(Hop { endpoint: &endpoint, client: &peer, service: None }).await
    }
}

fn client(ca: &Ca, name: &str, port: u16) -> Tunnels {
    let (_, certificate) = watch::channel(CertState::Ready(issue(ca, &account(name))));
    Tunnels::new(certificate, &workload(name, "127.0.0.1")).with_port(port)
}

fn world(edit: impl FnOnce(&mut Service, &mut Workload)) -> Snapshot {
    let mut service = Service::new(ServiceName::new("default", "web.default.svc.cluster.local"), "web");
    let port = PortMapping { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http11 };
    service.ports = vec![port];
    service.vips = vec![Vip { network: "".into(), range: "127.0.0.1/32".parse().unwrap() }];
    service.waypoint = Some(GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceName::new(
            "default",
            "waypoint.default.svc.cluster.local",
        )),
        hbone_port: 15008,
    });
    let mut endpoint = workload("web", "127.0.0.2");
    edit(&mut service, &mut endpoint);
    endpoint.services = BTreeMap::from([(service.key.clone(), service.ports.clone())]).into();
    Snapshot::of([Change::Service(Arc::new(service)), Change::Workload(Arc::new(endpoint))])
}

fn run(test: impl AsyncFnOnce()) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test()).await };
    tokio::task::LocalSet::new().block_on(&runtime, limited).unwrap();
}

async fn exchange(io: BoxIo, body: Bytes) -> (u16, String, Bytes) {
    exchange_at("/", io, body).await
}

async fn exchange_at(path: &str, io: BoxIo, body: Bytes) -> (u16, String, Bytes) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::task::spawn_local(connection);
    let mut request = Request::post(path).header("host", "web").body(Full::new(body)).unwrap();
    if path == "/close" {
        request.headers_mut().insert("connection", "close".parse().unwrap());
    }
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let reason =
        parts.headers.get("x-culvert-reason").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (parts.status.as_u16(), reason, body.collect().await.unwrap().to_bytes())
}

#[test]
fn requests_go_through_both_tunnels_with_the_waypoints_identity_and_the_clients_address() {
    run(async || {
        let setup = Setup::new("web").await;
        let body = Bytes::from(vec![3; 8 << 20]);
        let io = setup.open(&setup.client, "127.0.0.1").await.unwrap();
        let (status, _, echoed) = exchange(io, body.clone()).await;
        assert_eq!((status, echoed == body), (200, true));
        let seen = setup.seen.borrow();
        assert!(
            seen[0]
                .starts_with("spiffe://cluster.local/ns/default/sa/waypoint 127.0.0.2:8080 for=\"127.0.0.1:"),
            "{seen:?}"
        );
        assert!(seen[0].ends_with(";host=web.default.svc.cluster.local"), "{seen:?}");
    });
}

#[test]
fn an_answer_that_ends_its_connection_arrives_whole_through_both_tunnels() {
    run(async || {
        let setup = Setup::new("web").await;
        for size in [1, 100 << 10, 6 << 20] {
            let body = Bytes::from(vec![5; size]);
            let io = setup.open(&setup.client, "127.0.0.1").await.unwrap();
            let (status, _, echoed) = exchange_at("/close", io, body.clone()).await;
            assert_eq!((status, echoed.len()), (200, size));
        }
    });
}

#[test]
fn an_endpoint_with_another_identity_is_refused() {
    run(async || {
        let setup = Setup::new("impostor").await;
        let io = setup.open(&setup.client, "127.0.0.1").await.unwrap();
        let (status, reason, _) = exchange(io, Bytes::new()).await;
        assert_eq!((status, reason.as_str()), (503, "peer_identity_rejected"));
        assert!(setup.seen.borrow().is_empty());
    });
}

#[test]
fn an_endpoint_may_prove_an_identity_that_its_service_names_and_no_other() {
    run(async || {
        for (upstream, status) in [("legacy", 200), ("web", 200), ("impostor", 503)] {
            let named = |service: &mut Service, _: &mut Workload| {
                service.subject_alt_names = vec![account("legacy")];
            };
            let setup = Setup::with(upstream, named).await;
            let io = setup.open(&setup.client, "127.0.0.1").await.unwrap();
            assert_eq!(exchange(io, Bytes::new()).await.0, status, "{upstream}");
        }
    });
}

/// Answers every request on loopback, outside the mesh; its port.
async fn outside() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Ok::<_, Infallible>(Response::new(Full::new(body)))
            });
            let served = hyper::server::conn::http1::Builder::new();
            tokio::task::spawn_local(served.serve_connection(TokioIo::new(socket), service));
        }
    });
    port
}

#[test]
fn an_endpoint_that_is_a_host_name_is_resolved_and_one_that_does_not_exist_is_503() {
    run(async || {
        let port = outside().await;
        for (name, status, reason) in [("localhost", 200, ""), ("no..such", 503, "connect_failed")] {
            let external = |service: &mut Service, endpoint: &mut Workload| {
                service.ports[0].target_port = port;
                endpoint.addresses = vec![];
                endpoint.hostname = name.into();
                endpoint.tunnel = Tunnel::None;
            };
            let setup = Setup::with("web", external).await;
            let io = setup.open(&setup.client, "127.0.0.1").await.unwrap();
            let (got, why, _) = exchange(io, Bytes::from("x")).await;
            assert_eq!((got, why.as_str()), (status, reason), "{name}");
        }
    });
}

#[test]
fn clients_of_another_ca_get_no_tunnel() {
    run(async || {
        let setup = Setup::new("web").await;
        let stranger = client(&ca(), "client", setup.port);
        assert_eq!(
            setup.open(&stranger, "127.0.0.1").await.err().unwrap().reason,
            Reason::PeerIdentityRejected,
            "the stranger does not trust the waypoint either"
        );
        let mut forged = Arc::into_inner(issue(&ca(), &account("client"))).unwrap();
        forged.roots = vec![setup.ca.der().clone()];
        let (_, certificate) = watch::channel(CertState::Ready(Arc::new(forged)));
        let forger = Tunnels::new(certificate, &workload("client", "127.0.0.1")).with_port(setup.port);
        assert_eq!(setup.open(&forger, "127.0.0.1").await.err().unwrap().reason, Reason::TunnelBroken);
        assert!(setup.open(&client(&setup.ca, "other", setup.port), "127.0.0.1").await.is_ok());
    });
}

#[test]
fn destinations_not_bound_to_the_waypoint_are_refused_in_the_tunnel() {
    run(async || {
        let setup = Setup::new("web").await;
        let tls = WorkloadTls::new(&issue(&setup.ca, &account("client"))).unwrap();
        let socket = tokio::net::TcpStream::connect(("127.0.0.1", setup.port)).await.unwrap();
        let connector = tls.connector(&[account("waypoint")]).unwrap();
        let stream = connector.connect("127.0.0.1".try_into().unwrap(), socket).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        for (method, authority, wanted) in [
            ("CONNECT", "127.0.0.2:8080", None),
            ("GET", "http://x/", Some(400)),
            ("CONNECT", "no-port.example", None),
        ] {
            let request = Request::builder().method(method).uri(authority).body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            let status = response.await.unwrap().status().as_u16();
            assert!(status >= 400 && wanted.is_none_or(|w| w == status), "{method} {authority}: {status}");
        }
    });
}
