//! The one client of the API server that everything shares.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// An API server that does not take a connection in this time is away.
const CONNECT: Duration = Duration::from_secs(5);

/// A client of the cluster that this process runs in, or of the one that a kubeconfig file names. Makes
/// no request yet: an API server that is away is no error.
///
/// # Errors
/// There is no in-cluster configuration, or the file cannot be read or used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let mut config = match kubeconfig {
        None => Config::incluster().context(
            "not in a pod of a cluster (no service account of Kubernetes is mounted): give --kubeconfig FILE",
        )?,
        Some(file) => {
            let named = || format!("kubeconfig {} cannot be used", file.display());
            let read = Kubeconfig::read_from(file).with_context(named)?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &options).await.with_context(named)?
        }
    };
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).context("the client of the API server cannot be made")
}
