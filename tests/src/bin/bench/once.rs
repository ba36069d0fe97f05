//! Figures that are taken once: memory, enrolment, and how soon configuration takes effect.

use std::{
    fmt::Write as _,
    fs,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use harness::{
    load::median,
    manifest,
    peer::{Family, Peer},
    runner, wait,
    world::{Pod, World},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::{peers::Pair, report::Results};

const LIMIT: Duration = Duration::from_secs(120);
/// Pods whose enrolment is timed.
const LATE: u8 = 20;
/// Changes of configuration that are timed.
const CHANGES: u32 = 5;

/// Memory of a process in use, bytes.
pub fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no figure")?.parse()?;
    Ok(kib * 1024.0)
}

/// A folder with only the namespaces and pods of the cluster: an agent that parses every object of the mesh
/// for its own pods, as it does in folder mode, is not what is measured.
fn of_the_node(world: &World) -> Result<std::path::PathBuf> {
    let folder = world.root.join("node-view");
    if !folder.exists() {
        fs::create_dir(&folder)?;
        for part in ["namespaces", "pods"] {
            std::os::unix::fs::symlink(world.cluster().join(part), folder.join(part))?;
        }
    }
    Ok(folder)
}

/// Memory of a process once it has stopped to change: what a burst of work took is given back by then.
fn settled(pid: u32) -> Result<f64> {
    let mut before = 0.0;
    let mut calm = 0;
    wait::until(LIMIT, "memory to settle", || {
        let now = resident(pid).ok()?;
        calm = if (now - before).abs() < now / 100.0 { calm + 1 } else { 0 };
        before = now;
        // Forty looks, a second.
        (calm >= 40).then_some(now)
    })
}

/// Memory at rest, and what each of `count` idle connections adds to the client's proxy.
pub fn memory(world: &World, pair: &Pair, count: usize, results: &mut Results) -> Result<()> {
    let Some(proxy) = pair.proxy else { return Ok(()) };
    let rest = settled(proxy)?;
    results.add("memory at rest, MiB", &pair.name, rest / 1_048_576.0);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let sockets = |pod: &Pod| {
        let log = world.log_file(&format!("{}.{}.sockets", pod.namespace, pod.name));
        Peer::start(pod.clone(), &world.programs, &log)
    };
    let (client, server) = (sockets(&pair.client)?, sockets(&pair.server)?);
    let listener = server.listen(7000)?;
    let held = thread::spawn(move || -> Vec<TcpStream> {
        listener.incoming().take(count).filter_map(std::result::Result::ok).collect()
    });
    let to = server.at(Family::V4, 7000);
    let some = |count: usize| (0..count).map(|_| client.connect(to)).collect::<std::io::Result<Vec<_>>>();
    // The first ones fill pools and caches that all share.
    let first = some(count / 10)?;
    let shared = resident(proxy)?;
    let open = some(count - first.len())?;
    let accepted = held.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))?;
    anyhow::ensure!(accepted.len() == count, "{} of {count} connections arrived", accepted.len());
    let grown = (resident(proxy)? - shared) / to_f64(open.len());
    results.add("KiB per idle connection", &pair.name, grown / 1024.0);
    drop((first, open));
    Ok(())
}

/// Time from the label to the enrolment of each of some running pods.
pub fn enrolment(world: &mut World, results: &mut Results) -> Result<()> {
    world.write("namespaces/late.yaml", &manifest::namespace("late", &json!({})))?;
    let deployment = deployment("late", "idle", "culvert/client", LATE, &json!({"app": "idle"}), "node-a");
    world.write("bench/late.yaml", &deployment)?;
    runner::reconcile(world)?;
    let pods: Vec<Pod> = world.pods.values().filter(|pod| pod.namespace == "late").cloned().collect();
    let start = Instant::now();
    world.write("namespaces/late.yaml", &manifest::namespace("late", &ambient()))?;
    for pod in &pods {
        wait::until(LIMIT, "enrolment", || runner::is_enrolled(world, pod).then_some(()))?;
    }
    let millis = start.elapsed().as_secs_f64() * 1000.0;
    results.add("enrolment per pod, ms", "culvert", millis / f64::from(LATE));
    Ok(())
}

