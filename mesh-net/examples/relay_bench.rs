//! What the data path costs by itself: application → TCP → HBONE client → HBONE server → TCP →
//! application, over loopback in one process, one thread for each of the four parts.
//!
//! `cargo run --release -p mesh-net --example relay_bench -- [SECONDS] [IDLE FLOWS]`. The machine is
//! noisy: compare ratios to the direct path of the same run, and alternate runs of two builds.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::{Cell, RefCell},
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime},
};

use mesh_core::{hbone::Authority, identity::Identity, model::WorkloadUid, outcome::Reason};
use mesh_net::{
    ca::Issued,
    dial,
    hbone::{
        client::{Client, Head},
        pool::{Key, Pool},
        server::{self, Connect},
    },
    relay::{self, Counters},
    tls::WorkloadTls,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tokio_util::sync::CancellationToken;

/// Counts the bytes that are allocated, so that memory per flow can be told.
struct Counting;

static ALLOCATED: AtomicI64 = AtomicI64::new(0);

// SAFETY: everything is passed on to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MESSAGE: usize = 512;
const BLOCK: usize = 64 << 10;

/// What the server application does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Echo,
    Sink,
    Source,
}

const ROLES: [Role; 3] = [Role::Echo, Role::Sink, Role::Source];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(3);
    let idle = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(1000);
    let apps = thread(applications);
    let certificates = Arc::new(Certificates::new());
    let (server, client) = (certificates.clone(), certificates);
    let far = thread(move || far_end(server));
    let targets = apps.clone();
    let meshed = thread(move || near_end(client, far, targets));
    let measure = async move {
        for (name, ends) in [("direct", &apps), ("tunnel", &meshed)] {
            report(name, ends, Duration::from_secs(seconds)).await;
        }
        idle_memory(&meshed, idle).await;
    };
    block_on(measure);
}

async fn report(name: &str, ends: &[SocketAddr], time: Duration) {
    let up = bulk(ends[1], true, time).await;
    let down = bulk(ends[2], false, time).await;
    let (one, p50, p99) = requests(ends[0], 1, time).await;
    let (many, ..) = requests(ends[0], 32, time).await;
    let flows = new_flows(ends[0], 16, time).await;
    println!(
        "{name}: {up:.2} Gb/s up, {down:.2} Gb/s down; 1 connection {one:.0} req/s, p50 {p50:.0} µs, \
         p99 {p99:.0} µs; 32 connections {many:.0} req/s; {flows:.0} new flows/s"
    );
}

async fn bulk(to: SocketAddr, up: bool, time: Duration) -> f64 {
    let mut tcp = connect(to).await;
    let (begun, mut moved, mut block) = (Instant::now(), 0_usize, vec![7_u8; BLOCK]);
    while begun.elapsed() < time {
        moved += if up { tcp.write(&block).await.unwrap() } else { tcp.read(&mut block).await.unwrap() };
    }
    moved as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
}

