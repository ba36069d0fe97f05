//! A waypoint with two applications (`v1`, `v2`) behind one service, all over real sockets on loopback.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use mesh_core::{
    delta::Change,
    identity::Identity,
    model::{
        AppProtocol, GatewayAddress, GatewayDestination, PolicyAction, PolicyName, PortMapping, Service,
        ServiceName, StringMatch, Vip, Workload, WorkloadUid,
        l7::{
            ConditionKey, Fault, HeaderOps, HttpRoute, L7Condition, L7Policy, L7Rule, L7Target, RetryPolicy,
            RouteAction, ServiceRoutes, Subset, TrafficPolicy, WeightedDestination, WorkloadLabels,
        },
    },
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use waypoint::{
    flow::Flow,
    io::{BoxIo, LocalExecutor},
    limits::LimitBook,
    peer::Peer,
    serve::serve,
    telemetry::Families,
    upstream::{Dial, Hop},
    worker::Worker,
    world::Me,
};

pub type Reply = (StatusCode, HeaderMap, String);

/// What the applications are.
#[derive(Clone, Copy, PartialEq)]
pub enum App {
    Http1,
    Http2,
    Tcp,
    Greeter,
    /// Reads something, answers with this and closes.
    Raw(&'static str),
}

#[derive(Default)]
struct Apps {
    requests: Cell<u32>,
    connections: Cell<u32>,
    stalled: Cell<bool>,
    failing: Cell<u32>,
    hanging: Cell<u32>,
    broken: RefCell<HashSet<String>>,
}

struct Loopback(Rc<Apps>, App);

/// Two ends of a TCP connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap().0);
    ours.set_nodelay(true).unwrap();
    theirs.set_nodelay(true).unwrap();
    (ours, theirs)
}

impl Dial for Loopback {
    fn dial<'a>(&'a self, hop: Hop<'a>) -> LocalBoxFuture<'a, Result<BoxIo, Refusal>> {
        Box::pin(async move {
            let name = hop.endpoint.workload.name.to_string();
            if self.0.broken.borrow().contains(&name) {
                return Err(Refusal::new(Reason::ConnectFailed, "broken on purpose"));
            }
            if self.0.stalled.get() {
                std::future::pending::<()>().await;
            }
            self.0.connections.set(self.0.connections.get() + 1);
            let (ours, theirs) = pair().await;
            tokio::task::spawn_local(application(self.0.clone(), self.1, name, theirs));
            Ok(Box::new(ours) as BoxIo)
        })
    }
}

async fn application(apps: Rc<Apps>, kind: App, name: String, mut io: TcpStream) {
    match kind {
        App::Tcp => {
            let mut text = String::new();
            io.read_to_string(&mut text).await.unwrap();
            io.write_all(format!("{text}, all of them").as_bytes()).await.unwrap();
        }
        App::Raw(text) => {
            io.readable().await.unwrap();
            let _ = io.read(&mut [0; 4096]).await;
            io.write_all(text.as_bytes()).await.unwrap();
        }
        App::Greeter => {
            io.write_all(b"220 x").await.unwrap();
            let _ = io.read_u8().await;
        }
        App::Http2 => {
            let service = service_fn(|request| answer(apps.clone(), name.clone(), request));
            let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                .serve_connection(TokioIo::new(io), service)
                .await;
        }
        App::Http1 => {
            let service = service_fn(|request| answer(apps.clone(), name.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades()
                .await;
        }
    }
}

async fn answer(
    apps: Rc<Apps>,
    name: String,
    mut request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    apps.requests.set(apps.requests.get() + 1);
    if apps.failing.get() > 0 {
        apps.failing.set(apps.failing.get() - 1);
        return Ok(Response::builder().status(503).body(Full::from("failing").boxed_unsync()).unwrap());
    }
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let mut response = Response::builder().header("x-app", &name);
    let told = |name: &str| name.starts_with("x-") || name == "host" || name.starts_with("trace");
    for (name, value) in request.headers().iter().filter(|(name, _)| told(name.as_str())) {
        response = response.header(format!("seen-{}", name.as_str().trim_start_matches("x-")), value);
    }
    if apps.hanging.get() > 0 {
        apps.hanging.set(apps.hanging.get() - 1);
        std::future::pending::<()>().await;
    }
    match path.as_str() {
        "/never" => std::future::pending::<()>().await,
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::task::spawn_local(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = io.read(&mut buffer).await {
                    io.write_all(&buffer[..count]).await.unwrap();
                }
            });
            let switch = response.status(101).header("connection", "upgrade").header("upgrade", "websocket");
            return Ok(switch.body(Full::default().boxed_unsync()).unwrap());
        }
        _ => {}
    }
    let head = format!("{name} {} {path} ", request.method());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(match path.as_str() {
        "/echo" => response.body(Full::from(body).boxed_unsync()).unwrap(),
        "/grpc" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "5".parse().unwrap());
            let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
            let stream = StreamBody::new(futures_util::stream::iter(frames));
            response.header("content-type", "application/grpc").body(BodyExt::boxed_unsync(stream)).unwrap()
        }
        _ => {
            let text = [head.as_bytes(), &body].concat();
            response.body(Full::from(text).boxed_unsync()).unwrap()
        }
    })
}