/// Time from an edit of a VirtualService to the first byte of the other version.
pub fn change(world: &mut World, results: &mut Results) -> Result<()> {
    world.write("namespaces/routed.yaml", &manifest::namespace("routed", &ambient()))?;
    for (name, image) in [("v1", "nginx"), ("v2", "nginx"), ("client", "culvert/client")] {
        let labels = json!({"app": if name == "client" { "client" } else { "web" }, "version": name});
        world.write(
            &format!("bench/routed-{name}.yaml"),
            &deployment("routed", name, image, 1, &labels, ""),
        )?;
    }
    runner::reconcile(world)?;
    for version in ["v1", "v2"] {
        let home = world.root.join("pods").join(format!("routed.{version}-0-0"));
        fs::write(home.join("html/index.html"), version)?;
    }
    world.write(
        "bench/routed-service.yaml",
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "routed"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "name": "http"}]},
        }),
    )?;
    world.write(
        "bench/routed-subsets.yaml",
        &json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "web", "namespace": "routed"},
            "spec": {"host": "web", "subsets": [
                {"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]},
        }),
    )?;
    world.write("bench/routed-route.yaml", &route("v1"))?;
    wait::until(LIMIT, "the waypoint", || {
        runner::reconcile(world).ok()?;
        world.pods.keys().any(|name| name.starts_with("routed/waypoint")).then_some(())
    })?;
    wait::until(LIMIT, "the service's address", || {
        let services: Value = serde_json::from_str(&world.control_get("/debug/services").ok()?).ok()?;
        services.as_array()?.iter().any(|service| service["namespace"] == "routed").then_some(())
    })?;
    runner::write_hosts(world)?;
    let client = world.pods.get("routed/client-0-0").cloned().context("the client was made")?;
    let answers = |version: &str| {
        let page = client.exec(&["curl", "-sS", "--max-time", "2", "http://web/"]).ok()?;
        (page == version).then_some(())
    };
    wait::until(LIMIT, "the first route", || answers("v1"))?;
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let version = if round % 2 == 0 { "v2" } else { "v1" };
        let start = Instant::now();
        world.write("bench/routed-route.yaml", &route(version))?;
        wait::until(LIMIT, "the other route", || answers(version))?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    results.add("edit to first byte, ms", "culvert", median(&times));
    Ok(())
}

/// What each of `count` workloads elsewhere in the mesh adds to an agent that has just started.
pub fn workloads(world: &mut World, count: usize, results: &mut Results) -> Result<()> {
    world.kill_agent(0);
    fs::remove_dir_all(world.root.join("state/node-a")).context("the agent's state")?;
    world.agent_folder = Some(of_the_node(world)?);
    world.start_agent(0)?;
    let agent = world.agent_pid(0).context("the agent runs")?;
    let before = settled(agent)?;
    let mut text = String::new();
    for n in 0..count {
        let (a, b, c) = (n / 65_536, n / 256 % 256, n % 256);
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: bulk-{n}, namespace: bulk, uid: bulk-{n}, \
             labels: {{app: bulk-{}}}}}\nspec: {{nodeName: elsewhere, serviceAccountName: bulk, containers: []}}\n\
             status: {{phase: Running, podIP: 10.{}.{b}.{c}, podIPs: [{{ip: 10.{}.{b}.{c}}}]}}\n",
            n % 1000,
            16 + a,
            16 + a,
        );
    }
    let start = Instant::now();
    fs::create_dir_all(world.cluster().join("bulk"))?;
    let hidden = world.cluster().join("bulk/.pods.tmp");
    fs::write(&hidden, text)?;
    fs::rename(&hidden, world.cluster().join("bulk/pods.yaml"))?;
    wait::until(LIMIT, &format!("{count} workloads in the agent"), || {
        let config: Value = serde_json::from_str(&world.agent_get(0, "/debug/config").ok()?).ok()?;
        (config["snapshot"]["workloads"].as_u64()? >= u64::try_from(count).ok()?).then_some(())
    })?;
    println!("{count} workloads reached the agent after {:.1} s", start.elapsed().as_secs_f64());
    let grown = settled(agent)? - before;
    results.add(&format!("bytes per workload of {count}"), "culvert", grown / to_f64(count));
    fs::remove_file(world.cluster().join("bulk/pods.yaml"))?;
    Ok(())
}

fn ambient() -> Value {
    json!({"istio.io/dataplane-mode": "ambient"})
}

fn deployment(namespace: &str, name: &str, image: &str, replicas: u8, labels: &Value, node: &str) -> Value {
    let mut spec = json!({"serviceAccountName": name, "containers": [{"name": name, "image": image}]});
    if !node.is_empty() {
        spec["nodeName"] = json!(node);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": labels}, "spec": spec}},
    })
}

fn route(subset: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": "routed"},
        "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web", "subset": subset}}]}]},
    })
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
