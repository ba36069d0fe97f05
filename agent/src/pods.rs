//! Who is on this node: the seam between the agent and what schedules pods.

mod difference;
pub mod folder;
pub mod kubernetes;
mod object;

use std::{future::Future, net::IpAddr, path::PathBuf, pin::Pin, sync::Arc};

use mesh_core::{eligibility::Eligibility, snapshot::PodRef};
use tokio::sync::mpsc;

use crate::netns::Place;

/// A future that a source returns.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A pod of this node as its source describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// Unique for the life of the pod; a pod that is deleted and made again has another one.
    pub uid: Arc<str>,
    /// What the control plane's words about it must agree with (invariant I-5).
    pub pod: Arc<PodRef>,
    /// Its addresses; empty until it has a network.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace; none until there is one.
    pub netns: Option<Place>,
    /// Why there is none, when more is known than that it is not there yet.
    pub lack: Option<Arc<str>>,
    /// Whether it belongs into the mesh, and why.
    pub eligibility: Eligibility,
}

impl PodInfo {
    /// `namespace/name`, for people.
    pub fn name(&self) -> String {
        format!("{}/{}", self.pod.namespace, self.pod.name)
    }

    /// Why it has no network.
    pub fn lack(&self) -> &str {
        self.lack.as_deref().unwrap_or("it has no network yet")
    }

    /// Whether it has a network that can be captured.
    pub fn has_network(&self) -> bool {
        self.netns.is_some() && !self.addresses.is_empty()
    }
}

/// What a source says.
#[derive(Debug, Clone)]
pub enum PodEvent {
    /// A pod is there, or has changed.
    Pod(Arc<PodInfo>),
    /// A pod is gone (by uid).
    Gone(Arc<str>),
    /// Everything that could be read at the start has been said.
    Synced,
    /// All of it was understood, twice: who was not said by now does not exist. May never come.
    Complete,
}

/// Why the announcement of a pod could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The pod has no object any more.
    #[error("pod {0} has no object any more")]
    NoObject(String),
    /// Its object cannot be read or written.
    #[error("object of pod {pod} in {path} cannot be written")]
    Object {
        /// The pod.
        pod: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The API server refuses, or cannot be reached.
    #[error("status of pod {pod} cannot be patched; the agent needs `patch` on pods/status")]
    Api {
        /// The pod.
        pod: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Tells which pods are on this node, and marks those that are enrolled.
pub trait PodSource: Send + Sync + 'static {
    /// Sends what is there, then [`PodEvent::Synced`], then what changes, and once
    /// [`PodEvent::Complete`]; ends when the receiver does. What cannot be read does not count as gone.
    fn watch(&self, events: mpsc::Sender<PodEvent>) -> Later<'_, ()>;

    /// Writes (`ambient.istio.io/redirection: enabled`) or removes the mark by which the control plane
    /// announces the pod as reachable over HBONE.
    ///
    /// # Errors
    /// The object is gone or cannot be written.
    fn announce<'a>(&'a self, pod: &'a PodInfo, enrolled: bool) -> Later<'a, Result<(), AnnounceError>>;
}
