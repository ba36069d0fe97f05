//! The command line.

pub mod lifecycle;

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};

use crate::{cluster::connect::Reach, endpoint::Endpoint, manifest::NAMESPACE};

/// Folder of the sockets of everything that runs on this machine.
pub const RUN_DIR: &str = "/run/culvert";

/// Installs a Culvert mesh on Kubernetes, and asks one: what is wrong, what would happen, how it is.
///
/// Only install, upgrade, uninstall and waypoint change anything. Exit status: 0 all is well, 1 something is not (an error, a refusal, a part that is not ready),
/// 2 the question could not be answered.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Answer in JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// No colours, also on a terminal.
    #[arg(long, global = true, env = "NO_COLOR", hide_env_values = true,
          value_parser = FalseyValueParser::new())]
    pub no_color: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every mistake in a folder of YAML, with file, line, object, field, reason and remedy.
    Analyze(Analyze),
    /// Every decision about a connection, in order, with the object and kernel entry behind it.
    Explain(Explain),
    /// Which parts of the mesh run, whether they are ready, and what to do if not.
    Status(Status),
    /// Whether a cluster or this machine is fit for Culvert, and whether what is installed works.
    Check(lifecycle::Check),
    /// Installs Culvert on a Kubernetes cluster.
    Install(lifecycle::Install),
    /// Changes the version or settings of an installation.
    Upgrade(lifecycle::Upgrade),
    /// Removes Culvert from a cluster, nodes first.
    Uninstall(lifecycle::Uninstall),
    /// Makes, lists, removes and looks at waypoints.
    Waypoint(lifecycle::Waypoint),
    /// Writes the manifests and pages that are made from this program.
    #[command(hide = true)]
    Manifests(lifecycle::Manifests),
}

/// Options of `analyze`.
#[derive(Debug, Group)]
pub struct Analyze {
    /// Folder of YAML or JSON files; folders inside it count, names that start with a dot do not.
    #[arg(short = 'f', long = "folder", value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Findings from which on the exit status is 1.
    #[arg(long, value_name = "SEVERITY", default_value = "error")]
    pub fail_on: FailOn,
    /// Settings of the mesh.
    #[command(flatten)]
    pub settings: Settings,
}

/// What the control plane is started with and a folder does not say.
#[derive(Debug, Clone, Default, Group)]
pub struct Settings {
    /// Namespace of mesh-wide objects, as the control plane has it [default: istio-system].
    #[arg(long, value_name = "NAMESPACE", requires = "folder")]
    pub root_namespace: Option<String>,
    /// Trust domain of the mesh, as the control plane has it [default: cluster.local].
    #[arg(long, value_name = "DOMAIN", requires = "folder")]
    pub trust_domain: Option<String>,
    /// Range for services without an address, as the control plane has it [default: 10.96.0.0/16].
    #[arg(long, value_name = "CIDR", requires = "folder")]
    pub service_cidr: Option<ipnet::Ipv4Net>,
}

/// From which severity on a folder fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Documents that are refused.
    Error,
    /// Documents that apply only in part, too.
    Warning,
}

/// Options of `explain`.
#[derive(Debug, Group)]
pub struct Explain {
    /// The client: a pod's name, NAMESPACE/NAME, the name of its Deployment, or a workload's uid.
    #[arg(value_name = "SRC")]
    pub source: String,
    /// What it connects to: a service (short, with namespace, or full name), a pod or an address.
    #[arg(value_name = "DST:PORT")]
    pub destination: String,
    /// Explain from a folder of YAML instead of a running mesh.
    #[arg(short = 'f', long = "folder", value_name = "FOLDER", conflicts_with = "world")]
    pub folder: Option<PathBuf>,
    /// Settings of the mesh.
    #[command(flatten)]
    pub settings: Settings,
    /// Where to ask.
    #[command(flatten)]
    pub mesh: Mesh,
}

/// Options of `status`.
#[derive(Debug, Group)]
pub struct Status {
    /// Where to ask.
    #[command(flatten)]
    pub mesh: Mesh,
}

/// Which running mesh to ask; without options, the one whose sockets are in the run folder.
#[derive(Debug, Clone, Group)]
pub struct Mesh {
    /// Admin endpoints of agents, `http://HOST:PORT` or `unix:PATH`; repeat it or use commas.
    #[arg(
        long,
        value_name = "ENDPOINT",
        env = "CULVERT_AGENT",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub agent: Vec<Endpoint>,
    /// Admin endpoint of the control plane, `http://HOST:PORT` or `unix:PATH`.
    #[arg(long, value_name = "ENDPOINT", env = "CULVERT_CONTROL", hide_env_values = true)]
    pub control: Option<Endpoint>,
    /// Which mesh, when several run on this machine: a folder in the run folder.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["agent", "control"])]
    pub world: Option<String>,
    /// Folder with the sockets: `<world>/control.sock` and `<world>/agent-<node>.sock`.
    #[arg(long, value_name = "FOLDER", env = "CULVERT_RUN_DIR", hide_env_values = true,
          default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// The mesh of a Kubernetes cluster; also asked when nothing runs on this machine.
    #[arg(long, short = 'k', conflicts_with_all = ["agent", "control", "world"])]
    pub kubernetes: bool,
    /// Namespace of Culvert's own programs there.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = NAMESPACE)]
    pub namespace: String,
    /// Which cluster.
    #[command(flatten)]
    pub reach: Reach,
}
