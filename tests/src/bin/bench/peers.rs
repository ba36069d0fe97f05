//! The pairs of pods that are measured, one pair per peer.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    manifest,
    process::Process,
    runner, shell, wait,
    world::{Pod, World},
};
use serde_json::json;

/// A client on one node and a server on the other.
pub struct Pair {
    /// Name of the peer.
    pub name: String,
    /// Where the load comes from.
    pub client: Pod,
    /// nginx on port 80, iperf3 on 5201.
    pub server: Pod,
    /// The proxy on the client's side.
    pub proxy: Option<u32>,
}

/// Pods that nothing touches.
pub fn plain(world: &mut World) -> Result<Pair> {
    pair(world, "no-mesh")
}

fn pair(world: &mut World, name: &str) -> Result<Pair> {
    world.write(&format!("namespaces/{name}.yaml"), &manifest::namespace(name, &json!({})))?;
    for (role, node, image) in [("client", "node-a", "culvert/client"), ("server", "node-b", "nginx")] {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": role, "namespace": name},
            "spec": {"replicas": 1, "template": {
                "metadata": {"labels": {"app": role}},
                "spec": {"nodeName": node, "serviceAccountName": role, "containers": [{
                    "name": role, "image": image}]}}}
        });
        world.write(&format!("bench/{name}-{role}.yaml"), &deployment)?;
    }
    runner::reconcile(world)?;
    let of = |role: &str| world.pods.get(&format!("{name}/{role}-0-0")).cloned();
    let client = of("client").context("the client was made")?;
    let server = of("server").context("the server was made")?;
    let page = world.root.join("pods").join(format!("{name}.server-0-0")).join("html/index.html");
    fs::write(page, "hello from the server\n")?;
    let log = world.root.join("logs").join(format!("{name}.iperf3.log"));
    let process = Process::spawn(server.command("iperf3")?.arg("-s"), &log)?;
    world.running.insert(format!("{name}/iperf3"), process);
    answers(&server, "http://127.0.0.1/")?;
    Ok(Pair { name: name.to_string(), client, server, proxy: None })
}

fn answers(pod: &Pod, url: &str) -> Result<()> {
    wait::until(Duration::from_secs(20), &format!("{url} to answer"), || {
        pod.exec(&["curl", "-sSf", "--max-time", "2", "-o", "/dev/null", url]).ok().map(drop)
    })
}

/// A ztunnel in dedicated mode in each of two pods, with its own redirection.
pub fn ztunnel(world: &mut World, binary: &Path, script: &Path) -> Result<Pair> {
    let mut pair = pair(world, "ztunnel")?;
    let workloads: Vec<_> = [&pair.client, &pair.server]
        .into_iter()
        .map(|pod| {
            json!({"uid": format!("cluster1//v1/Pod/default/{}", pod.name), "name": pod.name,
                   "namespace": "default", "serviceAccount": pod.service_account,
                   "workloadIps": [pod.ip], "protocol": "HBONE", "node": pod.node_name(),
                   "network": "", "services": {}})
        })
        .collect();
    let config = world.root.join("ztunnel.yaml");
    manifest::write(&config, &json!({"workloads": workloads, "services": [], "policies": []}))?;
    let mut proxy = None;
    for pod in [&pair.client, &pair.server] {
        shell::output(pod.command("bash")?.arg(script)).context("ztunnel's redirect script")?;
        let mut command = pod.command(&binary.to_string_lossy())?;
        command.envs([
            ("FAKE_CA", "true"),
            ("XDS_ADDRESS", ""),
            ("PROXY_MODE", "dedicated"),
            ("PACKET_MARK", "1337"),
            ("IPV6_ENABLED", "false"),
        ]);
        command.env("LOCAL_XDS_PATH", &config).env("NODE_NAME", pod.node_name());
        command.env("PROXY_WORKLOAD_INFO", format!("default/{}/{}", pod.name, pod.service_account));
        let log = world.root.join("logs").join(format!("ztunnel.{}.log", pod.name));
        let process = Process::spawn(&mut command, &log)?;
        if pod.node == pair.client.node {
            proxy = Some(process.pid());
        }
        world.running.insert(format!("ztunnel/proxy-{}", pod.name), process);
        answers(pod, "http://127.0.0.1:15021/healthz/ready")
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    }
    pair.proxy = proxy;
    tunnelled(world, &pair)?;
    Ok(pair)
}

/// Fails unless the pair's traffic crosses the underlay in a tunnel, and only there: figures of a
/// mesh that does not carry the load would be worth nothing.
fn tunnelled(world: &World, pair: &Pair) -> Result<()> {
    let file = world.root.join(format!("{}.pcap", pair.name));
    let capture = Capture::start(&world.underlay(), "br0", file)?;
    answers(&pair.client, &format!("http://{}/", pair.server.ip))?;
    let seen = capture.stop()?;
    let (tunnel, plain) = (seen.packets_of_port(15008), seen.packets_of_port(80));
    ensure!(tunnel > 0 && plain == 0, "{}: {tunnel} tunnel and {plain} plain packets", pair.name);
    Ok(())
}

/// Our own agents on both nodes with control's configuration.
pub fn culvert(world: &mut World) -> Result<Pair> {
    world.start_control()?;
    for node in 0..world.nodes {
        world.start_agent(node)?;
    }
    let mut pair = pair(world, "culvert")?;
    let label = json!({"istio.io/dataplane-mode": "ambient"});
    world.write("namespaces/culvert.yaml", &manifest::namespace("culvert", &label))?;
    for pod in [&pair.client, &pair.server] {
        wait::until(Duration::from_secs(30), &format!("{} to be enrolled", pod.name), || {
            runner::is_enrolled(world, pod).then_some(())
        })
        .with_context(|| world.tail(&format!("agent-{}", pod.node_name())))?;
    }
    pair.proxy = world.agent_pid(pair.client.node);
    tunnelled(world, &pair)?;
    Ok(pair)
}
