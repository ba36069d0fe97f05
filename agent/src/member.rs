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
    /// Whether an address is the pod's.
    pub fn owns(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.info.addresses.iter().any(|own| own.to_canonical() == ip)
    }
}
