//! The kernel programs on the real kernel: namespaces joined by veth, real sockets, real links.
//!
//! Topology: pod `a` — node `n` — pod `b`; `n` forwards. The test process joins a cgroup of its own, to
//! which the programs are attached, so every socket made here is seen by them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics, so that the line number survives"
)]

mod full;
mod oracle;
mod untouched;
mod versions;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use agent::{
    bpf::{Bpf, BpfConfig, Pod, PodState, StatsSwitch, key_of},
    cgroup, netns,
};
use agent_common::event::{FlowEvent, LEG_AGENT, LEG_BYPASS, LEG_CAPTURED};
use mesh_core::error::chain;
use socket2::{Domain, Protocol, Socket, Type};

const A4: &str = "10.77.1.2";
const A6: &str = "fd77:1::2";
const N4: &str = "10.77.1.1";
const N6: &str = "fd77:1::1";
/// Of each family: pod a's address, and the node's next to it.
const FAMILIES: [(&str, &str); 2] = [(A4, N4), (A6, N6)];
const TIMEOUT: Duration = Duration::from_secs(5);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Three namespaces and a cgroup; everything is removed when it is dropped, and what a killed run left
/// behind when the next one starts.
struct World {
    id: String,
    group: PathBuf,
    parent: PathBuf,
    a: File,
    b: File,
    n: File,
    _turn: MutexGuard<'static, ()>,
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip starts");
    assert!(status.success(), "ip {args}");
}

fn remove_leftovers(parent: &Path) {
    let ours =
        |name: &str| name.strip_prefix("cvk").and_then(|rest| rest.split('x').next()?.parse::<u32>().ok());
    let gone = |name: &str| ours(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if gone(&name) {
            Command::new("ip").args(["netns", "del", &name]).status().ok();
        }
    }
    for dir in [parent.to_path_buf(), bpffs().join("culvert")] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if gone(&entry.file_name().to_string_lossy()) {
                fs::remove_dir(entry.path()).or_else(|_| fs::remove_dir_all(entry.path())).ok();
            }
        }
    }
}

fn bpffs() -> PathBuf {
    "/sys/fs/bpf".into()
}