/// Requests per second, and the median and 99th percentile in microseconds.
async fn requests(to: SocketAddr, connections: usize, time: Duration) -> (f64, f64, f64) {
    let end = Instant::now() + time;
    let times = Rc::new(RefCell::new(Vec::new()));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let times = times.clone();
            spawn_local(async move {
                let mut tcp = connect(to).await;
                while Instant::now() < end {
                    let took = exchange(&mut tcp).await;
                    times.borrow_mut().push(took);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut times = times.take();
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
    (times.len() as f64 / time.as_secs_f64(), at(50), at(99))
}

async fn new_flows(to: SocketAddr, workers: usize, time: Duration) -> f64 {
    let end = Instant::now() + time;
    let count = Rc::new(Cell::new(0_u32));
    let tasks: Vec<_> = (0..workers)
        .map(|_| {
            let count = count.clone();
            spawn_local(async move {
                while Instant::now() < end {
                    exchange(&mut connect(to).await).await;
                    count.set(count.get() + 1);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    f64::from(count.get()) / time.as_secs_f64()
}

async fn idle_memory(ends: &[SocketAddr], flows: usize) {
    let before = (ALLOCATED.load(Ordering::Relaxed), resident());
    let mut open = Vec::with_capacity(flows);
    for _ in 0..flows {
        let mut tcp = connect(ends[0]).await;
        exchange(&mut tcp).await;
        open.push(tcp);
    }
    let per = |after: i64, before: i64| (after - before) / flows as i64;
    println!(
        "{flows} idle flows that moved a message: {} bytes of heap and {} bytes resident each, for both \
         ends of the tunnel and both applications",
        per(ALLOCATED.load(Ordering::Relaxed), before.0),
        per(resident(), before.1),
    );
}

fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

async fn connect(to: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(to).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

async fn exchange(tcp: &mut TcpStream) -> Duration {
    let mut message = [1; MESSAGE];
    let begun = Instant::now();
    tcp.write_all(&message).await.unwrap();
    tcp.read_exact(&mut message).await.unwrap();
    begun.elapsed()
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work);
}

/// Runs a part on a thread of its own and waits for its listeners.
fn thread(part: impl FnOnce() -> Part + Send + 'static) -> Vec<SocketAddr> {
    let (say, hear) = mpsc::channel();
    std::thread::spawn(move || {
        block_on(async move {
            say.send(part().await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    hear.recv().unwrap()
}

type Part = std::pin::Pin<Box<dyn Future<Output = Vec<SocketAddr>>>>;

async fn bind(count: usize) -> (Vec<SocketAddr>, Vec<TcpListener>) {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    }
    (listeners.iter().map(|l| l.local_addr().unwrap()).collect(), listeners)
}

fn applications() -> Part {
    Box::pin(async {
        let (addresses, listeners) = bind(ROLES.len()).await;
        for (role, listener) in ROLES.into_iter().zip(listeners) {
            spawn_local(async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    tcp.set_nodelay(true).unwrap();
                    spawn_local(application(role, tcp));
                }
            });
        }
        addresses
    })
}

async fn application(role: Role, mut tcp: TcpStream) {
    let mut message = [0; MESSAGE];
    match role {
        Role::Echo => {
            while tcp.read_exact(&mut message).await.is_ok() {
                tcp.write_all(&message).await.unwrap();
            }
        }
        Role::Sink => {
            let mut block = vec![0; BLOCK];
            while tcp.read(&mut block).await.is_ok_and(|count| count > 0) {}
        }
        Role::Source => {
            let block = vec![0; BLOCK];
            while tcp.write_all(&block).await.is_ok() {}
        }
    }
}

fn far_end(certificates: Arc<Certificates>) -> Part {
    Box::pin(async move {
        let (addresses, mut listeners) = bind(1).await;
        let (tls, listener) = (certificates.tls("server"), listeners.remove(0));
        spawn_local(async move {
            loop {
                let (tcp, peer) = listener.accept().await.unwrap();
                dial::prepare(&tcp).unwrap();
                let acceptor = tls.acceptor();
                let drain = CancellationToken::new();
                spawn_local(async move {
                    let _ = server::serve(tcp, peer, &acceptor, drain, to_application).await;
                });
            }
        });
        addresses
    })
}

async fn to_application(connect: Connect) {
    let Authority::Address(address) = connect.authority else { return };
    let tcp = TcpStream::connect(address).await.unwrap();
    dial::prepare(&tcp).unwrap();
    let stream = connect.accept(None).unwrap();
    let counters = Counters::default();
    let _ = relay::tunnel(tcp, stream, &counters, Reason::UpstreamReset, Reason::ClientReset).await;
}

fn near_end(certificates: Arc<Certificates>, far: Vec<SocketAddr>, targets: Vec<SocketAddr>) -> Part {
    Box::pin(async move {
        let (addresses, listeners) = bind(targets.len()).await;
        let near = Rc::new((certificates.tls("client"), Pool::default(), far[0]));
        for (target, listener) in targets.into_iter().zip(listeners) {
            let near = near.clone();
            spawn_local(async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let near = near.clone();
                    spawn_local(async move { carry(&near, tcp, target).await });
                }
            });
        }
        addresses
    })
}

async fn carry((tls, pool, far): &(WorkloadTls, Pool, SocketAddr), tcp: TcpStream, target: SocketAddr) {
    dial::prepare(&tcp).unwrap();
    let key = Key {
        source: id("client"),
        from: far.ip(),
        peer: WorkloadUid::new("server"),
        expected: vec![id("server")],
        address: *far,
    };
    let connector = tls.connector(&key.expected).unwrap();
    let dial = || async {
        let tcp = TcpStream::connect(*far).await.unwrap();
        dial::prepare(&tcp).unwrap();
        Client::handshake(tcp, *far, &connector).await
    };
    let stream = pool.open(key, &Authority::Address(target), Head::default(), dial).await.unwrap();
    let counters = Counters::default();
    let _ = relay::tunnel(tcp, stream, &counters, Reason::ClientReset, Reason::UpstreamReset).await;
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

/// A certificate authority for this run.
struct Certificates(Issuer<'static, KeyPair>, rustls_pki_types::CertificateDer<'static>);

impl Certificates {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self(Issuer::new(params, key), root)
    }

    fn tls(&self, name: &str) -> WorkloadTls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(id(name).to_string().try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let issued = Issued {
            identity: id(name),
            chain: vec![leaf.der().clone()],
            roots: vec![self.1.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before: SystemTime::now(),
            not_after: SystemTime::now() + Duration::from_secs(3600),
        };
        WorkloadTls::new(&issued).unwrap()
    }
}
