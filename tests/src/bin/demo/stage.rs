//! What the story needs: the world with its programs, and short ways to ask it things.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::{Capture, Seen},
    manifest, runner, wait,
    world::{Pod, Spec, World},
};
use serde_json::{Value, json};

/// Namespace of the tutorial's objects.
pub const MESHED: &str = "default";
/// Namespace that never gets the label, to compare with.
pub const PLAIN: &str = "plain";

/// The world with control plane and agents up, and nothing enrolled.
pub struct Stage {
    /// The world.
    pub world: World,
}

impl Stage {
    /// Builds the world and starts everything.
    pub fn set(nodes: u8, extra: u8, programs: PathBuf) -> Result<Self> {
        for program in ["culvert-control", "culvert-agent", "culvert-waypoint", "culvert"] {
            let path = programs.join(program);
            ensure!(path.is_file(), "{} is missing; build it first", path.display());
        }
        println!("making {nodes} nodes, the control plane and the agents");
        let world = World::new(&Spec { nodes, programs })?;
        let mut stage = Self { world };
        stage.namespaces(&json!({}))?;
        for (namespace, name, node) in
            [(MESHED, "client", "node-a"), (MESHED, "other", "node-a"), (PLAIN, "client", "node-a")]
        {
            stage.deployment(namespace, name, node, "culvert/client", 1)?;
        }
        stage.deployment(PLAIN, "web", "node-b", "nginx", 1)?;
        if extra > 0 {
            stage.deployment(MESHED, "idle", "", "culvert/client", extra)?;
        }
        stage.user("app.yaml", example("app.yaml"))?;
        runner::reconcile(&mut stage.world)?;
        stage.world.start_control()?;
        for node in 0..nodes {
            stage.world.start_agent(node)?;
        }
        runner::write_hosts(&stage.world)?;
        for pod in ["default/nginx-a-0-0", "default/nginx-b-0-0", "plain/web-0-0"] {
            let pod = stage.pod(pod)?;
            wait::until(Duration::from_secs(10), "nginx to answer", || {
                pod.exec(&["curl", "-sSf", "-o", "/dev/null", "http://127.0.0.1/"]).ok().map(drop)
            })
            .with_context(|| stage.world.tail(&format!("{}.{}", pod.namespace, pod.name)))?;
        }
        Ok(stage)
    }

    /// Writes both namespaces; `labels` go to the meshed one.
    pub fn namespaces(&self, labels: &Value) -> Result<()> {
        self.world.write("namespaces/plain.yaml", &manifest::namespace(PLAIN, &json!({})))?;
        self.world.write("namespaces/default.yaml", &manifest::namespace(MESHED, labels))
    }

    fn deployment(&self, namespace: &str, name: &str, node: &str, image: &str, replicas: u8) -> Result<()> {
        let mut spec = json!({"serviceAccountName": name, "containers": [{"name": name, "image": image}]});
        if !node.is_empty() {
            spec["nodeName"] = json!(node);
        }
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "template": {
                "metadata": {"labels": {"app": name}}, "spec": spec}},
        });
        self.world.write(&format!("demo/{namespace}-{name}.yaml"), &object)
    }

    /// A pod by `namespace/name`.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.world.pods.get(name).cloned().with_context(|| format!("no pod {name}"))
    }

    /// The pod of the waypoint that appeared by itself.
    pub fn waypoint(&self) -> Result<Pod> {
        let mut pods = self.world.pods.values();
        pods.find(|pod| pod.name.contains("waypoint")).cloned().context("no waypoint pod exists")
    }

    /// An nginx pod of the tutorial that is on another node than the client.
    pub fn far_nginx(&self) -> Result<Pod> {
        let client = self.pod("default/client-0-0")?;
        let pods = ["default/nginx-a-0-0", "default/nginx-b-0-0"];
        pods.iter()
            .filter_map(|name| self.world.pods.get(*name))
            .find(|pod| pod.node != client.node)
            .cloned()
            .context("both nginx pods are on the client's node")
    }

    /// What the underlay carries while `traffic` runs.
    pub fn captured(&self, name: &str, traffic: impl FnOnce() -> Result<()>) -> Result<Seen> {
        let file = self.world.root.join(format!("{name}.pcap"));
        let capture = Capture::start(&self.world.underlay(), "br0", file)?;
        let outcome = traffic();
        let seen = capture.stop()?;
        outcome.map(|()| seen)
    }

    /// How many of `count` requests each version answered; `words` are more arguments for curl.
    pub fn split(&self, count: u32, words: &[&str]) -> Result<(usize, usize)> {
        let url = format!("http://nginx-service:8000/?n=[1-{count}]");
        let mut line = vec!["curl", "-sSf", "--max-time", "60"];
        line.extend(words);
        line.push(&url);
        let text = self.pod("default/client-0-0")?.exec(&line)?;
        Ok((text.matches("Full Cycle A").count(), text.matches("Full Cycle B").count()))
    }

    /// What `culvert explain` says of a client's requests to the tutorial's service, shown as a user
    /// sees it, and whether they would be carried.
    pub fn explain(&self, client: &str) -> Result<(String, bool)> {
        let mut command = Command::new(self.world.programs.join("culvert"));
        command.args(["explain", "--world", &self.world.id, client, "nginx-service:8000"]);
        let out = command.output().context("culvert cannot be started")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(!text.is_empty(), "culvert explain: {}", String::from_utf8_lossy(&out.stderr).trim());
        println!("$ culvert explain {client} nginx-service:8000\n{text}");
        Ok((text, out.status.success()))
    }

    /// Writes a user's YAML.
    pub fn user(&self, name: &str, text: &str) -> Result<()> {
        let file = self.world.root.join(name);
        std::fs::write(&file, text)?;
        self.world.apply(&file)
    }
}

/// A file of the tutorial, as it stands in `examples/nginx-canary`.
pub fn example(name: &str) -> &'static str {
    match name {
        "app.yaml" => include_str!("../../../../examples/nginx-canary/app.yaml"),
        _ => include_str!("../../../../examples/nginx-canary/routing.yaml"),
    }
}