/// The world, or none with a printed reason when this machine cannot have one.
fn world(test: &str) -> Option<World> {
    #[allow(clippy::disallowed_methods, reason = "tests read what the runner requires")]
    let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("root");
    if !nix::unistd::geteuid().is_root() {
        assert!(!required, "{test} must run here, but this is not root");
        println!("SKIP {test}: needs root");
        return None;
    }
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let parent = cgroup::v2_mount().unwrap();
    remove_leftovers(&parent);
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("cvk{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let group = parent.join(&id);
    fs::create_dir_all(&group).unwrap();
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    for ns in ["a", "b", "n"] {
        ip(&format!("netns add {id}{ns}"));
        // A link-local address that is still being checked cannot ask for a neighbour.
        let namespace = File::open(format!("/run/netns/{id}{ns}")).unwrap();
        netns::within(&namespace, || fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")).unwrap();
        ip(&format!("-n {id}{ns} link set lo up"));
    }
    for (pod, net) in [("a", 1), ("b", 2)] {
        ip(&format!("-n {id}{pod} link add eth0 type veth peer name pod-{pod} netns {id}n"));
        for (ns, dev, host) in [(pod, "eth0", 2), ("n", &*format!("pod-{pod}"), 1)] {
            ip(&format!("-n {id}{ns} addr add 10.77.{net}.{host}/24 dev {dev}"));
            ip(&format!("-n {id}{ns} addr add fd77:{net}::{host}/64 dev {dev} nodad"));
            ip(&format!("-n {id}{ns} link set {dev} up"));
        }
        ip(&format!("-n {id}{pod} route add default via 10.77.{net}.1"));
        ip(&format!("-n {id}{pod} -6 route add default via fd77:{net}::1"));
    }
    let open = |ns: &str| File::open(format!("/run/netns/{id}{ns}")).unwrap();
    let world =
        World { a: open("a"), b: open("b"), n: open("n"), id: id.clone(), group, parent, _turn: turn };
    let forwarding = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];
    netns::within(&world.n, || forwarding.iter().try_for_each(|switch| fs::write(switch, "1"))).unwrap();
    Some(world)
}

impl Drop for World {
    fn drop(&mut self) {
        fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string()).ok();
        fs::remove_dir_all(bpffs().join("culvert").join(&self.id)).ok();
        for ns in ["a", "b", "n"] {
            Command::new("ip").args(["netns", "del", &format!("{}{ns}", self.id)]).status().ok();
        }
        let deadline = Instant::now() + TIMEOUT;
        while fs::remove_dir(&self.group).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

impl World {
    fn load(&self, host: bool, capacities: &[(&'static str, u32)]) -> Bpf {
        self.load_with(host, capacities, false)
    }

    fn load_with(&self, host: bool, capacities: &[(&'static str, u32)], debug: bool) -> Bpf {
        let host_netns = if host { netns::cookie(&self.n).unwrap() } else { 0 };
        Bpf::load(&BpfConfig {
            debug,
            node: self.id.clone(),
            cgroup: self.group.clone(),
            bpffs: bpffs(),
            host_netns,
            capacities: capacities.iter().copied().collect::<HashMap<_, _>>(),
        })
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    fn pod_a(&self, state: PodState) -> Pod {
        Pod {
            netns: netns::cookie(&self.a).unwrap(),
            v4: A4.parse().ok(),
            v6: A6.parse().ok(),
            state,
            epoch: 1,
        }
    }
}

/// An address and a port as `dial` takes them.
fn at(host: &str, port: u16) -> String {
    SocketAddr::new(host.parse().unwrap(), port).to_string()
}

fn listen(ns: &File, port: u16) -> TcpListener {
    netns::within(ns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap()
}

fn dial(ns: &File, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    netns::within(ns, || TcpStream::connect_timeout(&to, TIMEOUT))
}

/// Dials through an IPv6 socket, as Java and Go do for IPv4 destinations.
fn dial_mapped(ns: &File, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let IpAddr::V4(v4) = to.ip() else { panic!("an IPv4 destination") };
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), to.port());
    netns::within(ns, || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.connect_timeout(&mapped.into(), TIMEOUT)?;
        Ok(socket.into())
    })
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).unwrap();
                return (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            }
            Err(_) if Instant::now() < deadline => std::thread::yield_now(),
            Err(error) => panic!("nothing arrived: {error}"),
        }
    }
}

fn nothing_waits(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a connection arrived where none may");
}

fn says(mut stream: TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

fn hears(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn count(bpf: &Bpf, site: &str) -> u64 {
    bpf.maps.counters().unwrap().into_iter().find(|(label, _)| *label == site).unwrap().1
}

/// The events that have come when one of them is as asked.
fn events_until(bpf: &Bpf, is_so: impl Fn(&FlowEvent) -> bool) -> Vec<FlowEvent> {
    let mut events = Vec::new();
    eventually("the flow is reported", || {
        events.extend(bpf.maps.take_events().unwrap());
        events.iter().any(&is_so)
    });
    events
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_captured_connection_reaches_the_agent_with_its_original_destination() {
    let Some(world) = world("capture") else { return };
    let bpf = world.load(false, &[]);
    let pod = world.pod_a(PodState::Active);
    bpf.maps.set_pod(&pod).unwrap();
    let listener = listen(&world.a, 15001);
    type Dial = fn(&File, &str) -> io::Result<TcpStream>;
    let cases: [(Dial, &str); 3] =
        [(dial, "10.99.0.9:80"), (dial, "[fd99::9]:81"), (dial_mapped, "10.99.0.9:82")];
    for (dial, destination) in cases {
        let client = dial(&world.a, destination).unwrap();
        let (server, peer) = accept(&listener);
        let seen = client.peer_addr().unwrap();
        assert_eq!(SocketAddr::new(seen.ip().to_canonical(), seen.port()), destination.parse().unwrap());
        let original = bpf.maps.take_original(pod.netns, peer).unwrap();
        assert_eq!(original, Some(destination.parse().unwrap()));
        assert_eq!(bpf.maps.take_original(pod.netns, peer).unwrap(), None, "taken once");
        drop((client, server));
        let asked: SocketAddr = destination.parse().unwrap();
        let events = events_until(&bpf, |event| event.leg == LEG_CAPTURED);
        let event = events.iter().find(|event| event.leg == LEG_CAPTURED).unwrap();
        assert_eq!((event.remote, event.remote_port), (key_of(asked.ip()), asked.port()), "{event:?}");
    }
    assert_eq!(count(&bpf, "captured"), 3);
    eventually("no entry stays behind", || bpf.maps.socket_entries().unwrap() == 0);
}

#[test]
fn what_is_not_enrolled_is_not_touched() {
    let Some(world) = world("untouched") else { return };
    let bpf = world.load(true, &[]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let listener = listen(&world.n, 0);
    let port = listener.local_addr().unwrap().port();
    let client = dial(&world.b, &format!("10.77.2.1:{port}")).unwrap();
    let (_, peer) = accept(&listener);
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!((count(&bpf, "captured"), count(&bpf, "bypass")), (0, 0));
}

#[test]
fn a_blocked_pod_is_refused_at_once_and_an_active_one_is_not() {
    let Some(world) = world("blocked") else { return };
    let bpf = world.load(false, &[]);
    let outside = listen(&world.n, 0);
    let port = outside.local_addr().unwrap().port();
    for (_, node) in FAMILIES {
        let (to, before) = (at(node, port), count(&bpf, "blocked"));
        bpf.maps.set_pod(&world.pod_a(PodState::Blocked)).unwrap();
        assert_eq!(dial(&world.a, &to).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        nothing_waits(&outside);
        assert_eq!(count(&bpf, "blocked"), before + 1);
        bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
        let listener = listen(&world.a, 15001);
        let _client = dial(&world.a, &to).unwrap();
        accept(&listener);
        nothing_waits(&outside);
        bpf.maps.remove_pod(&world.pod_a(PodState::Active)).unwrap();
        let _left = dial(&world.a, &to).unwrap();
        accept(&outside);
    }
}

#[test]
fn a_family_that_the_pod_has_no_address_of_is_refused_and_counted() {
    let Some(world) = world("no family") else { return };
    let bpf = world.load(false, &[]);
    let outside = listen(&world.n, 0);
    let port = outside.local_addr().unwrap().port();
    let agent = listen(&world.a, 15001);
    for state in [PodState::Blocked, PodState::Active] {
        for (without, node) in [("v4", N4), ("v6", N6)] {
            let mut pod = world.pod_a(state);
            match without {
                "v4" => pod.v4 = None,
                _ => pod.v6 = None,
            }
            bpf.maps.set_pod(&pod).unwrap();
            let before = count(&bpf, "no_family");
            let refused = dial(&world.a, &at(node, port)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{without}");
            assert_eq!(count(&bpf, "no_family"), before + 1, "{without}");
        }
    }
    nothing_waits(&outside);
    nothing_waits(&agent);
}

#[test]
fn a_connection_that_met_the_bound_listener_of_a_blocked_pod_keeps_its_destination() {
    let Some(world) = world("waiting") else { return };
    let bpf = world.load(false, &[]);
    let pod = world.pod_a(PodState::Blocked);
    bpf.maps.set_pod(&pod).unwrap();
    let refused = dial(&world.a, "10.99.0.9:80").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    eventually("a refusal leaves nothing behind", || bpf.maps.socket_entries().unwrap() == 0);
    let listener = listen(&world.a, 15001);
    let client = dial(&world.a, "10.99.0.9:80").unwrap();
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let (_server, peer) = accept(&listener);
    assert_eq!(bpf.maps.take_original(pod.netns, peer).unwrap(), "10.99.0.9:80".parse().ok());
    assert_eq!(client.peer_addr().unwrap(), "10.99.0.9:80".parse().unwrap());
}

/// Keeps what is logged.
struct Heard(Mutex<Vec<String>>);

static HEARD: Heard = Heard(Mutex::new(Vec::new()));

impl log::Log for Heard {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(format!("{} {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn the_programs_say_what_they_decide_when_they_are_asked_to_and_nothing_otherwise() {
    let Some(world) = world("kernel log") else { return };
    log::set_logger(&HEARD).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let listener = listen(&world.a, 15001);
    let mut replaced = None;
    for debug in [false, true] {
        let bpf = world.load_with(false, &[], debug);
        bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
        let _client = dial(&world.a, "10.99.0.9:80").unwrap();
        accept(&listener);
        let log = bpf.kernel_log();
        assert_eq!(log.is_some(), debug);
        log.into_iter().for_each(|mut log| log.flush());
        let heard = std::mem::take(&mut *HEARD.0.lock().unwrap());
        let wanted = "agent_ebpf::connect connect ::ffff:10.99.0.9 port 80: to the agent";
        assert_eq!(heard.iter().any(|line| line == wanted), debug, "{heard:?}");
        let links = pinned_links(&world);
        assert!(replaced.is_none_or(|before| before != links), "the switch replaces the programs");
        replaced = Some(links);
    }
}

#[test]
fn the_agents_own_sockets_are_never_captured_and_are_forgotten_when_closed() {
    let Some(world) = world("own sockets") else { return };
    let bpf = world.load(false, &[]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let outside = listen(&world.n, 0);
    let to: SocketAddr = format!("{N4}:{}", outside.local_addr().unwrap().port()).parse().unwrap();
    let socket = netns::within(&world.a, || Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    bpf.maps.own_socket(netns::socket_cookie(&socket).unwrap()).unwrap();
    socket.connect_timeout(&to.into(), TIMEOUT).unwrap();
    let (server, _) = accept(&outside);
    says(server, "hello");
    assert_eq!(hears(socket.into()), "hello");
    eventually("the socket is forgotten", || bpf.maps.socket_entries().unwrap() == 0);
    let legs: Vec<u32> = bpf.maps.take_events().unwrap().iter().map(|event| event.leg).collect();
    assert!(legs.contains(&LEG_AGENT), "{legs:?}");
}

#[test]
fn loopback_and_the_pods_own_address_stay_inside_the_pod() {
    let Some(world) = world("loopback") else { return };
    let bpf = world.load(false, &[]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    bpf.attach_pod(world.pod_a(PodState::Active).netns, &world.a).unwrap();
    let app = listen(&world.a, 0);
    let port = app.local_addr().unwrap().port();
    for host in ["127.0.0.1", "[::1]", A4, "[fd77:1::2]"] {
        let _client = dial(&world.a, &format!("{host}:{port}")).unwrap();
        accept(&app);
    }
    assert_eq!(count(&bpf, "captured"), 0);
}

#[test]
fn bypass_needs_complete_ranges_and_a_destination_outside_them() {
    let Some(world) = world("bypass") else { return };
    let bpf = world.load(false, &[]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let (agent, outside) = (listen(&world.a, 15001), listen(&world.n, 0));
    let port = outside.local_addr().unwrap().port();
    let mesh = [("10.99.0.0".parse().unwrap(), 16), ("fd99::".parse().unwrap(), 32)];
    for (node, inside) in [(N4, "10.99.3.4"), (N6, "fd99::7")] {
        let to = at(node, port);
        let before = (count(&bpf, "captured"), count(&bpf, "bypass"));
        bpf.maps.sync_mesh(&mesh, &[], false, 1).unwrap();
        let _incomplete = dial(&world.a, &to).unwrap();
        accept(&agent);
        bpf.maps.sync_mesh(&[], &[], true, 2).unwrap();
        let client = dial(&world.a, &to).unwrap();
        let (server, _) = accept(&outside);
        says(server, "outside");
        assert_eq!(hears(client), "outside");
        let _inside = dial(&world.a, &at(inside, 80)).unwrap();
        accept(&agent);
        assert_eq!((count(&bpf, "captured"), count(&bpf, "bypass")), (before.0 + 2, before.1 + 1));
        let events = events_until(&bpf, |event| event.leg == LEG_BYPASS);
        let event = events.iter().find(|event| event.leg == LEG_BYPASS).unwrap();
        assert_eq!(event.netns, world.pod_a(PodState::Active).netns);
        assert_eq!((event.remote, event.remote_port), (key_of(node.parse().unwrap()), port));
        assert!((7..=8).contains(&event.bytes_received), "seven bytes, and the FIN counts as one: {event:?}");
        assert!(event.srtt_us > 0 && event.connect_us > 0, "{event:?}");
    }
}

#[test]
fn inbound_traffic_goes_to_the_agent_whatever_its_port() {
    let Some(world) = world("inbound") else { return };
    let bpf = world.load(true, &[]);
    let pod = world.pod_a(PodState::Active);
    let (hbone, plaintext) = (listen(&world.a, 15008), listen(&world.a, 15006));
    let app = listen(&world.a, 8080);
    bpf.maps.set_listeners(pod.netns, &hbone, &plaintext).unwrap();
    bpf.attach_pod(pod.netns, &world.a).unwrap();
    let _unenrolled = dial(&world.b, &format!("{A4}:8080")).unwrap();
    accept(&app);

    for (own, _) in FAMILIES {
        bpf.maps.set_pod(&pod).unwrap();
        for port in [8080, 9, 31_999] {
            let _client = dial(&world.b, &at(own, port)).unwrap();
            let (server, _) = accept(&plaintext);
            let reached = server.local_addr().unwrap();
            assert_eq!(
                (reached.ip().to_canonical(), reached.port()),
                (own.parse().unwrap(), port),
                "the socket's own address is the original destination"
            );
        }
        let _tunnel = dial(&world.b, &at(own, 15008)).unwrap();
        accept(&hbone);
        for port in [15001, 15006] {
            assert!(dial(&world.b, &at(own, port)).is_err(), "{port} is not reachable from outside");
        }
        nothing_waits(&app);

        bpf.maps.set_pod(&world.pod_a(PodState::Blocked)).unwrap();
        assert!(dial(&world.b, &at(own, 8080)).is_err());
        nothing_waits(&app);
    }
}

#[test]
fn the_agents_dial_to_the_application_with_a_foreign_source_passes_inbound_capture() {
    let Some(world) = world("transparent dial") else { return };
    let bpf = world.load(false, &[]);
    let pod = world.pod_a(PodState::Active);
    let (hbone, plaintext) = (listen(&world.a, 15008), listen(&world.a, 15006));
    bpf.maps.set_listeners(pod.netns, &hbone, &plaintext).unwrap();
    bpf.attach_pod(pod.netns, &world.a).unwrap();
    bpf.maps.set_pod(&pod).unwrap();
    let app = listen(&world.a, 8080);
    for own in [A4, A6] {
        let to = SocketAddr::new(own.parse().unwrap(), 8080);
        let socket =
            netns::within(&world.a, || Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap();
        bpf.maps.own_socket(netns::socket_cookie(&socket).unwrap()).unwrap();
        socket.connect_timeout(&to.into(), TIMEOUT).unwrap();
        accept(&app);
    }
    nothing_waits(&plaintext);
}

#[test]
fn the_nodes_own_probes_reach_the_application_and_another_pod_does_not() {
    let Some(world) = world("probes") else { return };
    let bpf = world.load(true, &[]);
    let pod = world.pod_a(PodState::Active);
    let (hbone, plaintext) = (listen(&world.a, 15008), listen(&world.a, 15006));
    let app = listen(&world.a, 8080);
    bpf.maps.set_listeners(pod.netns, &hbone, &plaintext).unwrap();
    bpf.attach_pod(pod.netns, &world.a).unwrap();
    bpf.maps.set_pod(&pod).unwrap();
    for (own, _) in FAMILIES {
        let before = count(&bpf, "probe");
        let _probe = dial(&world.n, &at(own, 8080)).unwrap();
        accept(&app);
        assert_eq!(count(&bpf, "probe"), before + 1);
        let _pod = dial(&world.b, &at(own, 8080)).unwrap();
        accept(&plaintext);
        nothing_waits(&app);
        bpf.maps.set_pod(&world.pod_a(PodState::Blocked)).unwrap();
        let _probed_while_blocked = dial(&world.n, &at(own, 8080)).unwrap();
        accept(&app);
        bpf.maps.set_pod(&pod).unwrap();
    }
    eventually("no entry stays behind", || bpf.maps.socket_entries().unwrap() == 0);
}

#[test]
fn capture_outlives_the_agent_and_the_next_one_adopts_it() {
    let Some(world) = world("adoption") else { return };
    let pod = world.pod_a(PodState::Active);
    let outside = listen(&world.n, 0);
    let to = format!("{N4}:{}", outside.local_addr().unwrap().port());
    let first = world.load(false, &[]);
    first.maps.set_pod(&pod).unwrap();
    first.attach_pod(pod.netns, &world.a).unwrap();
    let links = pinned_links(&world);
    drop(first);
    assert_eq!(
        dial(&world.a, &to).unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused,
        "captured with nobody there"
    );
    nothing_waits(&outside);

    let second = world.load(false, &[]);
    assert_eq!(second.maps.pods().unwrap(), std::slice::from_ref(&pod), "the pods are still known");
    second.attach_pod(pod.netns, &world.a).unwrap();
    assert_eq!(pinned_links(&world), links, "the same links, one for each hook");
    assert_eq!(links.len(), 7);
    let agent = listen(&world.a, 15001);
    let _client = dial(&world.a, &to).unwrap();
    let (_server, peer) = accept(&agent);
    assert_eq!(second.maps.take_original(pod.netns, peer).unwrap(), to.parse().ok());

    second.remove_all().unwrap();
    // Programs end some time after their pins; the agent's listener is still there.
    eventually("capture ends", || {
        let _direct = dial(&world.a, &to).unwrap();
        outside.set_nonblocking(true).unwrap();
        outside.accept().is_ok()
    });
}

#[test]
fn a_new_object_takes_over_inbound_capture_without_a_gap() {
    let Some(world) = world("object change") else { return };
    let pod = world.pod_a(PodState::Active);
    let app = listen(&world.a, 8080);
    let first = world.load(false, &[]);
    first.maps.set_pod(&pod).unwrap();
    first.attach_pod(pod.netns, &world.a).unwrap();
    drop(first);
    // Links of another object: the same ones under another digest.
    let links =
        bpffs().join("culvert").join(&world.id).join(format!("v{}", agent_common::ABI_VERSION)).join("links");
    let ours = fs::read_dir(&links).unwrap().next().unwrap().unwrap().path();
    fs::rename(&ours, links.join("0123456789abcdef")).unwrap();

    let second = world.load(false, &[]);
    assert!(dial(&world.b, &format!("{A4}:8080")).is_err(), "the old link still captures");
    second.attach_pod(pod.netns, &world.a).unwrap();
    assert!(dial(&world.b, &format!("{A4}:8080")).is_err(), "and so does the new one");
    nothing_waits(&app);
    assert!(!links.join("0123456789abcdef").join(format!("pod_{}", pod.netns)).exists());
    assert_eq!(pinned_links(&world).len(), 7);
}

#[test]
fn a_multipath_connection_is_captured_and_forgotten() {
    let Some(world) = world("mptcp") else { return };
    let bpf = world.load(false, &[]);
    let pod = world.pod_a(PodState::Active);
    bpf.maps.set_pod(&pod).unwrap();
    let agent = listen(&world.a, 15001);
    let made = netns::within(&world.a, || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(262))));
    let Ok(socket) = made else {
        println!("SKIP a_multipath_connection_is_captured_and_forgotten: no MPTCP in this kernel");
        return;
    };
    let to: SocketAddr = "10.99.0.9:80".parse().unwrap();
    socket.connect(&to.into()).unwrap();
    let (server, peer) = accept(&agent);
    assert_eq!(bpf.maps.take_original(pod.netns, peer).unwrap(), Some(to));
    drop((socket, server));
    eventually("no entry stays behind", || bpf.maps.socket_entries().unwrap() == 0);
}

#[test]
fn programs_report_their_runs_and_tables_their_fill() {
    let Some(world) = world("figures") else { return };
    let bpf = world.load(false, &[("ORIG", 64)]);
    let _switch = StatsSwitch::on().unwrap();
    let pod = world.pod_a(PodState::Active);
    bpf.maps.set_pod(&pod).unwrap();
    bpf.attach_pod(pod.netns, &world.a).unwrap();
    let _agent = listen(&world.a, 15001);
    let _client = dial(&world.a, "10.99.0.9:80").unwrap();
    let stats = bpf.program_stats().unwrap();
    let connect = stats.iter().find(|program| program.name == "culvert_connect").unwrap();
    assert!(connect.runs > 0 && !connect.time.is_zero(), "{connect:?}");
    for program in &stats {
        println!("{program:?}");
    }
    let fill = bpf.maps.fill().unwrap();
    let of = |name: &str| {
        let table = fill.iter().find(|table| table.map == name).unwrap();
        (table.entries, table.capacity)
    };
    assert_eq!(of("ORIG"), (1, 64));
    assert_eq!((of("PODS").0, of("POD_IPS").0, of("FLOW_DST").0), (1, 2, 1));
    assert_eq!(of("SOCKS").0, 2, "both ends of the connection are in the pod");
    for spec in agent_common::maps::MAPS {
        if !["CONFIG", "COUNTERS", "EVENTS", "ORIG"].contains(&spec.name) {
            assert_eq!(of(spec.name).1, spec.capacity, "{}", spec.name);
        }
    }
}

/// Link ids by pin name.
fn pinned_links(world: &World) -> Vec<(String, u32)> {
    let dir =
        bpffs().join("culvert").join(&world.id).join(format!("v{}", agent_common::ABI_VERSION)).join("links");
    let object = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let mut links: Vec<(String, u32)> = fs::read_dir(object)
        .unwrap()
        .flatten()
        .map(|entry| {
            let link = aya::programs::links::PinnedLink::from_pin(entry.path()).unwrap();
            let link: aya::programs::links::FdLink = link.into();
            let id = link.info().unwrap().id();
            (entry.file_name().to_string_lossy().into_owned(), id)
        })
        .collect();
    links.sort();
    links
}
