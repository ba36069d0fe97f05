//! A world with control plane and agents up, and short ways to put pods and objects into it.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    echo::{Answer, ask},
    manifest,
    peer::Peer,
    runner, wait,
    world::{Pod, Spec, World},
};

/// How long the mesh may take to do what it was told.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Namespace that is enrolled.
pub const MESHED: &str = "shop";
/// Namespace that is not.
pub const PLAIN: &str = "plain";

/// See the module's description.
pub struct Mesh {
    /// The world.
    pub world: World,
    applied: AtomicU32,
}

/// A place in a program's log: what comes after it is new.
#[derive(Clone, Debug)]
pub struct Mark {
    program: String,
    offset: usize,
}

impl Mark {
    /// Where the log ended, bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// The folder of the built programs: two above that of a test's.
pub fn programs() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(std::path::Path::parent).context("a test has a target folder")?;
    for program in ["culvert-agent", "culvert-control", "culvert-waypoint", "culvert-sockets"] {
        ensure!(folder.join(program).is_file(), "{program} is not in {}: build it first", folder.display());
    }
    Ok(folder.to_path_buf())
}

impl Mesh {
    /// Two nodes with their agents, the control plane, and the namespaces [`MESHED`] and [`PLAIN`].
    pub fn start() -> Result<Self> {
        let mut mesh = Self::without_agents()?;
        mesh.world.start_control()?;
        for node in 0..mesh.world.nodes {
            mesh.world.start_agent(node)?;
        }
        Ok(mesh)
    }

    /// The same, with none of our programs started yet.
    pub fn without_agents() -> Result<Self> {
        let world = World::new(&Spec { nodes: 2, programs: programs()? })?;
        let mesh = Self { world, applied: AtomicU32::new(0) };
        mesh.label(MESHED, true)?;
        mesh.label(PLAIN, false)?;
        Ok(mesh)
    }

    /// Writes a namespace with or without the label that enrols its pods.
    pub fn label(&self, namespace: &str, enrolled: bool) -> Result<()> {
        let labels = if enrolled { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
        self.world.write(&format!("namespaces/{namespace}.yaml"), &manifest::namespace(namespace, &labels))
    }

    /// Makes a running pod `name` on a node, labelled `app: <name>`, whose account is `name` too.
    pub fn pod(&mut self, namespace: &str, name: &str, node: u8) -> Result<Peer> {
        self.pod_with(namespace, name, node, &[("app", name)])
    }

    /// The same with labels.
    pub fn pod_with(
        &mut self,
        namespace: &str,
        name: &str,
        node: u8,
        labels: &[(&str, &str)],
    ) -> Result<Peer> {
        let mut pod = self.world.add_pod(namespace, name, node, name)?;
        pod.labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.world.pods.insert(format!("{namespace}/{name}"), pod.clone());
        let log = self.world.log_file(&format!("{namespace}.{name}"));
        let peer = Peer::start(pod.clone(), &self.world.programs, &log)?;
        let container = json!({"name": name, "image": "test"});
        self.world.write(&World::pod_file(&pod), &manifest::pod(&pod, None, &container, true))?;
        Ok(peer)
    }

    /// Something beside the pods that the control plane knows nothing of: outside the mesh.
    pub fn outsider(&mut self, name: &str, node: u8) -> Result<Peer> {
        let pod = self.world.add_pod("outside", name, node, name)?;
        Peer::start(pod, &self.world.programs, &self.world.log_file(name))
    }

    /// Memory of a node's agent that is in RAM, bytes.
    pub fn agent_memory(&self, node: u8) -> u64 {
        let pid = self.world.agent_pid(node).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    }

    /// Makes a running pod without a program in it.
    pub fn idle(&mut self, namespace: &str, name: &str, node: u8) -> Result<Pod> {
        let pod = self.world.add_pod(namespace, name, node, name)?;
        let container = json!({"name": name, "image": "idle"});
        self.world.write(&World::pod_file(&pod), &manifest::pod(&pod, None, &container, true))?;
        Ok(pod)
    }

    /// Pods of a node by what the agent says of their enrolment.
    pub fn standing(&self, node: u8, state: &str) -> usize {
        let config = self.world.agent_get(node, "/debug/config").unwrap_or_default();
        let config: Value = serde_json::from_str(&config).unwrap_or_default();
        list(&config, "pods").iter().filter(|pod| pod["state"] == state).count()
    }

    /// Addresses of the pods in a node's kernel table.
    pub fn captured(&self, node: u8) -> Vec<String> {
        let config = self.world.agent_get(node, "/debug/config").unwrap_or_default();
        let config: Value = serde_json::from_str(&config).unwrap_or_default();
        let pods = list(&config["kernel"], "pods").iter();
        pods.filter_map(|pod| pod["v4"].as_str().map(String::from)).collect()
    }

    /// Waits until pods are enrolled and every agent knows it.
    pub fn enrolled(&self, peers: &[&Peer]) -> Result<()> {
        for Peer { pod, .. } in peers {
            wait::until(LIMIT, &format!("{} to be enrolled", pod.name), || {
                runner::is_enrolled(&self.world, pod).then_some(())
            })
            .with_context(|| self.logs())?;
            self.workload(&pod.name, |found| found["tunnel"] == "Hbone")?;
        }
        Ok(())
    }

    /// Waits until every agent knows a workload about which something is true.
    pub fn workload(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        self.everywhere(&format!("news of workload {name}"), |snapshot| {
            list(snapshot, "workloads").iter().any(|w| w["name"] == name && is_so(w))
        })
    }

    /// Waits until every agent's configuration is as wanted.
    pub fn everywhere(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        for node in 0..self.world.nodes {
            wait::until(LIMIT, &format!("{what} at node {node}"), || {
                let text = self.world.agent_get(node, "/debug/snapshot").ok()?;
                is_so(&serde_json::from_str(&text).ok()?).then_some(())
            })
            .with_context(|| self.logs())?;
        }
        Ok(())
    }

    /// Makes `yaml` the whole of the users' objects, and waits until every agent works with it.
    ///
    /// A policy and a workload of a namespace of their own are written with it and awaited: what is
    /// compiled together arrives together, so also a change without a visible effect is known to be
    /// there.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let sign = format!("applied-{}", self.applied.fetch_add(1, Ordering::Relaxed));
        self.write(&format!("{yaml}\n---\n{}", marker(&sign)))?;
        self.everywhere(&sign, |snapshot| {
            let policy = list(snapshot, "policies").iter().any(|p| p["key"].to_string().contains(&sign));
            policy && list(snapshot, "workloads").iter().any(|w| w["name"] == sign.as_str())
        })
    }

