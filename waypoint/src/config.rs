//! Command line and environment.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, sync::Arc};

use clap::Parser;
use mesh_core::model::{Workload, WorkloadUid};

use crate::world::Me;

/// Culvert's waypoint.
#[derive(Debug, Clone, Parser)]
#[command(name = "culvert-waypoint", version)]
pub struct Config {
    /// Control plane, `https://host:port`: configuration and certificates.
    #[arg(long, env = "CULVERT_CONTROL")]
    pub control: String,
    /// PEM file with the roots that the control plane's certificate must chain to.
    #[arg(long, env = "CULVERT_CA_ROOT")]
    pub ca_root: Option<PathBuf>,
    /// Name to verify in the control plane's certificate instead of the url's host.
    #[arg(long, env = "CULVERT_CONTROL_NAME")]
    pub control_name: Option<String>,
    /// File with the bearer token.
    #[arg(long, env = "CULVERT_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Namespace of the waypoint.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of the waypoint: its Gateway, Service and Deployment.
    #[arg(long, env = "CULVERT_WAYPOINT_NAME", default_value = "waypoint")]
    pub name: String,
    /// Its service account; the waypoint's name when not given.
    #[arg(long, env = "SERVICE_ACCOUNT")]
    pub service_account: Option<String>,
    /// Name of its pod; the waypoint's name when not given.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Address of its pod.
    #[arg(long, env = "INSTANCE_IP", default_value = "127.0.0.1")]
    pub pod_ip: IpAddr,
    /// Node that it runs on.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// Trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Cluster id.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster: String,
    /// HBONE listener.
    #[arg(long, env = "CULVERT_LISTEN", default_value = "0.0.0.0:15008")]
    pub listen: SocketAddr,
    /// Metrics, readiness and health.
    #[arg(long, env = "CULVERT_ADMIN", default_value = "0.0.0.0:15020")]
    pub admin: SocketAddr,
    /// Unix socket that serves the admin endpoints too; made at start, removed at exit.
    #[arg(long, env = "CULVERT_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Folder for the last good configuration, which a start without control plane uses; kept nowhere
    /// when not given.
    #[arg(long, env = "CULVERT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Worker threads.
    #[arg(long, env = "CULVERT_WORKERS", default_value_t = 1)]
    pub workers: usize,
    /// Seconds for which new connections are still accepted after the signal to stop: until agents know that
    /// this waypoint ends.
    #[arg(long, env = "CULVERT_LINGER_SECONDS", default_value_t = 0)]
    pub linger_seconds: u64,
    /// Seconds that a drain may take.
    #[arg(long, env = "CULVERT_DRAIN_SECONDS", default_value_t = 5)]
    pub drain_seconds: u64,
}

impl Config {
    /// File of the last good configuration.
    pub fn cache(&self) -> Option<PathBuf> {
        self.state_dir.as_ref().map(|folder| folder.join("snapshot"))
    }

    /// What the waypoint knows of itself before the control plane tells more.
    pub fn me(&self) -> Me {
        let pod = self.pod_name.as_deref().unwrap_or(&self.name);
        let uid = WorkloadUid::pod(&self.cluster, &self.namespace, pod);
        let mut workload = Workload::new(uid, self.namespace.as_str(), pod);
        workload.addresses = vec![self.pod_ip];
        workload.trust_domain = self.trust_domain.as_str().into();
        workload.service_account = self.service_account.as_deref().unwrap_or(&self.name).into();
        workload.node = self.node.as_str().into();
        workload.cluster = self.cluster.as_str().into();
        workload.workload_name = self.name.as_str().into();
        workload.canonical_name = self.name.as_str().into();
        Me {
            namespace: self.namespace.as_str().into(),
            name: self.name.as_str().into(),
            workload: Arc::new(workload),
        }
    }
}
