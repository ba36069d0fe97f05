//! The ten steps. Each returns its evidence, or fails with the check that did not hold.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    load::{self, Mode},
    process::Process,
    runner, wait,
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
    let size = 600_000;
    let home = stage.world.root.join("pods").join(format!("{}.{}", web.namespace, web.name));
    fs::write(home.join("html/slow"), vec![b'x'; size])?;
    let log = stage.world.root.join("logs/open-connection.log");
    let mut curl = client.command("curl")?;
    curl.args(["-sS", "--limit-rate", "100k", "-o", "/dev/null", "-w", "%{size_download} %{http_code}"]);
    let mut open = Process::spawn(curl.arg(format!("http://{}/slow", web.ip)), &log)?;
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
    wait::until(LIMIT, "the open download to end", || (!open.is_running()).then_some(()))?;
    ensure!(open.log() == format!("{size} 200"), "the open download ended with {}", open.log());
    Ok(json!({"pods": meshed.len(), "seconds": seconds, "open_download_bytes": size}))
}

fn wire(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let url = format!("http://{}/", web.ip);
    let seen = stage.captured("meshed", || {
        let page = client.exec(&["curl", "-sSf", &url])?;
        ensure!(page.contains("Full Cycle"), "the page did not arrive: {page}");
        Ok(())
    })?;
    ensure!(!seen.contains("Full Cycle"), "the page is readable on the wire");
    ensure!(seen.packets_of_port(80) == 0, "plaintext packets left the node");
    ensure!(seen.packets_of_port(15008) > 0, "nothing used the tunnel");
    Ok(json!({"packets_on_15008": seen.packets_of_port(15008), "readable_on_the_wire": false}))
}

fn address(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    client.exec(&["curl", "-sSf", &format!("http://{}/whose", web.ip), "-o", "/dev/null"]).ok();
    let log = runner::access_log(&stage.world, &web);
    let line = log.lines().rev().find(|line| line.contains("/whose")).context("nginx saw no request")?;
    ensure!(line.starts_with(&client.ip), "nginx saw {line}, the client is {}", client.ip);
    Ok(json!({"nginx_access_log": line}))
}

fn canary(stage: &mut Stage) -> Result<Value> {
    let (a, b) = stage.split(200, &["-H", "Connection: close"])?;
    ensure!(a + b == 200 && (60..=140).contains(&a), "before routing: {a} and {b}");
    stage.user(ROUTING, example(ROUTING))?;
    let (a90, b10) = routed(stage)?;
    // Binomial(1000, 0.9): 900 ± 3.2905 × 9.487, the central 99.9 %.
    ensure!(a90 + b10 == 1000 && (869..=931).contains(&a90), "after routing: {a90} and {b10}");
    let waypoint = stage.world.pods.keys().find(|name| name.contains("waypoint")).cloned();
    ensure!(waypoint.is_some(), "no waypoint pod exists");
    Ok(json!({"before": [a, b], "after": [a90, b10], "waypoint": waypoint}))
}

