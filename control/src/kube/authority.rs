//! Everything about who may ask and what is written on Kubernetes, as one piece for the server: CA, callers,
//! lease, trust bundle, root rotation, waypoints.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::task::JoinSet;

use super::{
    bundle, lease,
    provision::{KubeProvisioner, Settings, provision},
    root, rotation, tokens, webhook,
};
use crate::{auth::Review, ca::Authority};

/// Name of the control plane's Service, under which clients know the server.
const SERVICE: &str = "culvert-control";

/// Flags of a control plane on Kubernetes.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Service account of node agents, `namespace/name`; may be given several times.
    #[arg(long = "agent-account", default_values = ["culvert-system/culvert-agent", "istio-system/ztunnel"])]
    pub agent_accounts: Vec<tokens::Account>,
    /// Image of the waypoints that are made.
    #[arg(long, default_value = concat!("culvert.local/waypoint:", env!("CARGO_PKG_VERSION")))]
    pub waypoint_image: String,
    /// Pull policy of that image: Always, IfNotPresent or Never.
    #[arg(long, default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub waypoint_pull_policy: String,
    /// Address of the control plane for waypoints; its Service's when not given.
    #[arg(long)]
    pub waypoint_control: Option<String>,
    /// Seconds that each phase of a root's rotation lasts. Safe without thinking: the default, the longest
    /// life of a certificate and an hour. Culvert's own agents and waypoints renew when the bundle changes:
    /// then a few minutes do.
    #[arg(long, default_value_t = rotation::OVERLAP.as_secs(), value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub root_overlap: u64,
}

/// The mesh that is served, and from where.
#[derive(Debug, Clone)]
pub struct Place {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Name of this replica's pod.
    pub pod: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Cluster id.
    pub cluster: String,
}

/// Names that clients know the server by.
pub fn names(namespace: &str) -> Vec<String> {
    let short = format!("{SERVICE}.{namespace}");
    vec![format!("{short}.svc"), format!("{short}.svc.cluster.local"), short]
}

/// What the server takes.
pub struct Started {
    /// The CA in use.
    pub authority: Authority,
    /// Knows callers by their tokens.
    pub reviewer: Arc<dyn Review>,
    /// Who writes.
    pub lease: lease::Lease,
    /// Makes waypoints.
    pub provisioner: KubeProvisioner,
    /// What runs in the background until this is dropped.
    pub tasks: JoinSet<()>,
}

/// Starts everything; the CA is there when the API server has said so.
pub fn start(client: Client, flags: &Flags, at: Place) -> Started {
    let root = root::start(client.clone(), &at.namespace, &at.trust_domain);
    let lease = lease::start(client.clone(), &at.namespace, lease::identity(&at.pod));
    let (provisioner, wanted, tell) = KubeProvisioner::new();
    let control = format!("https://{SERVICE}.{}.svc:15012", at.namespace);
    let settings = Settings {
        image: flags.waypoint_image.clone(),
        pull_policy: flags.waypoint_pull_policy.clone(),
        control: flags.waypoint_control.clone().unwrap_or(control),
        trust_domain: at.trust_domain.clone(),
        cluster: at.cluster,
    };
    let overlap = Duration::from_secs(flags.root_overlap);
    let held = || lease.held.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(root.following);
    tasks.spawn(bundle::distribute(client.clone(), root.authority.clone(), held()));
    tasks.spawn(webhook::trust(client.clone(), root.authority.clone(), held()));
    tasks.spawn(rotation::rotate(client.clone(), at.namespace, at.trust_domain, overlap, root.own, held()));
    tasks.spawn(provision(client.clone(), settings, wanted, tell, held()));
    let reviewer = tokens::reviews(client, flags.agent_accounts.iter().cloned().collect());
    Started { authority: root.authority, reviewer, lease, provisioner, tasks }
}