pub fn get(path: &str) -> http::request::Builder {
    Request::get(path).header("host", "web").header("traceparent", "00-aa-bb-01")
}

fn web() -> ServiceName {
    ServiceName::new("default", "web.default.svc.cluster.local")
}

pub fn weighted(subset: &str, weight: u32) -> WeightedDestination {
    WeightedDestination {
        service: web(),
        subset: Some(subset.into()),
        port: None,
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
    }
}

pub fn route(name: &str, destinations: Vec<WeightedDestination>) -> HttpRoute {
    HttpRoute {
        name: name.into(),
        matches: Vec::new(),
        action: RouteAction::Forward(destinations),
        rewrite: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retries: RetryPolicy { attempts: 0, ..RetryPolicy::default() },
        fault: Fault::default(),
    }
}

pub fn subset(version: &str) -> Subset {
    Subset {
        name: version.into(),
        labels: BTreeMap::from([("version".into(), version.into())]),
        traffic_policy: TrafficPolicy::default(),
    }
}

pub fn policy_deny_header(header: &str) -> L7Policy {
    L7Policy {
        key: PolicyName::new("default", "deny"),
        targets: vec![L7Target::Service(web())],
        action: PolicyAction::Deny,
        rules: vec![L7Rule {
            when: vec![L7Condition {
                key: ConditionKey::Header(header.into()),
                values: vec![StringMatch::Presence],
                not_values: vec![],
            }],
            ..L7Rule::default()
        }],
        dry_run: false,
    }
}

/// The waypoint under test.
pub struct Bench {
    publish: watch::Sender<Arc<Snapshot>>,
    routes: RefCell<ServiceRoutes>,
    apps: Rc<Apps>,
    worker: Rc<Worker>,
    registry: Registry,
    client:
        tokio::sync::Mutex<Option<hyper::client::conn::http1::SendRequest<UnsyncBoxBody<Bytes, Infallible>>>>,
}

impl Bench {
    pub fn new(edit: impl FnOnce(&mut ServiceRoutes)) -> Self {
        Self::with(AppProtocol::Http11, edit)
    }

    pub fn with(protocol: AppProtocol, edit: impl FnOnce(&mut ServiceRoutes)) -> Self {
        let app = if protocol == AppProtocol::Grpc { App::Http2 } else { App::Http1 };
        Self::with_app(protocol, app, edit)
    }

