//! The ten steps. Each returns its evidence, or fails with the check that did not hold.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    load::{self, Mode},
    process::{Place, Process},
    runner, wait,
    world::CONTROL_PORT,
};
use serde_json::{Value, json};

use crate::stage::{Stage, example};

/// A step of the story.
pub type Step = fn(&mut Stage) -> Result<Value>;

/// All steps in order.
pub const ALL: &[(&str, Step)] = &[
    ("1 pods talk unmeshed, untouched", unmeshed),
    ("2 the label enrols running pods, an open connection stays open", enrol),
    ("3 between the nodes: TLS on 15008 only", wire),
    ("4 the application sees the client's own address", address),
    ("5 the tutorial's canary: 50/50, then 90/10 through a waypoint", canary),
    ("6 edits take effect without a failed request", edits),
    ("7 a policy denies one client and says why", policy),
    ("8 a killed agent: refused, never plaintext", killed),
    ("9 Prometheus's own answers", prometheus),
    ("10 with and without the mesh", summary),
];

const ROUTING: &str = "routing.yaml";
const LIMIT: Duration = Duration::from_secs(20);

fn unmeshed(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let url = format!("http://{}/", web.ip);
    let seen = stage.captured("unmeshed", || client.exec(&["curl", "-sSf", &url]).map(drop))?;
    ensure!(seen.contains("Full Cycle"), "the page is not readable on the wire");
    ensure!(seen.packets_of_port(15008) == 0, "something used the tunnel");
    Ok(json!({"readable_on_the_wire": true, "packets_on_80": seen.packets_of_port(80)}))
}

