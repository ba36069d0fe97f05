//! The cluster that the cases share, with Culvert installed.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    cluster::{
        Cluster, Shape,
        crds::Crds,
        programs::{images, istio_images},
    },
    shell, wait,
};
use serde_json::{Value, json};

use crate::{
    istio::{self, ISTIO, OURS},
    shop::SHOP,
};

/// Namespace of our own pods.
pub const SYSTEM: &str = "culvert-system";
/// How long the mesh may take to do what it was told, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long workloads may take to come up.
pub const ROLLOUT: Duration = Duration::from_secs(120);
/// The image with nginx, curl, fortio and busybox.
pub const TOOLS: &str = "culvert.local/test-tools:1";
/// What an enrolled pod is marked with.
const MARK: &str = "/metadata/annotations/ambient.istio.io~1redirection";

/// See the module's description.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// Folder of our programs.
    programs: PathBuf,
    started: Instant,
    numbers: AtomicU32,
    made: RefCell<Vec<String>>,
}

impl Stage {
    /// Starts the cluster and installs Culvert.
    pub fn set() -> Result<Self> {
        let stage = Self::bare(images().context("no images: run cargo xtask test k8s")?)?;
        stage.install(&[])?;
        Ok(stage)
    }

    /// The same with our agent on the first node and Istio's agents on the second.
    pub fn set_beside_ztunnel() -> Result<Self> {
        let stage = Self::with_images_of_istio()?;
        stage.cluster.kubectl(&["label", "node", "node-a", &format!("{OURS}=culvert")])?;
        stage.install(&["--set", &format!("agent.nodeSelector={}", json!({OURS: "culvert"}))])?;
        stage.istio_agents(istio::CULVERT, &istio::off_our_nodes())?;
        stage.say("istio-cni and ztunnel are ready");
        Ok(stage)
    }

    /// Starts a cluster whose nodes may also fetch the images of Istio's parts.
    pub fn with_images_of_istio() -> Result<Self> {
        let mut all = images().context("no images: run cargo xtask test k8s")?;
        all.extend(istio_images().context("no images of Istio's parts: run cargo xtask test k8s --ztunnel")?);
        Self::bare(all)
    }

    fn bare(images: Vec<PathBuf>) -> Result<Self> {
        let started = Instant::now();
        let own = std::env::current_exe()?;
        let programs =
            own.parent().and_then(Path::parent).context("a test has a target folder")?.to_path_buf();
        let shape = Shape {
            controllers: true,
            crds: Crds::ALL.to_vec(),
            nodes: 2,
            helpers: programs.clone(),
            images,
        };
        eprintln!("k8s: starting a cluster of two nodes");
        let stage = Self {
            cluster: Cluster::start(&shape)?,
            programs,
            started,
            numbers: AtomicU32::new(0),
            made: RefCell::default(),
        };
        stage.say("the cluster is up");
        Ok(stage)
    }

    /// Installs Culvert with these options, and waits until it is ready.
    pub fn install(&self, options: &[&str]) -> Result<()> {
        let config = self.cluster.kubeconfig().display().to_string();
        let words = ["install", "--kubeconfig", &config, "--wait"];
        let said = self.culvert(&[&words[..], options].concat())?;
        eprintln!("{said}");
        self.say("Culvert is installed");
        Ok(())
    }

    /// Runs `culvert` beside the API server, and returns what it printed.
    pub fn culvert(&self, words: &[&str]) -> Result<String> {
        let program = self.programs.join("culvert").display().to_string();
        shell::output(self.cluster.place_of("culvert").command(&program)?.args(words))
            .with_context(|| self.trouble())
    }