    pub fn with_app(protocol: AppProtocol, app: App, edit: impl FnOnce(&mut ServiceRoutes)) -> Self {
        let mut routes = ServiceRoutes {
            service: web(),
            protocols: BTreeMap::from([(80, protocol)]),
            origin: "VirtualService default/web".into(),
            http: Vec::new(),
            tcp: Vec::new(),
            traffic_policy: TrafficPolicy::default(),
            subsets: vec![subset("v1"), subset("v2")],
        };
        edit(&mut routes);
        let snapshot =
            Snapshot::of(world(protocol).into_iter().chain([Change::Routes(Arc::new(routes.clone()))]));
        let (publish, snapshots) = watch::channel(Arc::new(snapshot));
        let registry = Registry::new();
        let families = Families::register(&registry).unwrap();
        let apps = Rc::<Apps>::default();
        let own =
            Workload::new(WorkloadUid::pod("Kubernetes", "default", "waypoint-1"), "default", "waypoint-1");
        let me = Me { namespace: "default".into(), name: "waypoint".into(), workload: Arc::new(own) };
        let worker = Worker::new(
            me,
            snapshots,
            Rc::new(Loopback(apps.clone(), app)),
            families,
            LimitBook::default(),
            Default::default(),
        );
        Self { publish, routes: RefCell::new(routes), apps, worker, registry, client: Default::default() }
    }

    pub fn run(self, test: impl AsyncFnOnce(&Self)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { tokio::time::timeout(std::time::Duration::from_secs(60), test(&self)).await };
        tokio::task::LocalSet::new().block_on(&runtime, limited).unwrap();
    }

    pub fn resolve(&self, authority: &str) -> Result<Flow, Refusal> {
        let world = self.worker.world();
        let identity = Identity::new("cluster.local", "default", "client");
        let peer = Rc::new(Peer::new("10.0.0.9:4000".parse().unwrap(), identity, &world.snapshot));
        Flow::resolve(&world, peer, &authority.parse().unwrap())
    }

    /// A tunnel to the service.
    pub async fn raw(&self) -> TcpStream {
        let flow = self.resolve("10.96.0.1:80").unwrap();
        let (ours, theirs) = pair().await;
        tokio::task::spawn_local(serve(self.worker.clone(), flow, Box::new(theirs)));
        ours
    }

    pub async fn http2<B>(&self) -> hyper::client::conn::http2::SendRequest<B>
    where
        B: Body<Data = Bytes> + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (client, connection) =
            hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(self.raw().await))
                .await
                .unwrap();
        tokio::task::spawn_local(connection);
        client
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(get(path).body(http_body_util::Empty::new()).unwrap()).await
    }

    pub fn spawn_get(&self, path: &str) -> JoinHandle<()> {
        let flow = self.resolve("10.96.0.1:80").unwrap();
        let worker = self.worker.clone();
        let path = path.to_owned();
        tokio::task::spawn_local(async move {
            let (ours, theirs) = pair().await;
            tokio::task::spawn_local(serve(worker, flow, Box::new(theirs)));
            let (mut client, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
            let request = get(&path).body(http_body_util::Empty::<Bytes>::new()).unwrap();
            tokio::task::spawn_local(connection);
            if let Ok(response) = client.send_request(request).await {
                let _ = response.into_body().collect().await;
            }
        })
    }

    /// A client of its own with `count` requests one after the other; each must be answered with 200.
    pub fn spawn_load(&self, path: &str, count: u32) -> JoinHandle<()> {
        let flow = self.resolve("10.96.0.1:80").unwrap();
        let worker = self.worker.clone();
        let path = path.to_owned();
        tokio::task::spawn_local(async move {
            let (ours, theirs) = pair().await;
            tokio::task::spawn_local(serve(worker, flow, Box::new(theirs)));
            let (mut client, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
            tokio::task::spawn_local(connection);
            for _ in 0..count {
                let request = get(&path).body(http_body_util::Empty::<Bytes>::new()).unwrap();
                client.ready().await.unwrap();
                let response = client.send_request(request).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                response.into_body().collect().await.unwrap();
            }
        })
    }

    pub async fn send<B>(&self, request: Request<B>) -> Reply
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        self.send_raw(request, |_| {}).await
    }

    pub async fn send_raw<B>(&self, request: Request<B>, check: impl FnOnce(&[u8])) -> Reply
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let mut client = self.client.lock().await;
        if client.as_ref().is_none_or(|c| c.is_closed()) {
            let (fresh, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(self.raw().await)).await.unwrap();
            tokio::task::spawn_local(connection);
            *client = Some(fresh);
        }
        let client = client.as_mut().unwrap();
        client.ready().await.unwrap();
        let response = client.send_request(request.map(BodyExt::boxed_unsync)).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        check(&bytes);
        (parts.status, parts.headers, String::from_utf8_lossy(&bytes).into_owned())
    }

    fn publish(&self, change: Change) {
        self.publish.send_modify(|snapshot| {
            let mut next = (**snapshot).clone();
            next.apply([change]);
            *snapshot = Arc::new(next);
        });
    }

    pub fn put_routes(&self, edit: impl FnOnce(&mut ServiceRoutes)) {
        edit(&mut self.routes.borrow_mut());
        self.publish(Change::Routes(Arc::new(self.routes.borrow().clone())));
    }

    pub fn put_policy(&self, policy: L7Policy) {
        self.publish(Change::L7Policy(Arc::new(policy)));
    }

    pub fn remove_policy(&self, key: &PolicyName) {
        self.publish(Change::RemoveL7Policy(key.clone()));
    }

    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    pub fn fail_next(&self, count: u32) {
        self.apps.failing.set(count);
    }

    pub fn hang_next(&self, count: u32) {
        self.apps.hanging.set(count);
    }

    pub fn break_dials(&self, name: &str, broken: bool) {
        let mut set = self.apps.broken.borrow_mut();
        if broken {
            set.insert(name.to_owned())
        } else {
            set.remove(name)
        };
    }

    pub fn stall_dials(&self, stalled: bool) {
        self.apps.stalled.set(stalled);
    }

    pub fn upstream_connections(&self) -> u32 {
        self.apps.connections.get()
    }

    pub fn upstream_requests(&self) -> u32 {
        self.apps.requests.get()
    }

    pub async fn until_upstream_requests(&self, count: u32) {
        while self.upstream_requests() < count {
            tokio::task::yield_now().await;
        }
    }

    pub fn metrics(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    pub async fn until_metric(&self, wanted: &str) {
        while !self.metrics().contains(wanted) {
            tokio::task::yield_now().await;
        }
    }
}