/// Starts the waypoint that `control` asks for, waits until requests go through it, then counts.
fn routed(stage: &mut Stage) -> Result<(usize, usize)> {
    wait::until(LIMIT, "control to ask for a waypoint", || {
        let made = runner::reconcile(&mut stage.world).ok()?;
        (!made.is_empty()).then_some(())
    })?;
    let name = stage.world.pods.keys().find(|name| name.contains("waypoint")).cloned();
    let waypoint = stage.pod(&name.context("the new pod is a waypoint")?)?;
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
    let (halves, headed, errors) = std::thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load::http(&client, "http://nginx-service:8000/", 4, 8, Mode::KeepAlive));
        stage.user(ROUTING, &half)?;
        let halves = wait::until(LIMIT, "50/50", || {
            stage.split(200, &[]).ok().filter(|(a, _)| (60..=140).contains(a))
        })?;
        stage.user(ROUTING, &by_header)?;
        let headed = wait::until(LIMIT, "the header match", || {
            stage.split(100, &["-H", "x-version: b"]).ok().filter(|(a, b)| (*a, *b) == (0, 100))
        })?;
        let figures = load.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))??;
        Ok((halves, headed, figures.errors))
    })?;
    ensure!(errors == 0, "{errors} requests failed during the edits");
    Ok(json!({"half": halves, "header": headed, "failed_requests": errors}))
}

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  \
    name: deny-other\n  namespace: default\nspec:\n  targetRefs:\n    - {kind: Service, group: \"\", name: nginx-service}\n  \
    action: DENY\n  rules:\n    - from:\n        - source: {principals: [cluster.local/ns/default/sa/other]}\n";

fn policy(stage: &mut Stage) -> Result<Value> {
    let other = stage.pod("default/other-0-0")?;
    let status = || {
        let url = "http://nginx-service:8000/";
        other.exec(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url]).unwrap_or_default()
    };
    ensure!(status() == "200", "the other client is refused before the policy");
    stage.user("deny.yaml", DENY)?;
    wait::until(LIMIT, "the denial", || (status() == "403").then_some(()))?;
    ensure!(stage.split(20, &[])? != (0, 0), "the first client is denied too");
    let logs = fs::read_dir(stage.world.root.join("logs"))?;
    let reason = logs
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .find_map(|text| text.lines().rev().find(|line| line.contains("deny-other")).map(String::from))
        .context("no log names the policy that denies")?;
    fs::remove_file(stage.world.cluster().join("user/deny.yaml"))?;
    wait::until(LIMIT, "the other client to be served again", || (status() == "200").then_some(()))?;
    Ok(json!({"denied_with": reason}))
}

fn killed(stage: &mut Stage) -> Result<Value> {
    let (client, web) = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let url = format!("http://{}/", web.ip);
    let fetch = || client.exec(&["curl", "-sSf", "--max-time", "3", &url]);
    stage.world.kill_agent(client.node);
    let seen = stage.captured("killed", || {
        ensure!(fetch().is_err(), "a new connection was let through");
        Ok(())
    })?;
    ensure!(seen.packets_of_port(80) == 0, "plaintext left the node");
    stage.world.start_agent(client.node)?;
    wait::until(LIMIT, "traffic after the restart", || fetch().ok().map(drop))?;
    Ok(json!({"refused_while_down": true, "plaintext_packets": 0, "works_after_restart": true}))
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
    let mut evidence = json!({});
    for (name, query) in [
        ("bytes", "sum by (destination_workload) (istio_tcp_sent_bytes_total)"),
        ("requests", "sum by (destination_workload) (istio_requests_total)"),
        ("rtt", "{__name__=~\"culvert_.*rtt.*\"}"),
        ("ebpf_programs", "{__name__=~\"culvert_.*(bpf|program).*\"}"),
    ] {
        evidence[name] = wait::until(LIMIT, &format!("Prometheus to know {name}"), || {
            let url = "http://127.0.0.1:9090/api/v1/query";
            let mut curl = place.command("curl").ok()?;
            curl.args(["-sSf", "-G", url, "--data-urlencode", &format!("query={query}")]);
            let answer: Value = serde_json::from_str(&harness::shell::output(&mut curl).ok()?).ok()?;
            answer["data"]["result"].get(0).cloned()
        })?;
    }
    Ok(evidence)
}

fn summary(stage: &mut Stage) -> Result<Value> {
    let mut rows = json!({});
    let meshed = (stage.pod("default/client-0-0")?, stage.far_nginx()?);
    let plain = (stage.pod("plain/client-0-0")?, stage.pod("plain/web-0-0")?);
    for (name, (client, server)) in [("without", plain), ("with", meshed)] {
        let url = format!("http://{}/", server.ip);
        let one = load::http(&client, &url, 1, 3, Mode::KeepAlive)?;
        let many = load::http(&client, &url, 32, 3, Mode::KeepAlive)?;
        ensure!(one.errors + many.errors == 0, "{name} the mesh requests failed");
        println!("{name:<8} p50 {:>8.0} us   {:>10.0} requests/s", one.p50_us, many.rate);
        rows[name] = json!({"one_connection": one, "connections_32": many});
    }
    Ok(rows)
}
