//! The steps of the outbound plan.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Hop, MESH_PORTS, OutboundFacts, OutboundPlan, Transport, TunnelPlan};
use crate::{
    balance::{self, LoadView, Purpose, Wanted, family_allowed},
    entropy::Entropy,
    hbone::Authority,
    identity::Identity,
    model::{GatewayAddress, GatewayDestination, LoadBalancingMode, Service, Tunnel, Workload},
    outcome::{Path, Reason, Refusal},
    snapshot::Snapshot,
    trace::{Step, StepKind, Trace},
};

/// One decision in the making. Field order is the order of reading: world, question, helpers.
pub(super) struct Planner<'a, E, L, T> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) facts: &'a OutboundFacts,
    pub(super) entropy: &'a mut E,
    pub(super) load: &'a L,
    pub(super) trace: &'a mut T,
}

/// The chosen other end of a connection.
struct Upstream<'a> {
    workload: Arc<Workload>,
    port: u16,
    service: Option<&'a Arc<Service>>,
}

impl<'a, E: Entropy, L: LoadView, T: Trace> Planner<'a, E, L, T> {
    pub(super) fn plan(mut self) -> Result<OutboundPlan, Refusal> {
        let destination = self.destination();
        let source = self.source()?;
        self.refuse_recursion(destination)?;
        let service = self.classify(source, destination);
        if let Some(service) = service
            && let Some(gateway) = self.service_waypoint(service)
        {
            return self.through_waypoint(source, gateway, Some(service), service_object(service));
        }
        match self.upstream(source, destination)? {
            Some(upstream) => self.reach(source, upstream, service),
            None => self.without_upstream(source, service),
        }
    }

    fn destination(&self) -> SocketAddr {
        let dst = self.facts.destination;
        SocketAddr::new(dst.ip().to_canonical(), dst.port())
    }

