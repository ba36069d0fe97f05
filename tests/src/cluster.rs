//! A Kubernetes cluster of the real programs on this machine: API server and etcd, and as asked for
//! controller manager, scheduler, and nodes with kubelet and containerd.
//!
//! Everything runs in network namespaces and cgroups that carry the id of a claimed world (see
//! [`crate::janitor`]), so that clusters stand side by side and a killed run leaves nothing behind.

pub mod access;
pub mod audit;
pub mod control_plane;
pub mod crds;
mod dns;
pub mod kubectl;
pub mod node;
mod node_files;
pub mod pki;
pub mod programs;
pub mod registry;
mod rollout;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::{
    cgroup, janitor, net,
    process::{Place, Process},
};
use control_plane::ControlPlane;
use crds::Crds;
use node::Node;
use pki::Pki;
use programs::Programs;

/// Port of the API server on [`net::UNDERLAY`], the address of the control plane's namespace.
pub const API_PORT: u16 = 6443;

/// How long the nodes may take to be ready once they run, on a busy machine.
const NODES_READY: Duration = Duration::from_secs(90);

/// What to ask a cluster for.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Whether controller manager and scheduler run. Without them nothing makes pods, default service
    /// accounts or endpoint slices, and a namespace never goes away.
    pub controllers: bool,
    /// Which custom resources to install.
    pub crds: Vec<Crds>,
    /// How many nodes; they need the controllers.
    pub nodes: u8,
    /// Folder of the harness's own programs.
    pub helpers: PathBuf,
    /// Archives of the images that the nodes may fetch.
    pub images: Vec<PathBuf>,
}

/// See the module's description. Removed when dropped.
pub struct Cluster {
    /// Unique on this machine.
    pub id: String,
    /// Its folder.
    pub root: PathBuf,
    /// Certificates and kubeconfigs.
    pub pki: Pki,
    /// Where the programs are.
    pub programs: Programs,
    /// Nodes by their number.
    pub nodes: BTreeMap<u8, Node>,
    shape: Shape,
    plane: ControlPlane,
    running: Vec<Process>,
}

impl Cluster {
    /// API server and etcd alone, with these custom resources.
    pub fn api_server(crds: &[Crds]) -> Result<Self> {
        Self::start(&Shape { crds: crds.to_vec(), ..Shape::default() })
    }

    /// Cleans up after killed runs and starts a cluster's control plane.
    pub fn start(shape: &Shape) -> Result<Self> {
        let programs = Programs::find().context("no programs of a cluster: run cargo xtask setup")?;
        janitor::sweep()?;
        let id = janitor::claim()?;
        let root = janitor::folder(&id);
        let pki = Pki::make(&root.join("pki"))?;
        // Owned from here on: whatever fails now is removed when this value is dropped.
        let mut cluster = Self {
            id,
            root,
            pki,
            programs,
            nodes: BTreeMap::new(),
            shape: shape.clone(),
            plane: ControlPlane::default(),
            running: Vec::new(),
        };
        for folder in ["logs", "state", "kubectl"] {
            fs::create_dir_all(cluster.root.join(folder))?;
        }
        net::underlay(&cluster.place().netns)?;
        cluster.start_etcd()?;
        cluster.start_api_server()?;
        if shape.controllers {
            cluster.start_controllers()?;
        }
        for crds in &shape.crds {
            cluster.install_crds(*crds)?;
        }
        if shape.nodes > 0 {
            cluster.start_registry(&shape.images)?;
            cluster.install_dns()?;
            for index in 0..shape.nodes {
                cluster.add_node(index)?;
            }
            cluster.nodes_ready(NODES_READY)?;
            cluster.dns_ready()?;
        }
        Ok(cluster)
    }

    /// Leaves everything running when this value is dropped; [`janitor::remove`] takes it down.
    pub fn keep(self) -> Result<String> {
        fs::write(self.root.join(kubectl::WORDS), serde_json::to_string(&self.kubectl_words())?)?;
        fs::write(self.root.join("keep"), "")?;
        let id = self.id.clone();
        // Dropping would end the programs.
        std::mem::forget(self);
        Ok(id)
    }

    /// Where the control plane runs, and where everything runs that wants to reach it.
    pub fn place(&self) -> Place {
        self.place_of("control-plane")
    }

    /// The control plane's network with a cgroup of its own, for a program of a test.
    pub fn place_of(&self, group: &str) -> Place {
        Place {
            netns: format!("{}{}u", janitor::NETNS_PREFIX, self.id),
            cgroup: cgroup::of_world(&self.id).unwrap_or_default().join(group),
            container: false,
        }
    }

    /// Starts a program beside the control plane; it ends with the cluster at the latest.
    pub fn run(&mut self, name: &str, program: &str, words: &[&str]) -> Result<()> {
        let mut command = self.place_of(name).command(program)?;
        let process = Process::spawn(command.args(words), &self.log_file(name))?;
        self.running.push(process);
        Ok(())
    }

    /// Log file of a program.
    pub fn log_file(&self, program: &str) -> PathBuf {
        self.root.join("logs").join(format!("{program}.log"))
    }

    /// The last lines that a program printed.
    pub fn tail(&self, program: &str) -> String {
        let text = fs::read_to_string(self.log_file(program)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.running.clear();
        self.nodes.clear();
        self.plane = ControlPlane::default();
        if let Err(error) = janitor::remove(&self.id) {
            eprintln!("cluster {} could not be removed: {error:#}", self.id);
        }
    }
}
