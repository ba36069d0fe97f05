//! `demo --kubernetes`: the tutorial on a cluster of the real programs, with `kubectl` on screen.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    cluster::{Cluster, Shape, crds::Crds, kubectl::WORDS, programs},
    janitor, shell, wait,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const URL: &str = "http://nginx-service:8000/";
/// What an enrolled pod is marked with.
const MARK: &str = "/metadata/annotations/ambient.istio.io~1redirection";

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A cluster that stays up, without Culvert.
    Bare,
    /// The story; the cluster stays up when it is to be kept.
    Story {
        /// Whether it is.
        keep: bool,
    },
}

/// Starts the cluster, and tells the story on it.
pub fn show(ours: PathBuf, what: What) -> Result<ExitCode> {
    let start = Instant::now();
    let images = programs::images().context("no images: start this with cargo xtask demo --kubernetes")?;
    // Those of Istio's kinds are made by `culvert install`.
    let (controllers, crds) = (true, vec![Crds::GatewayApi]);
    println!("starting API server, etcd, controllers, two nodes with kubelet and containerd, CoreDNS");
    let shape = Shape { controllers, crds, nodes: 2, helpers: ours.clone(), images };
    let story = Story { cluster: Cluster::start(&shape)?, ours };
    println!("the cluster is up after {:.0} s", start.elapsed().as_secs_f64());
    if what == What::Bare {
        let id = story.cluster.keep()?;
        println!("kept as cluster {id}; kubectl, helm and culvert reach it in: cargo xtask demo shell");
        println!("remove it with: cargo xtask demo down");
        return Ok(ExitCode::SUCCESS);
    }
    story.tell()?;
    println!("\nevery check held, after {:.0} s", start.elapsed().as_secs_f64());
    if what == (What::Story { keep: true }) {
        let id = story.cluster.keep()?;
        println!("kept as cluster {id}; look around with: cargo xtask demo kubectl get pods -A");
        println!("or: cargo xtask demo exec client -- curl -s {URL}");
        println!("remove it with: cargo xtask demo down");
    }
    Ok(ExitCode::SUCCESS)
}

struct Story {
    cluster: Cluster,
    ours: PathBuf,
}

impl Story {
    fn tell(&self) -> Result<()> {
        println!("\n== 1 Culvert is installed\n$ culvert install --wait");
        print!("{}", self.culvert(&["install", "--wait"])?);
        println!("\n== 2 two versions of a page behind a Service, unmeshed");
        self.apply("app.yaml")?;
        self.cluster.apply_object(&client())?;
        for name in ["nginx-a", "nginx-b", "client"] {
            self.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=120s"])?;
        }
        self.answers(20, |_, _| true)?;
        println!("\n== 3 the label enrols the running pods");
        self.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode=ambient"])?;
        self.cluster.wait_for(LIMIT, "the pods to be enrolled", &["pods"], |list| {
            let pods = list["items"].as_array()?;
            pods.iter().all(|pod| pod.pointer(MARK).is_some_and(|mark| mark == "enabled")).then_some(())
        })?;
        self.kubectl(&["get", "pods", "-o", "wide"])?;
        self.answers(100, |a, b| a > 25 && b > 25)?;
        println!("\n== 4 VirtualService and DestinationRule bring a waypoint, and 90/10");
        self.apply("routing.yaml")?;
        wait::until(LIMIT, "a waypoint", || {
            self.cluster.kubectl(&["get", "deployment", "waypoint"]).ok().map(drop)
        })?;
        self.kubectl(&["rollout", "status", "deployment/waypoint", "--timeout=120s"])?;
        self.answers(200, |a, b| (165..=195).contains(&a) && b > 0)?;
        println!("\n== 5 nothing is wrong\n$ culvert check --wait");
        print!("{}", self.culvert(&["check", "--wait"])?);
        Ok(())
    }

    /// Runs `kubectl`, on screen.
    fn kubectl(&self, words: &[&str]) -> Result<()> {
        println!("$ kubectl {}", words.join(" "));
        print!("{}", self.cluster.kubectl(words)?);
        Ok(())
    }