    fn source(&mut self) -> Result<&'a Arc<Workload>, Refusal> {
        let source = self.snapshot.pod(&self.facts.pod, self.facts.source.ip())?;
        self.trace.step(|| {
            Step::new(
                StepKind::Source,
                workload_object(source),
                format!("the client, as {}", source.identity()),
            )
        });
        Ok(source)
    }

    /// A connection to the mesh's own ports on this pod, or on loopback, would loop.
    fn refuse_recursion(&self, destination: SocketAddr) -> Result<(), Refusal> {
        let own = destination.ip().is_loopback() || destination.ip() == self.facts.source.ip().to_canonical();
        match own && MESH_PORTS.contains(&destination.port()) {
            true => {
                Err(Refusal::new(Reason::IllegalPort, format!("{destination} is a port of the mesh itself")))
            }
            false => Ok(()),
        }
    }

    /// Whether the client addressed a service: a workload's own address comes first.
    fn classify(&mut self, source: &Workload, destination: SocketAddr) -> Option<&'a Arc<Service>> {
        let network = &self.facts.pod.network;
        if let Some(workload) = self.snapshot.workload_at(network, destination.ip()) {
            self.trace.step(|| {
                Step::new(
                    StepKind::Lookup,
                    workload_object(workload),
                    format!("{} is its address", destination.ip()),
                )
            });
            return None;
        }
        let found = self.snapshot.service_at(network, destination.ip(), &source.namespace);
        self.trace.step(|| match found {
            Some(s) => {
                Step::new(StepKind::Lookup, service_object(s), format!("{} is its address", destination.ip()))
            }
            None => Step::new(StepKind::Lookup, "", format!("{} is outside the mesh", destination.ip())),
        });
        found
    }

    /// The waypoint of a service; by weight when several share its traffic.
    fn service_waypoint(&mut self, service: &'a Service) -> Option<&'a GatewayAddress> {
        let total: u64 = service.weighted_waypoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total == 0 {
            return service.waypoint.as_ref();
        }
        let mut at = self.entropy.below(total);
        for (gateway, weight) in &service.weighted_waypoints {
            if at < u64::from(*weight) {
                return Some(gateway);
            }
            at -= u64::from(*weight);
        }
        service.waypoint.as_ref()
    }

    fn through_waypoint(
        &mut self,
        source: &Arc<Workload>,
        gateway: &GatewayAddress,
        service: Option<&Arc<Service>>,
        asked_by: String,
    ) -> Result<OutboundPlan, Refusal> {
        let upstream = self.resolve_waypoint(source, gateway, &asked_by)?;
        let instance = upstream.workload.clone();
        self.same_network(source, &instance)?;
        let dialled = self.destination();
        let prefer = match &gateway.destination {
            GatewayDestination::Hostname(_) => dialled.ip(),
            GatewayDestination::Address(at) => at.address,
        };
        let hop =
            hop(&upstream, prefer).ok_or_else(|| unavailable(gateway, "its instance has no address"))?;
        self.trace.step(|| {
            let detail = format!("{asked_by} uses this waypoint; instance {}", instance.uid);
            Step::new(StepKind::Waypoint, gateway_object(gateway), detail)
        });
        let tunnel = TunnelPlan {
            hop,
            authority: Authority::Address(dialled),
            expected: expected(upstream.service, &instance),
            peer: instance.uid.clone(),
        };
        self.trace.step(|| tunnel_step(&tunnel));
        Ok(self.finish(source, Transport::Tunnel(tunnel), Path::Waypoint, Some(instance), service))
    }

    /// A waypoint that cannot be resolved refuses the connection; it is never bypassed.
    fn resolve_waypoint(
        &mut self,
        source: &Workload,
        gateway: &GatewayAddress,
        asked_by: &str,
    ) -> Result<Upstream<'a>, Refusal> {
        let (service, workload) = match &gateway.destination {
            GatewayDestination::Hostname(name) => {
                (self.snapshot.service(name), self.snapshot.workload_by_hostname(name))
            }
            GatewayDestination::Address(at) => (
                self.snapshot.service_at(&at.network, at.address, &source.namespace),
                self.snapshot.workload_at(&at.network, at.address),
            ),
        };
        if let Some(service) = service {
            let wanted = Wanted { source, service, port: gateway.hbone_port, purpose: Purpose::Waypoint };
            let picked = balance::pick(self.snapshot, wanted, self.entropy, self.load);
            return picked
                .map(|e| Upstream { workload: e.workload, port: e.port, service: Some(service) })
                .ok_or_else(|| unavailable(gateway, &format!("used by {asked_by}, has no ready instance")));
        }
        workload
            .map(|w| Upstream { workload: w.clone(), port: gateway.hbone_port, service: None })
            .ok_or_else(|| unavailable(gateway, &format!("used by {asked_by}, is not known")))
    }

    /// The other end without a waypoint: a service's endpoint before a workload's own address.
    fn upstream(
        &mut self,
        source: &Workload,
        destination: SocketAddr,
    ) -> Result<Option<Upstream<'a>>, Refusal> {
        let network = &source.network;
        if let Some(service) = self.snapshot.service_at(network, destination.ip(), &source.namespace) {
            if service.load_balancing.mode == LoadBalancingMode::Passthrough {
                return Ok(None);
            }
            return self.endpoint(source, service, destination.port()).map(Some);
        }
        let workload = self.snapshot.workload_at(network, destination.ip());
        Ok(workload.map(|w| Upstream { workload: w.clone(), port: destination.port(), service: None }))
    }

    fn endpoint(
        &mut self,
        source: &Workload,
        service: &'a Arc<Service>,
        port: u16,
    ) -> Result<Upstream<'a>, Refusal> {
        let wanted = Wanted { source, service, port, purpose: Purpose::Destination };
        let Some(picked) = balance::pick(self.snapshot, wanted, self.entropy, self.load) else {
            return Err(no_endpoint(self.snapshot, service, port));
        };
        self.trace.step(|| {
            let all = self.snapshot.endpoints(&service.key);
            let fit = balance::candidates(all, wanted).len();
            let detail = format!("port {} of {fit} candidates among {} endpoints", picked.port, all.len());
            Step::new(StepKind::Endpoint, workload_object(&picked.workload), detail)
        });
        Ok(Upstream { workload: picked.workload, port: picked.port, service: Some(service) })
    }

    fn reach(
        &mut self,
        source: &Arc<Workload>,
        upstream: Upstream<'a>,
        service: Option<&Arc<Service>>,
    ) -> Result<OutboundPlan, Refusal> {
        let workload = upstream.workload.clone();
        self.same_network(source, &workload)?;
        if service.is_none()
            && let Some(gateway) = &workload.waypoint
            && !self.snapshot.is_gateway_instance(gateway, source)
        {
            return self.through_waypoint(source, gateway, None, workload_object(&workload));
        }
        let dialled = self.destination().ip();
        let end = hop(&upstream, dialled).ok_or_else(|| {
            Refusal::new(
                Reason::NoHealthyEndpoint,
                format!("workload {} has no usable address", workload.uid),
            )
        })?;
        let (transport, path) = match workload.tunnel {
            Tunnel::None => (Transport::Plain(end), Path::Passthrough),
            Tunnel::Hbone => (Transport::Tunnel(direct_tunnel(end, &upstream)), Path::Tunnel),
        };
        self.trace.step(|| transport_step(&transport));
        Ok(self.finish(source, transport, path, Some(workload), service.or(upstream.service)))
    }

    fn without_upstream(
        &mut self,
        source: &Arc<Workload>,
        service: Option<&Arc<Service>>,
    ) -> Result<OutboundPlan, Refusal> {
        let destination = self.destination();
        if let Some(service) = service
            && service.load_balancing.mode != LoadBalancingMode::Passthrough
        {
            return Err(no_endpoint(self.snapshot, service, destination.port()));
        }
        let transport = Transport::Plain(Hop::Address(destination));
        self.trace.step(|| transport_step(&transport));
        Ok(self.finish(source, transport, Path::Passthrough, None, service))
    }

    fn same_network(&self, source: &Workload, other: &Workload) -> Result<(), Refusal> {
        match source.network == other.network {
            true => Ok(()),
            false => Err(Refusal::new(
                Reason::GatewayUnavailable,
                format!(
                    "workload {} is in network {:?} and the client in {:?}: tunnels between networks are not supported by this version",
                    other.uid, other.network, source.network
                ),
            )),
        }
    }

    fn finish(
        &self,
        source: &Arc<Workload>,
        transport: Transport,
        path: Path,
        destination: Option<Arc<Workload>>,
        service: Option<&Arc<Service>>,
    ) -> OutboundPlan {
        let snapshot = self.snapshot.version();
        OutboundPlan {
            snapshot,
            source: source.clone(),
            transport,
            path,
            destination,
            service: service.cloned(),
        }
    }
}