    /// Makes `yaml` the whole of the users' objects.
    pub fn write(&self, yaml: &str) -> Result<()> {
        let file = self.world.root.join("user.yaml");
        std::fs::write(&file, yaml)?;
        self.world.apply(&file)
    }

    /// The end of a program's log.
    pub fn mark(&self, program: &str) -> Mark {
        let offset = self.log(program).len();
        Mark { program: program.to_string(), offset }
    }

    /// What a program printed.
    pub fn log(&self, program: &str) -> String {
        std::fs::read_to_string(self.world.log_file(program)).unwrap_or_default()
    }

    /// Waits for a line after `mark` that contains all of `words`.
    pub fn logged(&self, mark: &Mark, words: &[&str]) -> Result<String> {
        wait::until(Duration::from_secs(8), &format!("{} to log {words:?}", mark.program), || {
            let text = self.log(&mark.program);
            let line =
                text.get(mark.offset..)?.lines().find(|line| words.iter().all(|w| line.contains(w)))?;
            Some(line.to_string())
        })
        .with_context(|| format!("new lines:\n{}", self.log(&mark.program).split_at(mark.offset).1))
    }

    /// Asks and expects to be refused; returns the line in which `program` says so with `reason`.
    pub fn refused(&self, client: &Peer, to: SocketAddr, program: &str, reason: &str) -> Result<String> {
        let mark = self.mark(program);
        let answer = ask(client, to);
        ensure!(answer.is_err(), "{} reached {to}: {answer:?}", client.pod.name);
        self.logged(&mark, &[&format!("reason=\"{reason}\"")])
    }

    /// Asks and expects an answer, with the client's own address at the server.
    pub fn reaches(&self, client: &Peer, to: SocketAddr) -> Result<Answer> {
        let answer: io::Result<Answer> = ask(client, to);
        let answer = answer.with_context(|| {
            format!("{}/{} to {to}\n{}", client.pod.namespace, client.pod.name, self.logs())
        })?;
        let own = [&client.pod.ip, &client.pod.ip6].iter().any(|ip| answer.seen.to_string() == **ip);
        ensure!(own, "{} is not {}'s address", answer.seen, client.pod.name);
        Ok(answer)
    }

    /// A figure of an agent's `/metrics`: the sum of all lines that contain every word.
    pub fn metric(&self, node: u8, words: &[&str]) -> f64 {
        let text = self.world.agent_get(node, "/metrics").unwrap_or_default();
        let lines = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The last lines of all our programs, for failures.
    pub fn logs(&self) -> String {
        let names = ["control", "agent-node-a", "agent-node-b"];
        names.map(|name| format!("--- {name}\n{}\n", self.world.tail(name))).concat()
    }
}

fn list<'a>(snapshot: &'a Value, field: &str) -> &'a [Value] {
    snapshot[field].as_array().map_or(&[], Vec::as_slice)
}

fn marker(sign: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {sign}, namespace: marks}}\nspec: {{action: DENY, rules: []}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {sign}, namespace: marks}}\nspec: {{address: 203.0.113.1}}\n"
    )
}

/// Name of a node's agent as logs are named.
pub fn agent(node: u8) -> &'static str {
    if node == 0 { "agent-node-a" } else { "agent-node-b" }
}
