//! A control plane on Kubernetes: the API server as a source, what is written to it, and the CA that it keeps.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};

use super::{Config, Kubernetes};
use crate::{
    ca::{Authority, Ca},
    kube::{
        self,
        authority::{self, Place, Started},
        client,
        health::Health,
        state::State,
        write::Writer,
    },
    metrics::Metrics,
    provision::Problems,
    publish::Published,
    shelf::Shelf,
    source::api::Change,
};

/// The API server and what was started there.
pub(super) struct Cluster {
    client: ::kube::Client,
    /// CA, callers, lease, waypoints.
    pub(super) started: Started,
}

impl Cluster {
    /// Starts what the server takes; makes no request that it waits for.
    ///
    /// # Errors
    /// The API server's address is not known.
    pub(super) async fn start(settings: &Kubernetes, config: &Config) -> Result<Self> {
        std::fs::create_dir_all(&config.state)
            .with_context(|| format!("--state-dir {} cannot be made", config.state.display()))?;
        let client = client::connect(settings.kubeconfig.as_deref()).await?;
        let at = Place {
            namespace: settings.namespace.clone(),
            pod: settings.pod.clone(),
            trust_domain: config.options.trust_domain.to_string(),
            cluster: config.options.cluster.to_string(),
        };
        let started = authority::start(client.clone(), &settings.flags, at);
        Ok(Self { client, started })
    }

    /// Starts the watches and the writer of statuses.
    pub(super) fn follow(
        &self,
        settings: &Kubernetes,
        metrics: &Metrics,
        shelf: Shelf,
        tell: mpsc::Sender<Change>,
        current: watch::Receiver<Arc<Published>>,
    ) -> Health {
        let (client, held) = (&self.client, &self.started.lease.held);
        let health = Health::new(metrics.clone());
        let state = State::new(client.clone(), &settings.namespace, shelf.clone(), health.clone());
        tokio::spawn(state.clone().follow(tell.clone()));
        tokio::spawn(told_of(self.started.provisioner.troubles(), tell.clone()));
        tokio::spawn(state.clone().keep(held.clone()));
        let writer = Writer::new(client.clone(), &settings.pod, health.clone());
        tokio::spawn(writer.run(held.clone(), current));
        tokio::spawn(kube::follow(client.clone(), state, shelf, tell, health.clone()));
        health
    }
}

/// Has what cannot be made compiled in, as findings.
async fn told_of(mut troubles: watch::Receiver<Problems>, tell: mpsc::Sender<Change>) {
    while troubles.changed().await.is_ok() {
        if tell.send(Change::Shared).await.is_err() {
            return;
        }
    }
}

/// Ends when anything that writes to the API server ended, which it does only by a panic: a control plane
/// that has lost one of its parts ends as a whole and is started again.
pub(super) async fn broken(cluster: Option<&mut Cluster>) -> Result<()> {
    let Some(cluster) = cluster else { return std::future::pending().await };
    match cluster.started.tasks.join_next().await {
        Some(Err(error)) => Err(error).context("a part that keeps CA, bundle or waypoints failed"),
        Some(Ok(())) => anyhow::bail!("a part that keeps CA, bundle or waypoints ended"),
        None => std::future::pending().await,
    }
}

/// The CA of a control plane: the cluster's, else that of the state folder or of files.
///
/// # Errors
/// See [`crate::ca::CaError`].
pub(super) fn ca(config: &Config, cluster: Option<&Cluster>) -> Result<Authority> {
    match cluster {
        Some(cluster) => Ok(cluster.started.authority.clone()),
        None => {
            let ca = Ca::open(&config.state, config.ca.as_ref(), &config.options.trust_domain)?;
            Ok(Authority::fixed(ca))
        }
    }
}