fn expected(service: Option<&Arc<Service>>, workload: &Workload) -> Vec<Identity> {
    let mut list = vec![workload.identity()];
    list.extend(service.into_iter().flat_map(|s| s.subject_alt_names.iter().cloned()));
    list
}

fn direct_tunnel(end: Hop, upstream: &Upstream<'_>) -> TunnelPlan {
    let (hop, authority) = match end {
        Hop::Address(address) => {
            (Hop::Address(SocketAddr::new(address.ip(), super::HBONE_PORT)), Authority::Address(address))
        }
        Hop::Name { host, port, prefer_v4 } => {
            let authority = Authority::Host(host.clone(), port);
            (Hop::Name { host, port: super::HBONE_PORT, prefer_v4 }, authority)
        }
    };
    TunnelPlan {
        hop,
        authority,
        expected: expected(upstream.service, &upstream.workload),
        peer: upstream.workload.uid.clone(),
    }
}

fn hop(upstream: &Upstream<'_>, dialled: IpAddr) -> Option<Hop> {
    let workload = &upstream.workload;
    let service = upstream.service.map(|s| &**s);
    if let Some(ip) = select_address(service, workload, dialled) {
        return Some(Hop::Address(SocketAddr::new(ip, upstream.port)));
    }
    let host = workload.hostname.clone();
    (!host.is_empty()).then(|| Hop::Name { host, port: upstream.port, prefer_v4: dialled.is_ipv4() })
}

pub(super) fn select_address(
    service: Option<&Service>,
    workload: &Workload,
    dialled: IpAddr,
) -> Option<IpAddr> {
    if workload.addresses.contains(&dialled) {
        return Some(dialled);
    }
    let allowed = |ip: &&IpAddr| service.is_none_or(|s| family_allowed(s.ip_families, ip.is_ipv4()));
    let mut usable = workload.addresses.iter().filter(allowed);
    let first = usable.clone().next();
    usable.find(|ip| ip.is_ipv4() == dialled.is_ipv4()).or(first).copied()
}

fn no_endpoint(snapshot: &Snapshot, service: &Service, port: u16) -> Refusal {
    let detail = match service.ports.iter().any(|p| p.service_port == port) {
        false => format!("service {} has no port {port}", service.key),
        true => {
            let known = snapshot.endpoints(&service.key).len();
            format!("service {} has no ready endpoint for port {port} ({known} endpoints known)", service.key)
        }
    };
    Refusal::new(Reason::NoHealthyEndpoint, detail)
}

fn unavailable(gateway: &GatewayAddress, what: &str) -> Refusal {
    Refusal::new(Reason::WaypointUnavailable, format!("{} {what}", gateway_object(gateway)))
}

fn gateway_object(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Hostname(name) => format!("waypoint {name}"),
        GatewayDestination::Address(at) => format!("waypoint {}", at.address),
    }
}

fn workload_object(workload: &Workload) -> String {
    format!("workload {}", workload.uid)
}

fn service_object(service: &Service) -> String {
    format!("service {}", service.key)
}

fn tunnel_step(tunnel: &TunnelPlan) -> Step {
    let names: Vec<String> = tunnel.expected.iter().map(Identity::to_string).collect();
    let detail = format!(
        "HBONE to {}, CONNECT {}, peer must be {}",
        hop_text(&tunnel.hop),
        tunnel.authority,
        names.join(" or ")
    );
    Step::new(StepKind::Tunnel, format!("workload {}", tunnel.peer), detail)
}

fn hop_text(hop: &Hop) -> String {
    match hop {
        Hop::Address(address) => address.to_string(),
        Hop::Name { host, port, .. } => format!("{host}:{port}"),
    }
}

fn transport_step(transport: &Transport) -> Step {
    match transport {
        Transport::Tunnel(tunnel) => tunnel_step(tunnel),
        Transport::Plain(hop) => Step::new(StepKind::Tunnel, "", format!("plain TCP to {}", hop_text(hop))),
    }
}
