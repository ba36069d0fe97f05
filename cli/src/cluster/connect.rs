//! Reaching the API server as kubectl does.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Cluster;
use crate::exit::Failure;

/// Limit of connecting to the API server.
const CONNECT: Duration = Duration::from_secs(5);

/// Which cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Reach {
    /// Kubeconfig file; without it that of KUBECONFIG or ~/.kube/config, else the pod's own account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig file.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// A client for the cluster. Nothing is asked yet.
///
/// # Errors
/// There is no configuration, or it cannot be used.
pub async fn connect(reach: &Reach) -> Result<Cluster, Failure> {
    let options = KubeConfigOptions { context: reach.context.clone(), ..KubeConfigOptions::default() };
    let next = "name a kubeconfig with --kubeconfig FILE or KUBECONFIG, and a context of it with --context";
    let fail = |reason: String| Failure::new(format!("no configuration of a cluster: {reason}"), next);
    let mut config = match (&reach.kubeconfig, &reach.context) {
        (Some(file), _) => {
            let read = Kubeconfig::read_from(file).map_err(|e| fail(e.to_string()))?;
            Config::from_custom_kubeconfig(read, &options).await.map_err(|e| fail(e.to_string()))?
        }
        (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|e| fail(e.to_string()))?,
        (None, None) => Config::infer().await.map_err(|e| fail(e.to_string()))?,
    };
    config.connect_timeout = Some(CONNECT);
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|e| fail(e.to_string()))?;
    Ok(Cluster::new(client, server))
}
