//! Options of the commands that install, change, remove and check a mesh on Kubernetes.

use std::path::PathBuf;

use clap::{Args as Group, Subcommand};

use crate::{cluster::connect::Reach, manifest};

/// What to install.
#[derive(Debug, Clone, Default, Group)]
pub struct Choice {
    /// Sets a setting, NAME=VALUE; repeatable. docs/settings.md lists them.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// File of settings, as the Helm chart's values.yaml.
    #[arg(long, value_name = "FILE")]
    pub values: Option<PathBuf>,
}

/// How to carry it out.
#[derive(Debug, Clone, Group)]
pub struct Carry {
    /// Says what would change, as the API server sees it, and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Waits until every part is ready.
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Goes on although the checks before it found errors.
    #[arg(long)]
    pub skip_check: bool,
    /// Makes no CustomResourceDefinitions. Without it those of Istio's kinds that are missing are made, and
    /// none that is there is touched.
    #[arg(long)]
    pub skip_crds: bool,
}

/// Where Culvert's own programs are.
#[derive(Debug, Clone, Group)]
pub struct Place {
    /// Namespace of Culvert's own programs.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = manifest::NAMESPACE)]
    pub namespace: String,
    /// Which cluster.
    #[command(flatten)]
    pub reach: Reach,
}

/// Options of `install`.
#[derive(Debug, Group)]
pub struct Install {
    /// demo: one replica, small requests; production: two replicas, a disruption budget, priorities.
    #[arg(long, value_name = "PROFILE", default_value = "demo")]
    pub profile: String,
    /// Where it runs, if special: k3s, kind, gke, eks, aks, openshift.
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Settings.
    #[command(flatten)]
    pub choice: Choice,
    /// How.
    #[command(flatten)]
    pub carry: Carry,
    /// Where.
    #[command(flatten)]
    pub place: Place,
}

/// Options of `upgrade`.
#[derive(Debug, Group)]
pub struct Upgrade {
    /// Starts from the defaults instead of the settings of the installation.
    #[arg(long)]
    pub reset_values: bool,
    /// Settings.
    #[command(flatten)]
    pub choice: Choice,
    /// How.
    #[command(flatten)]
    pub carry: Carry,
    /// Where.
    #[command(flatten)]
    pub place: Place,
}

/// Options of `uninstall`.
#[derive(Debug, Group)]
pub struct Uninstall {
    /// Also when namespaces or pods are still labelled for the mesh: they talk plaintext afterwards.
    #[arg(long)]
    pub with_enrolled: bool,
    /// Only removes the agents, and programs, tables and CNI plugin from every node: what has to be done
    /// before `helm uninstall`.
    #[arg(long)]
    pub nodes_only: bool,
    /// Only cleans this node, which the agents' selector does not have any more; the mesh stays on the
    /// others. Repeatable.
    #[arg(long = "node", value_name = "NODE", conflicts_with = "nodes_only")]
    pub nodes: Vec<String>,
    /// Says what would be removed.
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds to wait at most for the nodes.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Where.
    #[command(flatten)]
    pub place: Place,
}

/// Options of `check`.
#[derive(Debug, Group)]
pub struct Check {
    /// Probes this machine as a node, without asking a cluster.
    #[arg(long)]
    pub node: bool,
    /// Root of the file system that `--node` looks at.
    #[arg(long, value_name = "FOLDER", default_value = "/", requires = "node", hide = true)]
    pub root: PathBuf,
    /// Only what an installation needs, also when Culvert is there.
    #[arg(long)]
    pub before: bool,
    /// Looks again until there is no error: pods that have just started take a moment.
    #[arg(long, conflicts_with = "node")]
    pub wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "wait")]
    pub timeout: u64,
    /// Where.
    #[command(flatten)]
    pub place: Place,
}

/// Options of `manifests`.
#[derive(Debug, Group)]
pub struct Manifests {
    /// Folder below which `manifests/` and pages of `docs/` are written.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

/// Options of `waypoint`.
#[derive(Debug, Group)]
pub struct Waypoint {
    /// What to do.
    #[command(subcommand)]
    pub action: WaypointAction,
}

/// What to do with waypoints.
#[derive(Debug, Subcommand)]
pub enum WaypointAction {
    /// Makes a waypoint, or changes whose traffic it takes.
    Apply(WaypointApply),
    /// Every waypoint, and who uses it.
    List(WaypointList),
    /// Removes a waypoint.
    Delete(WaypointOne),
    /// Whether a waypoint is ready, and what to do if not.
    Status(WaypointOne),
}

/// Options of `waypoint apply`.
#[derive(Debug, Group)]
pub struct WaypointApply {
    /// Which.
    #[command(flatten)]
    pub one: WaypointOne,
    /// Whose traffic it takes: service, workload, all or none.
    #[arg(long = "for", value_name = "WHAT", default_value = "service",
          value_parser = ["service", "workload", "all", "none"])]
    pub traffic: String,
    /// Labels the namespace, so that all its services use the waypoint.
    #[arg(long)]
    pub enroll_namespace: bool,
    /// Waits until it is ready.
    #[arg(long)]
    pub wait: bool,
}

/// A waypoint.
#[derive(Debug, Clone, Group)]
pub struct WaypointOne {
    /// Its name.
    #[arg(default_value = "waypoint")]
    pub name: String,
    /// Its namespace.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// Which cluster.
    #[command(flatten)]
    pub reach: Reach,
}

/// Options of `waypoint list`.
#[derive(Debug, Group)]
pub struct WaypointList {
    /// Only of this namespace.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Which cluster.
    #[command(flatten)]
    pub reach: Reach,
}
