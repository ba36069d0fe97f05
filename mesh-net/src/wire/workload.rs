//! `istio.workload.Address` ⇄ [`Workload`] and [`Service`], with ztunnel's defaults and refusals.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use mesh_core::model::{
    AppProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health, IpFamilies, LoadBalancing,
    LoadBalancingMode, Locality, NetworkAddress, PolicyName, PortMapping, Scope, Service, ServiceName,
    Tunnel, Vip, Workload, WorkloadType, WorkloadUid,
};

use super::{WireError, ip_from_bytes, ip_to_bytes, port};
use crate::api::istio::workload as pb;

/// A parsed `Address` resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Address {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
}

/// Parses an xDS `Address`.
pub fn from_address(address: pb::Address) -> Result<Address, WireError> {
    match address.r#type {
        Some(pb::address::Type::Workload(workload)) => from_workload(workload).map(Address::Workload),
        Some(pb::address::Type::Service(service)) => from_service(service).map(Address::Service),
        None => Err(WireError::new("type", "neither workload nor service is set")),
    }
}

/// Wraps a workload as an xDS `Address`.
pub fn workload_address(workload: &Workload) -> pb::Address {
    pb::Address { r#type: Some(pb::address::Type::Workload(to_workload(workload))) }
}

/// Wraps a service as an xDS `Address`.
pub fn service_address(service: &Service) -> pb::Address {
    pb::Address { r#type: Some(pb::address::Type::Service(to_service(service))) }
}

fn or_default(text: String, default: &str) -> Arc<str> {
    if text.is_empty() { default.into() } else { text.into() }
}

fn from_workload(w: pb::Workload) -> Result<Workload, WireError> {
    if w.uid.is_empty() {
        return Err(WireError::new("uid", "is empty"));
    }
    let tunnel = match pb::TunnelProtocol::try_from(w.tunnel_protocol) {
        Ok(pb::TunnelProtocol::None) => Tunnel::None,
        Ok(pb::TunnelProtocol::Hbone) => Tunnel::Hbone,
        _ => {
            return Err(WireError::new("tunnel_protocol", format!("{} is not supported", w.tunnel_protocol)));
        }
    };
    let workload_type = match pb::WorkloadType::try_from(w.workload_type) {
        Ok(pb::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(pb::WorkloadType::Cronjob) => WorkloadType::Cronjob,
        Ok(pb::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(pb::WorkloadType::Job) => WorkloadType::Job,
        Err(_) => return Err(WireError::new("workload_type", format!("{} is unknown", w.workload_type))),
    };
    let health = match pb::WorkloadStatus::try_from(w.status) {
        Ok(pb::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(pb::WorkloadStatus::Unhealthy) => Health::Unhealthy,
        Err(_) => return Err(WireError::new("status", format!("{} is unknown", w.status))),
    };
    let host_network = match pb::NetworkMode::try_from(w.network_mode) {
        Ok(mode) => mode == pb::NetworkMode::HostNetwork,
        Err(_) => return Err(WireError::new("network_mode", format!("{} is unknown", w.network_mode))),
    };
    Ok(Workload {
        uid: WorkloadUid::new(w.uid),
        name: w.name.into(),
        namespace: w.namespace.into(),
        addresses: w.addresses.iter().map(|a| ip_from_bytes("addresses", a)).collect::<Result<_, _>>()?,
        hostname: w.hostname.into(),
        network: w.network.into(),
        tunnel,
        trust_domain: or_default(w.trust_domain, "cluster.local"),
        service_account: or_default(w.service_account, "default"),
        waypoint: w.waypoint.map(|g| from_gateway("waypoint", g)).transpose()?,
        network_gateway: w.network_gateway.map(|g| from_gateway("network_gateway", g)).transpose()?,
        node: w.node.into(),
        canonical_name: w.canonical_name.into(),
        canonical_revision: w.canonical_revision.into(),
        workload_type,
        workload_name: w.workload_name.into(),
        native_tunnel: w.native_tunnel,
        policies: from_policy_names(w.authorization_policies)?,
        health,
        cluster: or_default(w.cluster_id, "Kubernetes"),
        services: from_services(w.services)?.into(),
        application_tunnel: w.application_tunnel.map(from_application_tunnel).transpose()?,
        locality: w.locality.map(from_locality).unwrap_or_default(),
        host_network,
        capacity: w.capacity.unwrap_or(1),
    })
}

fn from_policy_names(names: Vec<String>) -> Result<Vec<PolicyName>, WireError> {
    names
        .into_iter()
        .map(|name| {
            name.parse().map_err(|_| {
                WireError::new("authorization_policies", format!("{name:?} is not <namespace>/<name>"))
            })
        })
        .collect()
}

fn from_services(
    services: std::collections::HashMap<String, pb::PortList>,
) -> Result<BTreeMap<ServiceName, Vec<PortMapping>>, WireError> {
    services
        .into_iter()
        .map(|(key, list)| {
            let name: ServiceName = key.parse().map_err(|_| {
                WireError::new("services", format!("key {key:?} is not <namespace>/<hostname>"))
            })?;
            Ok((name, from_ports("services", list.ports)?))
        })
        .collect()
}

fn from_ports(field: &str, ports: Vec<pb::Port>) -> Result<Vec<PortMapping>, WireError> {
    ports
        .into_iter()
        .map(|p| {
            Ok(PortMapping {
                service_port: port(field, p.service_port)?,
                target_port: port(field, p.target_port)?,
                app_protocol: from_app_protocol(p.app_protocol),
            })
        })
        .collect()
}

/// Unknown protocols of a newer control plane are sniffed; agents ignore the field anyway.
fn from_app_protocol(value: i32) -> AppProtocol {
    match pb::AppProtocol::try_from(value) {
        Ok(pb::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(pb::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(pb::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(pb::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(pb::AppProtocol::Tls) => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn from_locality(l: pb::Locality) -> Locality {
    Locality { region: l.region.into(), zone: l.zone.into(), subzone: l.subzone.into() }
}

fn from_application_tunnel(t: pb::ApplicationTunnel) -> Result<ApplicationTunnel, WireError> {
    let proxy_protocol = match pb::application_tunnel::Protocol::try_from(t.protocol) {
        Ok(protocol) => protocol == pb::application_tunnel::Protocol::Proxy,
        Err(_) => {
            return Err(WireError::new("application_tunnel.protocol", format!("{} is unknown", t.protocol)));
        }
    };
    let port = port("application_tunnel.port", t.port)?;
    Ok(ApplicationTunnel { proxy_protocol, port: (port != 0).then_some(port) })
}

fn from_gateway(field: &str, g: pb::GatewayAddress) -> Result<GatewayAddress, WireError> {
    let destination = match g.destination {
        Some(pb::gateway_address::Destination::Hostname(h)) => {
            GatewayDestination::Hostname(ServiceName::new(h.namespace, h.hostname))
        }
        Some(pb::gateway_address::Destination::Address(a)) => GatewayDestination::Address(NetworkAddress {
            network: a.network.into(),
            address: ip_from_bytes(&format!("{field}.address"), &a.address)?,
        }),
        None => return Err(WireError::new(field, "has no destination")),
    };
    let hbone_port = port(&format!("{field}.hbone_mtls_port"), g.hbone_mtls_port)?;
    Ok(GatewayAddress { destination, hbone_port: if hbone_port == 0 { 15008 } else { hbone_port } })
}

fn from_service(s: pb::Service) -> Result<Service, WireError> {
    if s.hostname.is_empty() {
        return Err(WireError::new("hostname", "is empty"));
    }
    let ip_families = match pb::IpFamilies::try_from(s.ip_families) {
        Ok(pb::IpFamilies::Automatic) => IpFamilies::Automatic,
        Ok(pb::IpFamilies::Ipv4Only) => IpFamilies::V4,
        Ok(pb::IpFamilies::Ipv6Only) => IpFamilies::V6,
        Ok(pb::IpFamilies::Dual) => IpFamilies::Dual,
        Err(_) => return Err(WireError::new("ip_families", format!("{} is unknown", s.ip_families))),
    };
    let sticky = s.extensions.iter().any(|extension| extension.name == STICKY);
    let load_balancing = s.load_balancing.map(from_load_balancing).transpose()?.unwrap_or_default();
    Ok(Service {
        key: ServiceName::new(s.namespace, s.hostname),
        name: s.name.into(),
        vips: s.addresses.into_iter().map(from_vip).collect::<Result<_, _>>()?,
        ports: from_ports("ports", s.ports)?,
        // Like ztunnel: a name that is no SPIFFE identity can never match, so it is left out.
        subject_alt_names: s.subject_alt_names.iter().filter_map(|san| san.parse().ok()).collect(),
        waypoint: s.waypoint.map(|g| from_gateway("waypoint", g)).transpose()?,
        weighted_waypoints: s
            .weighted_waypoints
            .into_iter()
            .map(|w| {
                let destination = w
                    .destination
                    .ok_or_else(|| WireError::new("weighted_waypoints", "has no destination"))?;
                Ok((from_gateway("weighted_waypoints", destination)?, w.weight))
            })
            .collect::<Result<_, WireError>>()?,
        load_balancing: LoadBalancing { sticky, ..load_balancing },
        ip_families,
        canonical: s.canonical,
        namespace_only: s.visibility == pb::service::Visibility::Namespace as i32,
        ingress_use_waypoint: s.ingress_use_waypoint,
    })
}

fn from_vip(a: pb::NetworkAddress) -> Result<Vip, WireError> {
    let ip = ip_from_bytes("addresses", &a.address)?;
    let full = if ip.is_ipv4() { 32 } else { 128 };
    let length = a.length.unwrap_or(full);
    let range = u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .ok_or_else(|| WireError::new("addresses", format!("prefix length {length} is too long for {ip}")))?;
    Ok(Vip { network: a.network.into(), range })
}

/// Name of the extension of a service that keeps each client at one endpoint. Istio's clients leave
/// extensions alone that they do not know.
const STICKY: &str = "culvert.dev/sticky";

fn from_load_balancing(lb: pb::LoadBalancing) -> Result<LoadBalancing, WireError> {
    use pb::load_balancing as wire;
    let mode = match wire::Mode::try_from(lb.mode) {
        Ok(wire::Mode::UnspecifiedMode) => LoadBalancingMode::Any,
        Ok(wire::Mode::Strict) => LoadBalancingMode::Strict,
        Ok(wire::Mode::Failover) => LoadBalancingMode::Failover,
        Ok(wire::Mode::Passthrough) => LoadBalancingMode::Passthrough,
        Err(_) => return Err(WireError::new("load_balancing.mode", format!("{} is unknown", lb.mode))),
    };
    let allow_unhealthy = match wire::HealthPolicy::try_from(lb.health_policy) {
        Ok(policy) => policy == wire::HealthPolicy::AllowAll,
        Err(_) => {
            return Err(WireError::new(
                "load_balancing.health_policy",
                format!("{} is unknown", lb.health_policy),
            ));
        }
    };
    let preference = lb
        .routing_preference
        .into_iter()
        .map(|scope| match wire::Scope::try_from(scope) {
            Ok(wire::Scope::Region) => Ok(Scope::Region),
            Ok(wire::Scope::Zone) => Ok(Scope::Zone),
            Ok(wire::Scope::Subzone) => Ok(Scope::Subzone),
            Ok(wire::Scope::Node) => Ok(Scope::Node),
            Ok(wire::Scope::Cluster) => Ok(Scope::Cluster),
            Ok(wire::Scope::Network) => Ok(Scope::Network),
            _ => Err(WireError::new("load_balancing.routing_preference", format!("{scope} is unknown"))),
        })
        .collect::<Result<_, _>>()?;
    Ok(LoadBalancing { mode, preference, allow_unhealthy, sticky: false })
}

/// Wire form of a workload; istiod's defaults are spelled out.
pub fn to_workload(w: &Workload) -> pb::Workload {
    pb::Workload {
        uid: w.uid.to_string(),
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        addresses: w.addresses.iter().map(|ip| ip_to_bytes(*ip)).collect(),
        hostname: w.hostname.to_string(),
        network: w.network.to_string(),
        tunnel_protocol: match w.tunnel {
            Tunnel::None => pb::TunnelProtocol::None,
            Tunnel::Hbone => pb::TunnelProtocol::Hbone,
        } as i32,
        trust_domain: w.trust_domain.to_string(),
        service_account: w.service_account.to_string(),
        waypoint: w.waypoint.as_ref().map(to_gateway),
        network_gateway: w.network_gateway.as_ref().map(to_gateway),
        node: w.node.to_string(),
        canonical_name: w.canonical_name.to_string(),
        canonical_revision: w.canonical_revision.to_string(),
        workload_type: match w.workload_type {
            WorkloadType::Deployment => pb::WorkloadType::Deployment,
            WorkloadType::Cronjob => pb::WorkloadType::Cronjob,
            WorkloadType::Pod => pb::WorkloadType::Pod,
            WorkloadType::Job => pb::WorkloadType::Job,
        } as i32,
        workload_name: w.workload_name.to_string(),
        native_tunnel: w.native_tunnel,
        authorization_policies: w.policies.iter().map(ToString::to_string).collect(),
        status: match w.health {
            Health::Healthy => pb::WorkloadStatus::Healthy,
            Health::Unhealthy => pb::WorkloadStatus::Unhealthy,
        } as i32,
        cluster_id: w.cluster.to_string(),
        services: w
            .services
            .iter()
            .map(|(name, ports)| (name.to_string(), pb::PortList { ports: to_ports(ports) }))
            .collect(),
        application_tunnel: w.application_tunnel.map(to_application_tunnel),
        locality: (w.locality != Locality::default()).then(|| pb::Locality {
            region: w.locality.region.to_string(),
            zone: w.locality.zone.to_string(),
            subzone: w.locality.subzone.to_string(),
        }),
        network_mode: if w.host_network { pb::NetworkMode::HostNetwork } else { pb::NetworkMode::Standard }
            as i32,
        extensions: Vec::new(),
        capacity: (w.capacity != 1).then_some(w.capacity),
    }
}

fn to_application_tunnel(t: ApplicationTunnel) -> pb::ApplicationTunnel {
    use pb::application_tunnel::Protocol;
    pb::ApplicationTunnel {
        protocol: if t.proxy_protocol { Protocol::Proxy } else { Protocol::None } as i32,
        port: t.port.unwrap_or(0).into(),
    }
}

fn to_ports(ports: &[PortMapping]) -> Vec<pb::Port> {
    ports
        .iter()
        .map(|p| pb::Port {
            service_port: p.service_port.into(),
            target_port: p.target_port.into(),
            app_protocol: match p.app_protocol {
                AppProtocol::Unknown => pb::AppProtocol::Unknown,
                AppProtocol::Http11 => pb::AppProtocol::Http11,
                AppProtocol::Http2 => pb::AppProtocol::Http2,
                AppProtocol::Grpc => pb::AppProtocol::Grpc,
                AppProtocol::Tcp => pb::AppProtocol::Tcp,
                AppProtocol::Tls => pb::AppProtocol::Tls,
            } as i32,
        })
        .collect()
}

fn to_gateway(g: &GatewayAddress) -> pb::GatewayAddress {
    let destination = match &g.destination {
        GatewayDestination::Hostname(name) => {
            pb::gateway_address::Destination::Hostname(pb::NamespacedHostname {
                namespace: name.namespace.to_string(),
                hostname: name.hostname.to_string(),
            })
        }
        GatewayDestination::Address(a) => pb::gateway_address::Destination::Address(pb::NetworkAddress {
            network: a.network.to_string(),
            address: ip_to_bytes(a.address),
            length: None,
        }),
    };
    pb::GatewayAddress { destination: Some(destination), hbone_mtls_port: g.hbone_port.into() }
}

/// Wire form of a service.
pub fn to_service(s: &Service) -> pb::Service {
    let sticky = s.load_balancing.sticky.then(|| pb::Extension { name: STICKY.into(), config: None });
    let sticky = sticky.into_iter();
    pb::Service {
        name: s.name.to_string(),
        namespace: s.key.namespace.to_string(),
        hostname: s.key.hostname.to_string(),
        addresses: s.vips.iter().map(to_vip).collect(),
        ports: to_ports(&s.ports),
        subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: s.waypoint.as_ref().map(to_gateway),
        load_balancing: (s.load_balancing != LoadBalancing::default())
            .then(|| to_load_balancing(&s.load_balancing)),
        ip_families: match s.ip_families {
            IpFamilies::Automatic => pb::IpFamilies::Automatic,
            IpFamilies::V4 => pb::IpFamilies::Ipv4Only,
            IpFamilies::V6 => pb::IpFamilies::Ipv6Only,
            IpFamilies::Dual => pb::IpFamilies::Dual,
        } as i32,
        extensions: sticky.collect(),
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .map(|(g, weight)| pb::WeightedWaypoint { destination: Some(to_gateway(g)), weight: *weight })
            .collect(),
        visibility: if s.namespace_only {
            pb::service::Visibility::Namespace
        } else {
            pb::service::Visibility::Public
        } as i32,
    }
}

fn to_vip(vip: &Vip) -> pb::NetworkAddress {
    let full = vip.range.max_prefix_len() == vip.range.prefix_len();
    pb::NetworkAddress {
        network: vip.network.to_string(),
        address: ip_to_bytes(vip.range.addr()),
        length: (!full).then(|| vip.range.prefix_len().into()),
    }
}

fn to_load_balancing(lb: &LoadBalancing) -> pb::LoadBalancing {
    use pb::load_balancing as wire;
    pb::LoadBalancing {
        routing_preference: lb
            .preference
            .iter()
            .map(|scope| match scope {
                Scope::Region => wire::Scope::Region,
                Scope::Zone => wire::Scope::Zone,
                Scope::Subzone => wire::Scope::Subzone,
                Scope::Node => wire::Scope::Node,
                Scope::Cluster => wire::Scope::Cluster,
                Scope::Network => wire::Scope::Network,
            } as i32)
            .collect(),
        mode: match lb.mode {
            LoadBalancingMode::Any => wire::Mode::UnspecifiedMode,
            LoadBalancingMode::Strict => wire::Mode::Strict,
            LoadBalancingMode::Failover => wire::Mode::Failover,
            LoadBalancingMode::Passthrough => wire::Mode::Passthrough,
        } as i32,
        health_policy: if lb.allow_unhealthy {
            wire::HealthPolicy::AllowAll
        } else {
            wire::HealthPolicy::OnlyHealthy
        } as i32,
    }
}
