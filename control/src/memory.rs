//! What is remembered between runs and restarts: addresses given to services, services that have been sent
//! through our own waypoints, and good versions of objects.

use std::{collections::BTreeSet, path::Path};

use ipnet::Ipv4Net;
use mesh_core::model::ServiceName;

use crate::{disk::Place, shelf::Shelf, source::good::Good, vips::Vips};

/// Where addresses of ServiceEntry hosts come from: reserved space that nobody routes, as in Istio.
const EXTERNAL: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(240, 240, 0, 0), 16);

/// Name of the shared text of good versions.
pub const GOOD: &str = "good.json";

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
    /// What is remembered together with other replicas, and what of it was taken over.
    shelf: Option<(Shelf, u64)>,
}

impl Memory {
    /// Kept in `state`; without one it lasts as long as the value.
    pub fn new(services: Ipv4Net, state: Option<&Path>) -> Self {
        let file = |name: &str| state.map_or(Place::Nowhere, |folder| Place::File(folder.join(name)));
        Self {
            vips: Vips::new(services, file("vips.json")),
            external: Vips::new(EXTERNAL, file("external-vips.json")),
            routed: Routed::new(file("routed.json")),
            good: Good::new(file("good.json"), Place::Nowhere),
            shelf: None,
        }
    }

    /// Kept together with other replicas, but for the versions of documents of a folder, which are kept in
    /// `state`.
    pub fn shared(services: Ipv4Net, state: &Path, shelf: &Shelf) -> Self {
        let shared = |name| Place::Shared(shelf.clone(), name);
        Self {
            vips: Vips::new(services, shared("vips.json")),
            external: Vips::new(EXTERNAL, shared("external-vips.json")),
            routed: Routed::new(shared("routed.json")),
            good: Good::new(Place::File(state.join("good.json")), shared(GOOD)),
            shelf: Some((shelf.clone(), shelf.received())),
        }
    }

    /// Takes over what other replicas remembered since the last time.
    pub fn adopt(&mut self) {
        let Some((shelf, taken)) = &mut self.shelf else { return };
        let received = shelf.received();
        if received != *taken {
            *taken = received;
            self.vips.adopt();
            self.external.adopt();
            self.routed.adopt();
        }
    }
}

/// Services that have been sent through one of our own waypoints. They never go back to direct by
/// themselves: a waypoint that fails must not open a way around it (decision 0015).
#[derive(Debug)]
pub struct Routed {
    place: Place,
    services: BTreeSet<ServiceName>,
    unsaved: bool,
}

impl Routed {
    fn new(place: Place) -> Self {
        let services = place.load();
        Self { place, services, unsaved: false }
    }

    /// A service that another replica routed has been routed.
    fn adopt(&mut self) {
        let theirs: BTreeSet<ServiceName> = self.place.load();
        self.unsaved = !self.services.is_subset(&theirs);
        self.services.extend(theirs);
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
        if self.services == services && !self.unsaved {
            return;
        }
        self.unsaved = false;
        self.services = services;
        self.place.save(&self.services, "services behind waypoints");
    }
}