fn world(protocol: AppProtocol) -> Vec<Change> {
    let waypoint = GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceName::new(
            "default",
            "waypoint.default.svc.cluster.local",
        )),
        hbone_port: 15008,
    };
    let client = WorkloadUid::pod("Kubernetes", "default", "client-1");
    let mut source = Workload::new(client.clone(), "default", "client-1");
    source.addresses = vec!["10.0.0.9".parse().unwrap()];
    source.service_account = "client".into();
    source.workload_name = "client".into();
    source.canonical_name = "client".into();
    let labels = BTreeMap::from([("app".into(), "client".into())]);
    let mut changes = vec![
        Change::Workload(Arc::new(source)),
        Change::Labels(Arc::new(WorkloadLabels { uid: client, labels })),
    ];
    let port = PortMapping { service_port: 80, target_port: 8080, app_protocol: protocol };
    for (key, vip, waypoint) in [
        (web(), "10.96.0.1/32", Some(waypoint)),
        (ServiceName::new("default", "other.default.svc.cluster.local"), "10.96.0.2/32", None),
    ] {
        let mut service = Service::new(key, "web");
        service.vips = vec![Vip { network: "".into(), range: vip.parse().unwrap() }];
        service.ports = vec![port];
        service.waypoint = waypoint;
        changes.push(Change::Service(Arc::new(service)));
    }
    for (index, version) in ["v1", "v2"].into_iter().enumerate() {
        let uid = WorkloadUid::pod("Kubernetes", "default", version);
        let mut workload = Workload::new(uid.clone(), "default", version);
        workload.addresses = vec![format!("10.1.0.{}", index + 1).parse().unwrap()];
        workload.services = BTreeMap::from([(web(), vec![port])]).into();
        changes.push(Change::Workload(Arc::new(workload)));
        let labels = BTreeMap::from([("version".into(), version.into())]);
        changes.push(Change::Labels(Arc::new(WorkloadLabels { uid, labels })));
    }
    changes
}
