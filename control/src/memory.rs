//! What is remembered between runs and restarts: addresses given to services, services that have been sent
//! through our own waypoints, and good versions of objects.

use std::{collections::BTreeSet, path::Path, path::PathBuf};

use ipnet::Ipv4Net;
use mesh_core::model::ServiceName;

use crate::{disk, source::good::Good, vips::Vips};

/// Where addresses of ServiceEntry hosts come from: reserved space that nobody routes, as in Istio.
const EXTERNAL: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(240, 240, 0, 0), 16);

/// Everything that is remembered.
#[derive(Debug)]
pub struct Memory {
    /// Virtual addresses.
    pub vips: Vips,
    /// Virtual addresses of hosts outside the cluster.
    pub external: Vips,
    /// Services behind our own waypoints.
    pub routed: Routed,
    /// Good versions of objects.
    pub good: Good,
}

impl Memory {
    /// Kept in `state`; without one it lasts as long as the value.
    pub fn new(services: Ipv4Net, state: Option<&Path>) -> Self {
        let file = |name: &str| state.map(|folder| folder.join(name));
        Self {
            vips: Vips::new(services, file("vips.json")),
            external: Vips::new(EXTERNAL, file("external-vips.json")),
            routed: Routed::new(file("routed.json")),
            good: Good::new(file("good.json")),
        }
    }
}

/// Services that have been sent through one of our own waypoints. They never go back to direct by
/// themselves: a waypoint that fails must not open a way around it (decision 0015).
#[derive(Debug)]
pub struct Routed {
    file: Option<PathBuf>,
    services: BTreeSet<ServiceName>,
}

impl Routed {
    fn new(file: Option<PathBuf>) -> Self {
        let services = file.as_deref().map(disk::load).unwrap_or_default();
        Self { file, services }
    }

    /// Whether a service was routed before.
    pub fn contains(&self, service: &ServiceName) -> bool {
        self.services.contains(service)
    }

    /// Services that were routed before.
    pub fn all(&self) -> &BTreeSet<ServiceName> {
        &self.services
    }

    /// Remembers exactly these.
    pub fn set(&mut self, services: BTreeSet<ServiceName>) {
        if self.services == services {
            return;
        }
        self.services = services;
        if let Some(file) = &self.file {
            disk::save(file, &self.services, "services behind waypoints");
        }
    }
}
