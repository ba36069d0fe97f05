//! What a CONNECT request asks for.

use std::{net::IpAddr, rc::Rc, sync::Arc};

use mesh_core::{
    hbone::Authority,
    model::{AppProtocol, GatewayAddress, Service, Workload},
    outcome::{Reason, Refusal},
};

use crate::{peer::Peer, world::World};

/// One tunnelled connection.
#[derive(Debug)]
pub struct Flow {
    /// The client.
    pub peer: Rc<Peer>,
    /// The service that it asked for.
    pub service: Option<Arc<Service>>,
    /// The workload that it asked for, when not a service.
    pub workload: Option<Arc<Workload>>,
    /// Address that it asked for; none for a host name.
    pub ip: Option<IpAddr>,
    /// Port that it asked for.
    pub port: u16,
}

impl Flow {
    /// Finds the target of an authority: the service at that virtual address or host name, or the
    /// workload at that address, if it is bound to this waypoint.
    ///
    /// # Errors
    /// `WrongDestination` for anything that is unknown or bound elsewhere.
    pub fn resolve(world: &World, peer: Rc<Peer>, authority: &Authority) -> Result<Self, Refusal> {
        let snapshot = &world.snapshot;
        let namespace = &peer.identity.namespace;
        let network = Arc::from("");
        let (service, workload, ip) = match authority {
            Authority::Address(at) => {
                let service = snapshot.service_at(&network, at.ip(), namespace);
                let workload = service.is_none().then(|| snapshot.workload_at(&network, at.ip())).flatten();
                (service, workload, Some(at.ip()))
            }
            Authority::Host(host, _) => (snapshot.service_by_host(host, namespace), None, None),
        };
        let bound = match (service, workload) {
            (Some(service), _) => {
                let weighted = service.weighted_waypoints.iter().map(|(gateway, _)| gateway);
                is_bound(world, service.waypoint.iter().chain(weighted))
            }
            (None, Some(workload)) => is_bound(world, workload.waypoint.iter()),
            (None, None) => return Err(refuse(format!("{authority} is neither a service nor a workload"))),
        };
        if !bound {
            return Err(refuse(format!("{authority} is not bound to this waypoint")));
        }
        Ok(Self { peer, service: service.cloned(), workload: workload.cloned(), ip, port: authority.port() })
    }

    /// The declared protocol of the port.
    pub fn protocol(&self, world: &World) -> AppProtocol {
        let Some(service) = &self.service else { return AppProtocol::Unknown };
        let declared = world.routes(&service.key).source.protocols.get(&self.port).copied();
        let port = || service.ports.iter().find(|p| p.service_port == self.port).map(|p| p.app_protocol);
        declared.or_else(port).unwrap_or_default()
    }
}

fn is_bound<'a>(world: &World, mut gateways: impl Iterator<Item = &'a GatewayAddress>) -> bool {
    gateways.any(|gateway| world.is_mine(gateway))
}

fn refuse(detail: String) -> Refusal {
    Refusal::new(Reason::WrongDestination, detail)
}
