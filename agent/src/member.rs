//! A pod that is in the mesh, as the data path sees it. Shared by supervisor and workers.

use std::{net::IpAddr, sync::Arc};

use mesh_core::identity::Identity;
use mesh_net::{ca::CertState, task::Drain};
use tokio::sync::watch;

use crate::{pods::PodInfo, redirect::Target};

/// See the module's description.
pub struct Member {
    /// The pod.
    pub info: Arc<PodInfo>,
    /// Its network.
    pub target: Arc<Target>,
    /// The identity that it uses.
    pub identity: Identity,
    /// Its certificate.
    pub certificate: watch::Receiver<CertState>,
    /// Counts its flows; asked to end when the pod leaves the mesh or the agent stops.
    pub drain: Drain,
}

impl Member {
    /// The pod's address of a family.
    pub fn own(&self, v4: bool) -> Option<IpAddr> {
        let pod = &self.target.pod;
        if v4 { pod.v4.map(IpAddr::from) } else { pod.v6.map(IpAddr::from) }
    }
}