    fn apply(&self, file: &str) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nginx-canary").join(file);
        println!("$ kubectl apply -f examples/nginx-canary/{file}");
        print!("{}", self.cluster.kubectl(&["apply", "-f", &path.display().to_string()])?);
        Ok(())
    }

    fn culvert(&self, words: &[&str]) -> Result<String> {
        let program = self.ours.join("culvert").display().to_string();
        let mut command = self.cluster.place_of("culvert").command(&program)?;
        shell::output(command.args(words).arg("--kubeconfig").arg(self.cluster.kubeconfig()))
    }

    /// Asks the service until the shares of both versions are as wanted.
    fn answers(&self, count: usize, wanted: impl Fn(usize, usize) -> bool) -> Result<()> {
        println!("$ kubectl exec deployment/client -- curl -s {URL}   # {count} times");
        let script = format!("for i in $(seq {count}); do /usr/bin/curl -sf --max-time 5 {URL}; done");
        let mut last = (0, 0);
        let held = wait::until(LIMIT, "the shares that are wanted", || {
            let words = ["exec", "deployment/client", "--", "/bin/sh", "-c", &script];
            let text = self.cluster.kubectl(&words).ok()?;
            let of = |version: &str| text.lines().filter(|line| line.ends_with(version)).count();
            last = (of("Cycle A"), of("Cycle B"));
            (last.0 + last.1 == count && wanted(last.0, last.1)).then_some(())
        });
        println!("{} from version A, {} from version B", last.0, last.1);
        ensure!(held.is_ok(), "not the shares that are wanted");
        Ok(())
    }
}

fn client() -> Value {
    let labels = json!({"app": "client"});
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "client", "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "client",
                "image": "curlimages/curl", "command": ["/bin/sleep", "1000000"]}]}}}})
}

/// Whether a kept world is a cluster.
pub fn is_cluster(id: &str) -> bool {
    janitor::folder(id).join(WORDS).is_file()
}

/// `kubectl` on a kept cluster, with its own input, output and exit status.
pub fn kubectl(id: &str, words: &[String]) -> Result<ExitCode> {
    let status = command(id)?.args(words).stdin(Stdio::inherit()).status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// A command in a pod, or in one of a Deployment's, of a kept cluster.
pub fn exec(id: &str, pod: &str, words: &[String]) -> Result<ExitCode> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let is_pod = shell::output(command(id)?.args(["-n", namespace, "get", "pod", name])).is_ok();
    let target = if is_pod { name.to_string() } else { format!("deployment/{name}") };
    let mut all = ["-n", namespace, "exec", "-i", &target, "--"].map(String::from).to_vec();
    all.extend_from_slice(words);
    kubectl(id, &all)
}

/// A shell, or a command, in which `kubectl`, `helm` and `culvert` reach a kept cluster.
pub fn shell(id: &str, words: &[String]) -> Result<ExitCode> {
    let known = words_of(id)?;
    let [enter, net, kubectl, _, config] = known.as_slice() else {
        bail!("{id} was kept by another version: remove it with cargo xtask demo down")
    };
    let own = std::env::current_exe()?;
    let folders = [own.parent(), Path::new(kubectl).parent()].into_iter().flatten().map(Path::to_path_buf);
    let before = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(folders.chain(std::env::split_paths(&before)))?;
    let mut command = Command::new(enter);
    command.arg(net).env("KUBECONFIG", config).env("PATH", path);
    match words {
        [] => command.arg(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())),
        words => command.args(words),
    };
    let status = command.stdin(Stdio::inherit()).status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// `kubectl` as it reaches a kept cluster.
fn command(id: &str) -> Result<Command> {
    let known = words_of(id)?;
    let (program, first) = known.split_first().context("a command has a program")?;
    let mut command = Command::new(program);
    command.args(first);
    Ok(command)
}

fn words_of(id: &str) -> Result<Vec<String>> {
    let file = janitor::folder(id).join(WORDS);
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("{id} is no cluster; start one with: cargo xtask demo --kubernetes --keep")
    })?;
    Ok(serde_json::from_str(&text)?)
}
