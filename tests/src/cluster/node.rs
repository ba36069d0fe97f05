//! A node: a machine of its own by its namespaces, with containerd, kubelet and kube-proxy.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Cluster, node_files};
use crate::{
    cgroup, janitor, net,
    process::{Place, Process},
    shell, wait,
};

/// How long containerd may take to answer after a node was started.
const BOOT: Duration = Duration::from_secs(60);
/// Where a node sees the cluster's programs.
pub const BIN: &str = "/opt/cluster/bin";

/// See the module's description. Its processes end when it is dropped; its disk stays.
pub struct Node {
    /// Its number, from 0 on.
    pub index: u8,
    /// Its name in the cluster.
    pub name: String,
    /// Its own network and cgroup, seen from the machine.
    pub place: Place,
    /// Its disk.
    pub state: PathBuf,
    init: Process,
    /// Process id of its first process, seen from the machine.
    first: u32,
}

/// Name of a node.
pub fn name(index: u8) -> String {
    format!("node-{}", char::from(b'a' + index))
}

impl Node {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        net::node_address(self.index)
    }

    /// A command inside the node, in all of its namespaces and in its cgroup.
    pub fn command(&self, program: &str) -> Result<Command> {
        let procs = self.place.cgroup.join("init/cgroup.procs");
        let enter = format!("nsenter --target {} --mount --uts --ipc --net --pid --cgroup --", self.first);
        let script = format!("echo $$ > {} && exec {enter} \"$@\"", procs.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", program]);
        command.env("PATH", format!("{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"));
        Ok(command)
    }

    /// Runs a program to its end inside the node and returns what it printed.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let (program, args) = words.split_first().context("a command has a program")?;
        shell::output(self.command(program)?.args(args))
    }

    /// The last lines that a program of the node printed.
    pub fn tail(&self, program: &str) -> String {
        let text =
            fs::read_to_string(self.state.join(format!("var/log/node/{program}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Whether its first process still runs.
    pub fn is_up(&mut self) -> bool {
        self.init.is_running()
    }
}

impl Cluster {
    /// Makes a node and boots it; [`Cluster::nodes_ready`] comes after.
    pub fn add_node(&mut self, index: u8) -> Result<()> {
        let name = name(index);
        let address = net::node_address(index);
        self.pki.node(&name, address.into())?;
        let state = janitor::disk(&self.id).join(&name);
        node_files::write(&state, &name, index, &self.pki)?;
        let node = self.boot(index, name, state)?;
        self.nodes.insert(index, node);
        Ok(())
    }

    /// Cuts a node's power: every process, mount and network of it is gone at once, its disk stays.
    pub fn power_off(&mut self, index: u8) -> Result<()> {
        let node = self.nodes.remove(&index).context("no such node")?;
        let place = node.place.clone();
        drop(node);
        cgroup::remove(&place.cgroup)?;
        shell::ip_in(&self.place().netns, &format!("link del n{index}"))?;
        shell::ip(&format!("netns del {}", place.netns)).map(drop)
    }

    /// Boots a node whose power was cut.
    pub fn power_on(&mut self, index: u8) -> Result<()> {
        let name = name(index);
        let state = janitor::disk(&self.id).join(&name);
        let node = self.boot(index, name, state)?;
        self.nodes.insert(index, node);
        Ok(())
    }

    fn boot(&self, index: u8, name: String, state: PathBuf) -> Result<Node> {
        let netns = format!("{}{}n{index}", janitor::NETNS_PREFIX, self.id);
        let underlay = self.place().netns;
        net::machine(&underlay, &netns, index, self.shape.nodes)?;
        let cgroup = cgroup::of_world(&self.id)?.join(&name);
        let place = Place { netns, cgroup, container: false };
        let helper = self.shape.helpers.join("culvert-node");
        ensure!(helper.is_file(), "{} is not built", helper.display());
        fs::copy(&helper, state.join("opt/cluster/culvert-node"))?;
        let plan = json!({"hostname": name, "state": state,
            "binds": [[self.programs.folder(), BIN]],
            "programs": node_files::programs(index, &name)});
        let file = state.join("plan.json");
        fs::write(&file, plan.to_string())?;
        let mut command = place.command("unshare")?;
        command.args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--mount-proc"]);
        command.args(["--kill-child", "--propagation", "private"]);
        command.arg(&helper).arg("init").arg(&file);
        let init = Process::spawn(&mut command, &self.log_file(&name))?;
        let children = format!("/proc/{0}/task/{0}/children", init.pid());
        let first = wait::until(BOOT, "a node's first process", || {
            let text = fs::read_to_string(&children).ok()?;
            let pid: u32 = text.split_whitespace().next()?.parse().ok()?;
            // Before that it is still the tool that makes the namespaces.
            place.cgroup.join("init").is_dir().then_some(pid)
        });
        let first = first.with_context(|| format!("last lines of {name}:\n{}", self.tail(&name)))?;
        let node = Node { index, name, place, state, init, first };
        wait::until(BOOT, "containerd", || node.exec(&["ctr", "version"]).ok().map(drop))
            .with_context(|| format!("last lines of containerd:\n{}", node.tail("containerd")))?;
        Ok(node)
    }

    /// Waits until every node is ready.
    pub fn nodes_ready(&self, limit: Duration) -> Result<()> {
        let wanted = usize::from(self.shape.nodes);
        let ready = self.wait_for(limit, "the nodes to be ready", &["nodes"], |list| {
            let items = list["items"].as_array()?;
            let ready = items.iter().filter(|node| is_ready(node)).count();
            (ready == wanted).then_some(())
        });
        ready.with_context(|| {
            let tails = self.nodes.values().map(|node| format!("{}:\n{}", node.name, node.tail("kubelet")));
            tails.collect::<Vec<_>>().join("\n")
        })
    }
}

impl Node {
    /// Loads image archives, named by the machine's paths.
    pub fn import(&self, archives: &[PathBuf]) -> Result<()> {
        for archive in archives {
            let file =
                fs::File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
            // By standard input: the node does not see the machine's folders.
            let mut command = self.command("ctr")?;
            command.args(["-n", "k8s.io", "images", "import", "--local", "-"]).stdin(file);
            let out = command.output().context("cannot start ctr")?;
            let said = String::from_utf8_lossy(&out.stderr);
            ensure!(
                out.status.success(),
                "{}: cannot import {}: {}",
                self.name,
                archive.display(),
                said.trim()
            );
        }
        Ok(())
    }
}

fn is_ready(node: &serde_json::Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
