//! `culvert-control`: the control plane.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use control::{ca::Given, compile::Options, server};

/// The control plane of Culvert: the API server or a folder of YAML in, configuration and certificates out.
#[derive(Debug, Parser)]
#[command(name = "culvert-control", version)]
struct Args {
    /// Cluster folder.
    #[arg(long, required_unless_present = "kubernetes")]
    folder: Option<PathBuf>,
    /// Watch the API server, alone or beside a folder.
    #[arg(long)]
    kubernetes: bool,
    /// How to reach it; without this as a pod of the cluster.
    #[arg(long, requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "culvert-control")]
    pod_name: String,
    /// Namespace of this pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "culvert-system")]
    pod_namespace: String,
    #[command(flatten)]
    on_kubernetes: control::kube::authority::Flags,
    /// Folder for the CA's key and the virtual addresses.
    #[arg(long)]
    state_dir: PathBuf,
    /// YAML file of bearer tokens: `token: node` or `token: namespace/serviceaccount`.
    #[arg(long, required_unless_present = "kubernetes")]
    tokens: Option<PathBuf>,
    /// Address of configuration and certificates (TLS).
    #[arg(long, default_value = "0.0.0.0:15012")]
    listen: SocketAddr,
    /// Address of the admin endpoint.
    #[arg(long, default_value = "127.0.0.1:15014")]
    admin: SocketAddr,
    /// Unix socket that serves the admin endpoint too; made at start, removed at exit.
    #[arg(long)]
    admin_socket: Option<PathBuf>,
    /// More names or addresses of this server.
    #[arg(long)]
    name: Vec<String>,
    /// Range for services without an address.
    #[arg(long, default_value_t = control::SERVICE_CIDR)]
    service_cidr: ipnet::Ipv4Net,
    /// Cluster id.
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    /// Trust domain.
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Namespace of mesh-wide policies.
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// Gateways of class `istio-waypoint` make waypoints here too: only where istiod is absent.
    #[arg(long)]
    istio_waypoint_class: bool,
    /// Certificate of a given intermediate CA.
    #[arg(long, requires_all = ["ca_key", "root_cert"], conflicts_with = "kubernetes")]
    ca_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    ca_key: Option<PathBuf>,
    /// Certificates between it and the root.
    #[arg(long)]
    ca_chain: Option<PathBuf>,
    /// Root bundle.
    #[arg(long)]
    root_cert: Option<PathBuf>,
}

impl Args {
    fn config(self) -> server::Config {
        let ca = match (self.ca_cert, self.ca_key, self.root_cert) {
            (Some(cert), Some(key), Some(root)) => Some(Given { cert, key, chain: self.ca_chain, root }),
            _ => None,
        };
        let kubernetes = self.kubernetes.then_some(server::Kubernetes {
            kubeconfig: self.kubeconfig,
            pod: self.pod_name,
            namespace: self.pod_namespace,
            flags: self.on_kubernetes,
        });
        server::Config {
            folder: self.folder,
            kubernetes,
            state: self.state_dir,
            tokens: self.tokens,
            listen: self.listen,
            admin: self.admin,
            admin_socket: self.admin_socket,
            names: self.name,
            service_cidr: self.service_cidr,
            ca,
            options: Options {
                cluster: self.cluster.into(),
                trust_domain: self.trust_domain.into(),
                root_namespace: self.root_namespace.into(),
                istio_waypoints: self.istio_waypoint_class,
            },
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        // The client of the API server logs each failed request; what matters of them is logged here.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off,kube_runtime=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    server::run(Args::parse().config()).await
}