fn enrol(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    // Far more than what curl reads before it first looks at its limit.
    let size = 16 << 20;
    let home = stage.world.root.join("pods").join(format!("{}.{}", web.namespace, web.name));
    fs::write(home.join("html/slow"), vec![b'x'; size])?;
    let (log, got) = (stage.world.root.join("logs/open-connection.log"), stage.world.root.join("slow"));
    let mut curl = client.command("curl")?;
    curl.args(["-sS", "-N", "--limit-rate", "5M", "-w", "%{size_download} %{http_code}", "-o"]).arg(&got);
    let mut open = Process::spawn(curl.arg(format!("http://{}/slow", web.ip)), &log)?;
    wait::until(LIMIT, "the download to begin", || {
        fs::metadata(&got).is_ok_and(|file| file.len() > 0).then_some(())
    })?;
    let served = || stage.world.running.values().map(Process::pid).collect::<Vec<_>>();
    let (before, start) = (served(), Instant::now());
    stage.namespaces(&json!({"istio.io/dataplane-mode": "ambient"}))?;
    let meshed: Vec<_> =
        stage.world.pods.values().filter(|pod| pod.namespace == "default").cloned().collect();
    for pod in &meshed {
        wait::until(LIMIT, &format!("{} to be enrolled", pod.name), || {
            runner::is_enrolled(&stage.world, pod).then_some(())
        })?;
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(before == served(), "an application was restarted");
    ensure!(open.is_running(), "the download was over before the pods were enrolled");
    wait::until(LIMIT, "the open download to end", || (!open.is_running()).then_some(()))?;
    ensure!(open.log() == format!("{size} 200"), "the open download ended with {}", open.log());
    Ok(json!({"pods": meshed.len(), "seconds": seconds, "open_download_bytes": size}))
}

/// Ports that may be seen between the nodes: the tunnel, and the way to the control plane.
const BETWEEN_NODES: [u16; 2] = [15008, CONTROL_PORT];

fn wire(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let url = format!("http://{}/", web.ip);
    let seen = stage.captured("meshed", || {
        let page = client.exec(&["curl", "-sSf", &url])?;
        ensure!(page.contains("Full Cycle"), "the page did not arrive: {page}");
        Ok(())
    })?;
    ensure!(!seen.contains("Full Cycle"), "the page is readable on the wire");
    let ports = seen.ports();
    ensure!(ports.iter().all(|port| BETWEEN_NODES.contains(port)), "other ports were used: {ports:?}");
    ensure!(seen.packets_of_port(15008) > 0 && seen.contains_tls(), "nothing used the tunnel");
    Ok(
        json!({"packets_on_15008": seen.packets_of_port(15008), "ports": ports, "readable_on_the_wire": false}),
    )
}

fn address(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    client.exec(&["curl", "-sSf", &format!("http://{}/whose", web.ip), "-o", "/dev/null"]).ok();
    let log = runner::access_log(&stage.world, &web);
    let line = log.lines().rev().find(|line| line.contains("/whose")).context("nginx saw no request")?;
    let seen = line.split(' ').next().unwrap_or_default();
    ensure!(seen == client.ip, "nginx saw {seen}, the client is {}", client.ip);
    Ok(json!({"nginx_access_log": line}))
}

fn canary(stage: &mut Stage) -> Result<Value> {
    let (a, b) = stage.split(200, &["-H", "Connection: close"])?;
    ensure!(a + b == 200 && (60..=140).contains(&a), "before routing: {a} and {b}");
    stage.user(ROUTING, example(ROUTING))?;
    let (a90, b10) = routed(stage)?;
    // Binomial(1000, 0.9): 900 ± 3.2905 × 9.487, the central 99.9 %.
    ensure!(a90 + b10 == 1000 && (869..=931).contains(&a90), "after routing: {a90} and {b10}");
    let waypoint = stage.waypoint()?.name;
    let (told, carried) = stage.explain("client")?;
    for part in ["waypoint", "VirtualService default/nginx-vs", "endpoint", "tunnel", "HBONE", "PODS"] {
        ensure!(carried && told.contains(part), "explain does not name {part}");
    }
    Ok(json!({"before": [a, b], "after": [a90, b10], "waypoint": waypoint, "explained": true}))
}

/// Starts the waypoint that `control` asks for, waits until requests go through it, then counts.
fn routed(stage: &mut Stage) -> Result<(usize, usize)> {
    wait::until(LIMIT, "control to ask for a waypoint", || {
        let made = runner::reconcile(&mut stage.world).ok()?;
        (!made.is_empty()).then_some(())
    })?;
    let waypoint = stage.waypoint()?;
    wait::until(LIMIT, "requests to go through the waypoint", || {
        stage.split(1, &[]).ok()?;
        let metrics = waypoint.exec(&["curl", "-sSf", "http://127.0.0.1:15020/metrics"]).ok()?;
        metrics.contains("istio_requests_total{").then_some(())
    })?;
    stage.split(1000, &[])
}

fn edits(stage: &mut Stage) -> Result<Value> {
    let client = stage.pod("default/client-0-0")?;
    let text = example(ROUTING);
    let half = text.replace("weight: 90", "weight: 50").replace("weight: 10", "weight: 50");
    let by_header = text.replace(
        "  http:\n",
        "  http:\n    - match:\n        - headers:\n            x-version: {exact: b}\n      route:\n        \
         - destination: {host: nginx-service, subset: v2}\n",
    );
    let (halves, headed, figures) = std::thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load::http(&client, "http://nginx-service:8000/", 4, 8, Mode::KeepAlive));
        stage.user(ROUTING, &half)?;
        let halves = wait::until(LIMIT, "50/50", || {
            stage.split(200, &[]).ok().filter(|(a, b)| (60..=140).contains(a) && a + b == 200)
        })?;
        stage.user(ROUTING, &by_header)?;
        let headed = wait::until(LIMIT, "the header match", || {
            stage.split(100, &["-H", "x-version: b"]).ok().filter(|(a, b)| (*a, *b) == (0, 100))
        })?;
        let (a, b) = stage.split(100, &[])?;
        ensure!(a > b && b > 0, "without the header: {a} and {b}");
        ensure!(!load.is_finished(), "the load was over before the last edit");
        let figures = load.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))??;
        Ok((halves, headed, figures))
    })?;
    ensure!(figures.rate > 100.0, "the load made {} requests/s", figures.rate);
    ensure!(figures.errors == 0, "{} requests failed during the edits", figures.errors);
    Ok(json!({"half": halves, "header": headed, "requests_per_second_meanwhile": figures.rate.round(),
              "failed_requests": figures.errors}))
}

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  \
    name: deny-other\n  namespace: default\nspec:\n  targetRefs:\n    - {kind: Service, group: \"\", name: nginx-service}\n  \
    action: DENY\n  rules:\n    - from:\n        - source: {principals: [cluster.local/ns/default/sa/other]}\n";

fn policy(stage: &mut Stage) -> Result<Value> {
    let other = stage.pod("default/other-0-0")?;
    let ask = |words: &[&str]| {
        let words: Vec<&str> =
            [&["curl", "-s", "-o", "/dev/null", "-w"], words, &["http://nginx-service:8000/"]].concat();
        other.exec(&words).unwrap_or_default()
    };
    let status = || ask(&["%{http_code}"]);
    ensure!(status() == "200", "the other client is refused before the policy");
    stage.user("deny.yaml", DENY)?;
    wait::until(LIMIT, "the denial", || (status() == "403").then_some(()))?;
    let (a, b) = stage.split(20, &[])?;
    ensure!(a + b == 20, "the first client is denied too: {a} and {b} of 20");
    let answer = ask(&["%{http_code} %header{x-culvert-reason}"]);
    ensure!(answer == "403 policy_denied", "the answer is {answer}");
    let waypoint = stage.waypoint()?;
    let log = stage.world.tail(&format!("{}.{}", waypoint.namespace, waypoint.name));
    let reason = log
        .lines()
        .rev()
        .find(|line| ["deny-other", "policy_denied", "sa/other"].iter().all(|word| line.contains(word)))
        .context("the waypoint's log does not name client, policy and reason")?
        .to_string();
    let (told, carried) = stage.explain("other")?;
    let named = told.contains("default/deny-other") && !told.contains("WARNING");
    ensure!(!carried && named, "explain does not name the policy that denies");
    let (told, carried) = stage.explain("client")?;
    ensure!(carried && told.contains("default/deny-other"), "explain refuses the client that is served");
    fs::remove_file(stage.world.cluster().join("user/deny.yaml"))?;
    wait::until(LIMIT, "the other client to be served again", || (status() == "200").then_some(()))?;
    Ok(json!({"answer": answer, "denied_with": reason, "served_again": true}))
}

fn killed(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let url = format!("http://{}/", web.ip);
    let fetch = || client.exec(&["curl", "-sSf", "--max-time", "3", &url]);
    stage.world.kill_agent(client.node);
    let mut refused = String::new();
    let seen = stage.captured("killed", || {
        let error = fetch().err().context("a new connection was let through")?.to_string();
        // curl's status for a connection that was refused at once.
        ensure!(error.contains("exit status: 7"), "not refused, but: {error}");
        refused = error.lines().last().unwrap_or_default().to_string();
        Ok(())
    })?;
    let plain = seen.packets_of_port(80);
    ensure!(plain == 0 && !seen.contains("Full Cycle"), "plaintext left the node");
    let refused = refused.rsplit("curl: ").next().unwrap_or_default().to_string();
    let start = Instant::now();
    stage.world.start_agent(client.node)?;
    wait::until(LIMIT, "traffic after the restart", || fetch().ok().map(drop))?;
    Ok(json!({"while_down": refused, "plaintext_packets": plain,
              "works_after_restart_seconds": start.elapsed().as_secs_f64()}))
}

fn prometheus(stage: &mut Stage) -> Result<Value> {
    let root = stage.world.root.clone();
    let mut targets: Vec<String> =
        (0..stage.world.nodes).map(|node| format!("{}:15020", harness::net::node_address(node))).collect();
    let waypoints = stage.world.pods.values().filter(|pod| pod.name.contains("waypoint"));
    targets.extend(waypoints.map(|pod| format!("{}:15020", pod.ip)));
    let config = json!({"global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "culvert", "static_configs": [{"targets": targets}]}]});
    harness::manifest::write(&root.join("prometheus.yaml"), &config)?;
    let place = stage.world.underlay();
    let mut command = place.command("prometheus")?;
    command.arg(format!("--config.file={}", root.join("prometheus.yaml").display()));
    command.arg(format!("--storage.tsdb.path={}", root.join("prometheus").display()));
    command.arg("--web.listen-address=127.0.0.1:9090");
    let process = Process::spawn(&mut command, &stage.world.log_file("prometheus"))?;
    stage.world.running.insert("prometheus".to_string(), process);
    // The agent that step 8 started has counted little yet.
    let (a, b) = stage.split(200, &[])?;
    ensure!(a + b == 200, "only {a} and {b} of 200 requests were answered");
    let mut evidence = json!({});
    for (name, query, wanted) in [
        ("bytes", "sum by (destination_workload) (istio_tcp_sent_bytes_total)", WEBS),
        ("requests", "sum by (destination_workload) (istio_requests_total)", WEBS),
        ("rtt_seconds", RTT, WEBS),
        ("ebpf_runs", "sum by (program) (culvert_bpf_program_runs_total)", PROGRAMS),
    ] {
        evidence[name] = wait::until(LIMIT, &format!("Prometheus to know {name} of {wanted:?}"), || {
            let found = ask(&place, query)?;
            let positive = |label: &&str| found.get(*label).is_some_and(|figure| *figure > 0.0);
            wanted.iter().all(positive).then_some(json!(found))
        })?;
    }
    Ok(evidence)
}

/// Workloads that must have figures.
const WEBS: &[&str] = &["nginx-a", "nginx-b"];
/// Programs that must have run.
const PROGRAMS: &[&str] = &["culvert_connect", "culvert_sockets", "culvert_inbound"];
const RTT: &str =
    "sum by (workload) (culvert_tcp_rtt_seconds_sum) / sum by (workload) (culvert_tcp_rtt_seconds_count)";

/// Asks Prometheus: the figures by the one label that each series has.
fn ask(place: &Place, query: &str) -> Option<BTreeMap<String, f64>> {
    let mut curl = place.command("curl").ok()?;
    let url = "http://127.0.0.1:9090/api/v1/query";
    curl.args(["-sSf", "-G", url, "--data-urlencode", &format!("query={query}")]);
    let answer: Value = serde_json::from_str(&harness::shell::output(&mut curl).ok()?).ok()?;
    let series = answer["data"]["result"].as_array()?.iter().filter_map(|series| {
        let label = series["metric"].as_object()?.values().next()?.as_str()?;
        Some((label.to_string(), series["value"][1].as_str()?.parse::<f64>().ok()?))
    });
    Some(series.filter(|(_, figure)| figure.is_finite()).collect())
}

fn summary(stage: &mut Stage) -> Result<Value> {
    let mut rows = json!({});
    let meshed = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let plain = (stage.pod("plain/client-0-0")?, stage.pod("plain/web-0-0")?);
    println!("{:<8}{:>12}{:>12}{:>14}{:>10}", "", "p50 us", "p99 us", "requests/s", "Gb/s");
    for (name, (client, server)) in [("without", plain), ("with", meshed)] {
        let url = format!("http://{}/", server.ip);
        let one = load::http(&client, &url, 1, 3, Mode::KeepAlive)?;
        let many = load::http(&client, &url, 32, 3, Mode::KeepAlive)?;
        ensure!(one.errors + many.errors == 0, "{name} the mesh requests failed");
        let log = stage.world.log_file(&format!("iperf3.{name}"));
        let _server = Process::spawn(server.command("iperf3")?.arg("-s"), &log)?;
        let gigabits =
            wait::until(LIMIT, "iperf3", || load::bulk(&client, &server.ip, 1, 2, load::Direction::Up).ok())?;
        let (p50, p99) = (one.p50_us, one.p99_us);
        println!("{name:<8}{p50:>12.0}{p99:>12.0}{:>14.0}{gigabits:>10.1}", many.rate);
        rows[name] = json!({"one_connection": one, "connections_32": many, "gigabits_per_second": gigabits});
    }
    Ok(rows)
}
