//! A world: underlay, nodes, pods, the control plane and the agents.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cgroup,
    istiod::{self, Istiod},
    janitor, manifest, net,
    process::{Place, Process},
    shell, wait,
};

/// Ports of the control plane on the underlay's address, and of the agents' admin endpoint.
pub const CONTROL_PORT: u16 = 15012;
/// Admin port of the control plane.
pub const CONTROL_ADMIN: u16 = 15014;
/// Admin port of an agent.
pub const AGENT_ADMIN: u16 = 15020;

/// A pod: a namespace with addresses behind a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Name of the object.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Unique id.
    pub uid: String,
    /// Index of its node.
    pub node: u8,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Network namespace.
    pub netns: String,
    /// Cgroup of its processes.
    pub cgroup: PathBuf,
    /// IPv4 address.
    pub ip: String,
    /// IPv6 address.
    pub ip6: String,
    /// Its node's address.
    pub host_ip: String,
}

impl Pod {
    /// Name of the node that it runs on.
    pub fn node_name(&self) -> String {
        node_name(self.node)
    }

    /// Where its processes run.
    pub fn place(&self) -> Place {
        Place { netns: self.netns.clone(), cgroup: self.cgroup.clone(), container: true }
    }

    /// A command inside the pod.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.place().command(program)
    }

    /// Runs a program to its end inside the pod and returns what it printed.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let (program, args) = words.split_first().context("a command has a program")?;
        shell::output(self.command(program)?.args(args))
    }
}

/// What to ask a world for.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How many nodes.
    pub nodes: u8,
    /// Folder of our binaries.
    pub programs: PathBuf,
}

/// See the module's description. Removed when dropped, unless [`World::keep`] was called.
pub struct World {
    /// Unique on this machine.
    pub id: String,
    /// Its folder.
    pub root: PathBuf,
    /// Number of nodes.
    pub nodes: u8,
    /// Folder of our binaries.
    pub programs: PathBuf,
    /// Pods by `namespace/name`.
    pub pods: BTreeMap<String, Pod>,
    /// Programs of pods, by `namespace/name`.
    pub running: BTreeMap<String, Process>,
    /// More words for the agents' command lines.
    pub agent_words: Vec<String>,
    /// The folder that agents read; none is that of the cluster.
    pub agent_folder: Option<PathBuf>,
    /// A kubeconfig: agents watch that API server instead of a folder.
    pub agent_kubeconfig: Option<PathBuf>,
    /// What agents log, as a filter of theirs.
    pub agent_filter: String,
    control: Option<Process>,
    istiod: Option<Istiod>,
    agents: BTreeMap<u8, Process>,
    owned: bool,
}

fn node_name(index: u8) -> String {
    format!("node-{}", char::from(b'a' + index))
}

impl World {
    /// Cleans up after killed runs and makes the namespaces of a new world.
    pub fn new(spec: &Spec) -> Result<Self> {
        janitor::sweep()?;
        let id = janitor::claim()?;
        let mut world = Self::with_id(id, spec.nodes, spec.programs.clone(), true);
        for folder in ["cluster", "logs", "tokens", "state"] {
            fs::create_dir_all(world.root.join(folder))?;
        }
        if istiod::is_asked_for() {
            world.istiod = Some(Istiod::new()?);
        } else {
            net::underlay(&world.underlay().netns)?;
        }
        for index in 0..spec.nodes {
            let name = world.node_place(index).netns;
            net::node(&world.underlay().netns, &name, index, spec.nodes)?;
            let address = net::node_address(index).to_string();
            world.write(
                &format!("nodes/{}.yaml", node_name(index)),
                &manifest::node(&node_name(index), &address),
            )?;
        }
        world.write_tokens()?;
        Ok(world)
    }

    /// A kept world of an earlier run.
    pub fn attach(id: &str) -> Result<Self> {
        let root = janitor::folder(id);
        let text =
            fs::read_to_string(root.join("world.json")).with_context(|| format!("no kept world {id}"))?;
        let (nodes, programs, pods): (u8, PathBuf, BTreeMap<String, Pod>) = serde_json::from_str(&text)?;
        let mut world = Self::with_id(id.to_string(), nodes, programs, false);
        world.pods = pods;
        Ok(world)
    }

