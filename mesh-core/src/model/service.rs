//! Services and the gateways in front of them (`istio.workload.Service`).

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::PortMapping;
use crate::identity::Identity;

/// The primary key of a service: namespace and fully qualified host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServiceName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Host name, for example `nginx-service.default.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl ServiceName {
    /// Builds a name.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }
}

/// A service key that is not `<namespace>/<hostname>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("service key {0:?} is not <namespace>/<hostname>")]
pub struct ServiceNameError(pub String);

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((ns, host)) if !ns.is_empty() && !host.is_empty() && !host.contains('/') => {
                Ok(Self::new(ns, host))
            }
            _ => Err(ServiceNameError(text.into())),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// An address in a network; the empty network is the default one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetworkAddress {
    /// Network id.
    pub network: Arc<str>,
    /// Address.
    pub address: IpAddr,
}

/// A virtual address of a service: one address or a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Network id.
    pub network: Arc<str>,
    /// Address range; a single address has the full prefix length.
    pub range: IpNet,
}

/// Where a waypoint or gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GatewayDestination {
    /// A service (or a workload with that host name).
    Hostname(ServiceName),
    /// An address.
    Address(NetworkAddress),
}

/// A waypoint or network gateway (`GatewayAddress`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayAddress {
    /// Where it is.
    pub destination: GatewayDestination,
    /// Its HBONE port, normally 15008.
    pub hbone_port: u16,
}

/// Scope of a routing preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// How routing preferences are applied (`LoadBalancing.Mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LoadBalancingMode {
    /// Preferences ignored.
    #[default]
    Any,
    /// An endpoint must match all scopes.
    Strict,
    /// The best rank with an endpoint wins.
    Failover,
    /// No selection: dial the original destination.
    Passthrough,
}

/// How an endpoint of a service is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadBalancing {
    /// Mode.
    pub mode: LoadBalancingMode,
    /// Ordered scopes.
    pub preference: Vec<Scope>,
    /// Whether unhealthy endpoints take part (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
    /// One client keeps to one endpoint as long as that is eligible (`sessionAffinity: ClientIP`).
    #[serde(default)]
    pub sticky: bool,
}

/// Address families of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IpFamilies {
    /// No restriction.
    #[default]
    Automatic,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

/// A service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Primary key.
    pub key: ServiceName,
    /// Short name (metrics label).
    pub name: Arc<str>,
    /// Virtual addresses; empty for headless or host-name-only services.
    pub vips: Vec<Vip>,
    /// Ports.
    pub ports: Vec<PortMapping>,
    /// Extra identities accepted from its upstreams.
    pub subject_alt_names: Vec<Identity>,
    /// Waypoint for traffic addressed to the service.
    pub waypoint: Option<GatewayAddress>,
    /// Weighted waypoints (canary); used instead of `waypoint` when the weights sum above zero.
    pub weighted_waypoints: Vec<(GatewayAddress, u32)>,
    /// Endpoint choice.
    pub load_balancing: LoadBalancing,
    /// Address families.
    pub ip_families: IpFamilies,
    /// The real Kubernetes service among several with the same address.
    pub canonical: bool,
    /// Hidden from other namespaces.
    pub namespace_only: bool,
    /// Ingress gateways go through the waypoint as well; agents and waypoints do not look at it.
    #[serde(default)]
    pub ingress_use_waypoint: bool,
}

impl Service {
    /// A service with Istio's defaults.
    pub fn new(key: ServiceName, name: impl Into<Arc<str>>) -> Self {
        Self {
            key,
            name: name.into(),
            vips: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            namespace_only: false,
            ingress_use_waypoint: false,
        }
    }
}