    /// A line of progress with the time since the start.
    pub fn say(&self, what: &str) {
        eprintln!("k8s: {:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Leaves the cluster running and says how to reach it.
    pub fn keep(self) {
        let kubectl = self.cluster.kubectl_words().join(" ");
        match self.cluster.keep() {
            Ok(id) => println!(
                "kept as cluster {id}; look around with: {kubectl} get pods -A\nremove it with: cargo xtask demo down"
            ),
            Err(error) => eprintln!("the cluster could not be kept: {error:#}"),
        }
    }

    /// A number that was not given out before.
    pub fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// State of our own pods, and of Istio's where there are any.
    pub fn trouble(&self) -> String {
        let mut text = self.cluster.trouble(SYSTEM);
        if self.cluster.kubectl(&["-n", ISTIO, "get", "daemonset", "ztunnel"]).is_ok() {
            text.push_str(&self.cluster.trouble(ISTIO));
        }
        text
    }

    /// Makes a namespace that goes with the case.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.cluster.apply_object(&object)?;
        if name != SHOP {
            self.made.borrow_mut().push(name.to_string());
        }
        if enrolled { self.label(name, true) } else { Ok(()) }
    }

    /// Sets or takes away the label that enrols a namespace.
    pub fn label(&self, name: &str, enrolled: bool) -> Result<()> {
        let word = if enrolled { "istio.io/dataplane-mode=ambient" } else { "istio.io/dataplane-mode-" };
        self.cluster.kubectl(&["label", "namespace", name, word, "--overwrite"]).map(drop)
    }

    /// Removes the namespaces that a case made, without waiting for their end.
    pub fn clear(&self) {
        for name in self.made.borrow_mut().drain(..) {
            if let Err(error) = self.cluster.kubectl(&["delete", "namespace", &name, "--wait=false"]) {
                eprintln!("k8s: namespace {name} does not go: {error:#}");
            }
        }
    }

    /// Applies a file of the checkout in a namespace.
    pub fn apply_file(&self, namespace: &str, file: &str) -> Result<()> {
        let path = checkout().join(file).display().to_string();
        self.cluster.kubectl(&["-n", namespace, "apply", "-f", &path]).map(drop)
    }

    /// Makes a pod that idles, for commands to be run in it, and waits until it is ready.
    pub fn idle(&self, namespace: &str, name: &str, node: &str) -> Result<()> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [
                {"name": name, "image": TOOLS, "command": ["/bin/sleep", "1000000"]}]}});
        self.cluster.apply_object(&pod)?;
        self.cluster.pods_ready(namespace, &format!("app={name}"), ROLLOUT)
    }

    /// Runs a command in a pod and returns what it printed.
    pub fn exec(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", namespace, "exec", pod, "--"], words].concat())
    }

    /// Bodies of `count` answers, each by a connection of its own; of a failure curl's status.
    pub fn ask(&self, namespace: &str, pod: &str, url: &str, count: usize) -> Result<Vec<String>> {
        let script =
            format!("for i in $(seq {count}); do /usr/bin/curl -sf --max-time 5 {url} || echo; done");
        let text = self.exec(namespace, pod, &["/bin/sh", "-c", &script])?;
        Ok(text.lines().map(str::to_string).collect())
    }

    /// Waits until every pod of a namespace is enrolled, or none is.
    pub fn enrolled(&self, namespace: &str, wanted: bool) -> Result<()> {
        let words = ["-n", namespace, "pods"];
        let what = format!("the pods of {namespace} to be {}", if wanted { "enrolled" } else { "released" });
        self.cluster.wait_for(LIMIT, &what, &words, |list| {
            let pods = list["items"].as_array()?;
            let marked = |pod: &&Value| pod.pointer(MARK).is_some_and(|mark| mark == "enabled");
            let count = pods.iter().filter(marked).count();
            (!pods.is_empty() && count == if wanted { pods.len() } else { 0 }).then_some(())
        })
    }

    /// Waits until a shell command in a pod succeeds, and returns what it printed.
    pub fn until(&self, namespace: &str, pod: &str, script: &str) -> Result<String> {
        self.until_within(LIMIT, namespace, pod, script)
    }

    /// The same with a limit of its own.
    pub fn until_within(&self, limit: Duration, namespace: &str, pod: &str, script: &str) -> Result<String> {
        let what = format!("{script} in {namespace}/{pod}");
        let mut last = String::new();
        wait::until(limit, &what, || match self.exec(namespace, pod, &["/bin/sh", "-c", script]) {
            Ok(text) => Some(text),
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        })
        .with_context(|| format!("last failure: {last}"))
    }

    /// Address of a pod.
    pub fn address(&self, namespace: &str, pod: &str) -> Result<String> {
        let object = self.cluster.get(&["-n", namespace, "pod", pod])?;
        let address = object["status"]["podIP"].as_str().unwrap_or_default().to_string();
        ensure!(!address.is_empty(), "{namespace}/{pod} has no address");
        Ok(address)
    }
}

/// The checkout that this test was built from.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