    fn with_id(id: String, nodes: u8, programs: PathBuf, owned: bool) -> Self {
        Self {
            root: janitor::folder(&id),
            id,
            nodes,
            programs,
            pods: BTreeMap::new(),
            running: BTreeMap::new(),
            agent_words: Vec::new(),
            agent_folder: None,
            agent_kubeconfig: None,
            agent_filter: "info".to_string(),
            control: None,
            istiod: None,
            agents: BTreeMap::new(),
            owned,
        }
    }

    /// Leaves everything running when this value is dropped; `down` removes it.
    pub fn keep(mut self) -> Result<String> {
        self.save()?;
        fs::write(self.root.join("keep"), "")?;
        self.owned = false;
        let id = self.id.clone();
        std::mem::forget(self);
        Ok(id)
    }

    /// Remembers the pods for [`World::attach`].
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_string(&(self.nodes, &self.programs, &self.pods))?;
        fs::write(self.root.join("world.json"), text)?;
        Ok(())
    }

    /// The folder that is API server and object store.
    pub fn cluster(&self) -> PathBuf {
        self.root.join("cluster")
    }

    /// Writes an object to the cluster folder.
    pub fn write(&self, file: &str, value: &Value) -> Result<()> {
        manifest::write(&self.cluster().join(file), value)
    }

    /// Copies a user's file into the cluster folder, in one step.
    pub fn apply(&self, file: &Path) -> Result<()> {
        let name = file.file_name().context("a file to apply has a name")?;
        let folder = self.cluster().join("user");
        fs::create_dir_all(&folder)?;
        let hidden = folder.join(".applied.tmp");
        fs::copy(file, &hidden).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(fs::rename(&hidden, folder.join(name))?)
    }

    /// The namespace between the nodes.
    pub fn underlay(&self) -> Place {
        match &self.istiod {
            Some(istiod) => istiod.underlay(),
            None => self.place("u", "underlay"),
        }
    }

    /// Name of a node.
    pub fn node_name(&self, index: u8) -> String {
        node_name(index)
    }

    /// The namespace of a node; `control` and agents run in such places, not in containers.
    pub fn node_place(&self, index: u8) -> Place {
        self.place(&format!("n{index}"), &format!("{}/agent", node_name(index)))
    }

    fn place(&self, suffix: &str, group: &str) -> Place {
        let base = cgroup::of_world(&self.id).unwrap_or_default();
        Place {
            netns: format!("{}{}{suffix}", janitor::NETNS_PREFIX, self.id),
            cgroup: base.join(group),
            container: false,
        }
    }

    /// Cgroup of a node: the agent attaches its programs here.
    pub fn node_cgroup(&self, index: u8) -> PathBuf {
        cgroup::of_world(&self.id).unwrap_or_default().join(node_name(index))
    }

    /// Makes a pod's namespace and says nothing to anybody yet.
    pub fn add_pod(&mut self, namespace: &str, name: &str, node: u8, account: &str) -> Result<Pod> {
        let number = self.free_number(node)?;
        let netns = format!("{}{}p{node}x{number}", janitor::NETNS_PREFIX, self.id);
        net::pod(&self.node_place(node).netns, &netns, node, number)?;
        let (four, six) = net::pod_addresses(node, number);
        let group = self.node_cgroup(node).join(format!("{namespace}.{name}"));
        fs::create_dir_all(&group)?;
        let pod = Pod {
            name: name.to_string(),
            namespace: namespace.to_string(),
            uid: format!("{}-{namespace}-{name}", self.id),
            node,
            service_account: account.to_string(),
            labels: BTreeMap::new(),
            netns,
            cgroup: group,
            ip: four.to_string(),
            ip6: six.to_string(),
            host_ip: net::node_address(node).to_string(),
        };
        self.pods.insert(format!("{namespace}/{name}"), pod.clone());
        Ok(pod)
    }

    /// The lowest number that no pod of a node has: addresses are used again, as on a real node.
    fn free_number(&self, node: u8) -> Result<u8> {
        let free = |number: &u8| {
            let ip = net::pod_addresses(node, *number).0.to_string();
            !self.pods.values().any(|pod| pod.node == node && pod.ip == ip)
        };
        (2..=254).find(free).with_context(|| format!("{} is full", node_name(node)))
    }

    /// File of a pod's object, below [`World::cluster`].
    pub fn pod_file(pod: &Pod) -> String {
        format!("pods/{}/{}.{}.yaml", pod.node_name(), pod.namespace, pod.name)
    }

    /// Deletes a pod as a kubelet does: its processes, its network, then its object.
    pub fn delete_pod(&mut self, namespace: &str, name: &str) -> Result<()> {
        let key = format!("{namespace}/{name}");
        let pod = self.pods.remove(&key).with_context(|| format!("no pod {key}"))?;
        self.running.remove(&key);
        cgroup::remove(&pod.cgroup)?;
        let number = pod.ip.rsplit('.').next().unwrap_or_default();
        // The kernel removes a namespace some time later; its name on the node must be free at once.
        shell::ip_in(&self.node_place(pod.node).netns, &format!("link del p{number}"))?;
        shell::ip(&format!("netns del {}", pod.netns))?;
        Ok(fs::remove_file(self.cluster().join(Self::pod_file(&pod)))?)
    }

    fn write_tokens(&self) -> Result<()> {
        let mut tokens = String::new();
        for index in 0..self.nodes {
            let token = format!("{}-{}", self.id, node_name(index));
            fs::write(self.token_file(&node_name(index)), &token)?;
            tokens.push_str(&format!("{token}: {}\n", node_name(index)));
        }
        fs::write(self.root.join("tokens.yaml"), tokens)?;
        Ok(())
    }

    /// File with a client's bearer token.
    pub fn token_file(&self, client: &str) -> PathBuf {
        self.root.join("tokens").join(client)
    }

    /// File of the control plane's root certificate.
    pub fn ca_root(&self) -> PathBuf {
        self.root.join("state/control/root-cert.pem")
    }

    /// Address of the control plane for its clients.
    pub fn control_url(&self) -> String {
        format!("https://{}:{CONTROL_PORT}", net::UNDERLAY)
    }

    /// Log file of a program of ours.
    pub fn log_file(&self, program: &str) -> PathBuf {
        self.root.join("logs").join(format!("{program}.log"))
    }

    /// Starts the control plane and waits until it is ready.
    pub fn start_control(&mut self) -> Result<()> {
        if let Some(mut istiod) = self.istiod.take() {
            let started = istiod.start(self);
            self.istiod = Some(istiod);
            return started;
        }
        let place = self.underlay();
        let program = self.programs.join("culvert-control");
        let mut command = place.command(&program.to_string_lossy())?;
        command.arg("--folder").arg(self.cluster());
        command.arg("--state-dir").arg(self.root.join("state/control"));
        command.arg("--tokens").arg(self.root.join("tokens.yaml"));
        command.args(["--listen", &format!("{}:{CONTROL_PORT}", net::UNDERLAY)]);
        command.args(["--admin", &format!("{}:{CONTROL_ADMIN}", net::UNDERLAY)]);
        command.arg("--admin-socket").arg(janitor::sockets(&self.id).join("control.sock"));
        self.control = Some(Process::spawn(&mut command, &self.log_file("control"))?);
        self.ready("control", Duration::from_secs(20), || self.control_get("/readyz").ok().map(drop))
    }

    /// Stops the control plane.
    pub fn stop_control(&mut self) {
        self.control = None;
        self.istiod.iter_mut().for_each(Istiod::stop);
    }

    /// Starts a node's agent and waits until it is ready.
    pub fn start_agent(&mut self, index: u8) -> Result<()> {
        self.spawn_agent(index)?;
        self.ready(&format!("agent-{}", node_name(index)), Duration::from_secs(30), || {
            self.agent_get(index, "/readyz").ok().map(drop)
        })
    }

    /// Starts a node's agent and waits for nothing.
    pub fn spawn_agent(&mut self, index: u8) -> Result<()> {
        let name = node_name(index);
        let bpffs = self.bpffs(index)?;
        let program = self.programs.join("culvert-agent");
        let mut command = self.node_place(index).command(&program.to_string_lossy())?;
        command.args(["--node", &name]);
        match &self.agent_kubeconfig {
            Some(path) => command.arg("--kubernetes").arg("--kubeconfig").arg(path),
            None => command.arg("--folder").arg(self.agent_folder.clone().unwrap_or_else(|| self.cluster())),
        };
        command.arg("--cgroup").arg(self.node_cgroup(index)).arg("--bpffs").arg(&bpffs);
        command.args(["--control", &self.control_url()]).arg("--ca-root").arg(self.ca_root());
        command.arg("--token-file").arg(self.token_file(&name));
        command.arg("--state-dir").arg(self.agent_state(index));
        command.args(["--admin", &format!("0.0.0.0:{AGENT_ADMIN}")]);
        command.arg("--admin-socket").arg(janitor::sockets(&self.id).join(format!("agent-{name}.sock")));
        command.args(["--instance-ip", &net::node_address(index).to_string()]);
        if self.istiod.is_some() {
            command.args(["--pod-name", &istiod::agent_pod(&name), "--pod-namespace", istiod::NAMESPACE]);
            command.args(["--control-name", istiod::SERVER_NAME]);
        }
        command.args(&self.agent_words).env("RUST_LOG", &self.agent_filter);
        let process = Process::spawn(&mut command, &self.log_file(&format!("agent-{name}")))?;
        self.agents.insert(index, process);
        Ok(())
    }

    /// A node's bpf file system, mounted.
    pub fn bpffs(&self, index: u8) -> Result<PathBuf> {
        let bpffs = self.root.join(format!("bpf-{}", node_name(index)));
        if !bpffs.exists() {
            fs::create_dir_all(&bpffs)?;
            shell::output(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs))?;
        }
        Ok(bpffs)
    }

    /// A node's agent's state folder.
    pub fn agent_state(&self, index: u8) -> PathBuf {
        self.root.join("state").join(node_name(index))
    }

    /// Process id of a node's agent.
    pub fn agent_pid(&self, index: u8) -> Option<u32> {
        self.agents.get(&index).map(Process::pid)
    }

    /// SIGKILL to a node's agent.
    pub fn kill_agent(&mut self, index: u8) {
        if let Some(mut agent) = self.agents.remove(&index) {
            agent.kill();
        }
    }

    /// SIGTERM to a node's agent; it drains.
    pub fn terminate_agent(&self, index: u8) {
        self.agents.get(&index).inspect(|agent| agent.ask_to_end());
    }

    /// Waits until a node's agent has ended by itself, and says how.
    pub fn agent_ended(&mut self, index: u8, limit: Duration) -> Result<ExitStatus> {
        let agent = self.agents.get_mut(&index).context("no agent runs on this node")?;
        let status = agent.ended(limit);
        self.agents.remove(&index);
        status
    }

    fn ready(&self, program: &str, limit: Duration, probe: impl FnMut() -> Option<()>) -> Result<()> {
        wait::until(limit, &format!("{program} to be ready"), probe)
            .with_context(|| format!("last lines of {program}:\n{}", self.tail(program)))
    }

    /// The last lines that a program of ours printed.
    pub fn tail(&self, program: &str) -> String {
        let text = fs::read_to_string(self.log_file(program)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// GET on a node agent's admin endpoint, from the node itself.
    pub fn agent_get(&self, index: u8, path: &str) -> Result<String> {
        get(&self.node_place(index), &format!("http://127.0.0.1:{AGENT_ADMIN}{path}"))
    }

    /// Status and text of a node agent's `/readyz`; status 0 when nobody answers.
    pub fn agent_readiness(&self, index: u8) -> Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{AGENT_ADMIN}/readyz");
        let mut curl = self.node_place(index).command("curl")?;
        let out = curl.args(["-s", "--max-time", "5", "-w", "\n%{http_code}", &url]).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').context("curl prints a status")?;
        Ok((status.parse()?, body.to_string()))
    }

    /// GET on the control plane's admin endpoint.
    pub fn control_get(&self, path: &str) -> Result<String> {
        get(&self.underlay(), &format!("http://{}:{CONTROL_ADMIN}{path}", net::UNDERLAY))
    }
}

fn get(place: &Place, url: &str) -> Result<String> {
    shell::output(place.command("curl")?.args(["-sSf", "--max-time", "5", url]))
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        self.running.clear();
        self.agents.clear();
        self.control = None;
        self.istiod = None;
        if let Err(error) = janitor::remove(&self.id) {
            eprintln!("world {} could not be removed: {error:#}", self.id);
        }
    }
}
