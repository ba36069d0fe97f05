//! Workloads: pods, workload entries and other endpoints (`istio.workload.Workload`).

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{GatewayAddress, PolicyName, ServiceName};
use crate::identity::Identity;

/// The primary key of a workload, for example `Kubernetes//Pod/default/client-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadUid(pub Arc<str>);

impl WorkloadUid {
    /// Wraps a uid.
    pub fn new(uid: impl Into<Arc<str>>) -> Self {
        Self(uid.into())
    }

    /// The uid that Istio gives a pod: `<cluster>//Pod/<namespace>/<name>`.
    pub fn pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a workload is reached (`TunnelProtocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Tunnel {
    /// Plain TCP.
    #[default]
    None,
    /// HBONE on port 15008.
    Hbone,
}

/// Kind of the owning controller (`WorkloadType`), used in baggage and metrics only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// Deployment.
    Deployment,
    /// CronJob.
    Cronjob,
    /// Pod.
    #[default]
    Pod,
    /// Job.
    Job,
}

impl WorkloadType {
    /// Lower-case name as baggage spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::Cronjob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether the workload may receive traffic (`WorkloadStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready or terminating.
    Unhealthy,
}

/// Region, zone and subzone; empty parts are unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

/// One port of a service as one endpoint serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Port that clients dial on the service.
    pub service_port: u16,
    /// Port on the workload; 0 means "named port, resolved per endpoint".
    pub target_port: u16,
    /// Declared application protocol, for waypoints.
    pub app_protocol: AppProtocol,
}

/// Declared protocol of a service port (`appProtocol` or the port's name prefix).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum AppProtocol {
    /// Not declared: a waypoint sniffs.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// TLS passthrough.
    Tls,
}

/// A tunnel that the application itself wants in front of its bytes (`ApplicationTunnel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationTunnel {
    /// Whether a PROXY v2 header precedes the bytes.
    pub proxy_protocol: bool,
    /// Port to dial instead of the requested one.
    pub port: Option<u16>,
}

/// The services that a workload backs, with its ports for each. Reads and writes like the map that
/// it holds; copies share it, because all pods of a deployment say the same (and a map of one entry
/// weighs more than the rest of a workload).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServicePorts(Arc<BTreeMap<ServiceName, Vec<PortMapping>>>);

impl Deref for ServicePorts {
    type Target = BTreeMap<ServiceName, Vec<PortMapping>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for ServicePorts {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl From<BTreeMap<ServiceName, Vec<PortMapping>>> for ServicePorts {
    fn from(map: BTreeMap<ServiceName, Vec<PortMapping>>) -> Self {
        Self(Arc::new(map))
    }
}

impl FromIterator<(ServiceName, Vec<PortMapping>)> for ServicePorts {
    fn from_iter<I: IntoIterator<Item = (ServiceName, Vec<PortMapping>)>>(items: I) -> Self {
        Self(Arc::new(items.into_iter().collect()))
    }
}

impl<'a> IntoIterator for &'a ServicePorts {
    type Item = (&'a ServiceName, &'a Vec<PortMapping>);
    type IntoIter = std::collections::btree_map::Iter<'a, ServiceName, Vec<PortMapping>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// One endpoint of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Primary key.
    pub uid: WorkloadUid,
    /// Pod or entry name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Addresses (0..n), IPv4-mapped IPv6 already folded.
    pub addresses: Vec<IpAddr>,
    /// DNS name to resolve when there are no addresses.
    pub hostname: Arc<str>,
    /// Network of the addresses; empty for the default network.
    pub network: Arc<str>,
    /// How to reach it.
    pub tunnel: Tunnel,
    /// Trust domain of its identity.
    pub trust_domain: Arc<str>,
    /// Service account of its identity.
    pub service_account: Arc<str>,
    /// Waypoint for traffic addressed to the workload itself.
    pub waypoint: Option<GatewayAddress>,
    /// Gateway to use from other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// Node name.
    pub node: Arc<str>,
    /// `service.istio.io/canonical-name`.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`.
    pub canonical_revision: Arc<str>,
    /// Kind of owner.
    pub workload_type: WorkloadType,
    /// Owner's name (metrics label).
    pub workload_name: Arc<str>,
    /// The application terminates HBONE itself.
    pub native_tunnel: bool,
    /// Names of the workload-scoped policies that apply.
    pub policies: Vec<PolicyName>,
    /// Readiness.
    pub health: Health,
    /// Cluster id.
    pub cluster: Arc<str>,
    /// Services that it backs, with its ports for each.
    pub services: ServicePorts,
    /// PROXY protocol or a port override towards the application.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    pub locality: Locality,
    /// Shares the node's network namespace: not indexed by address.
    pub host_network: bool,
    /// Load-balancing weight; 0 is never chosen.
    pub capacity: u32,
}

impl Workload {
    /// The identity that its certificate carries.
    pub fn identity(&self) -> Identity {
        Identity::new(self.trust_domain.clone(), self.namespace.clone(), self.service_account.clone())
    }

    /// A healthy plain workload with Istio's defaults: the starting point of fixtures and parsers.
    pub fn new(uid: WorkloadUid, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        let empty: Arc<str> = Arc::from("");
        Self {
            uid,
            name: name.into(),
            namespace: namespace.into(),
            addresses: Vec::new(),
            hostname: empty.clone(),
            network: empty.clone(),
            tunnel: Tunnel::None,
            trust_domain: Arc::from("cluster.local"),
            service_account: Arc::from("default"),
            waypoint: None,
            network_gateway: None,
            node: empty.clone(),
            canonical_name: empty.clone(),
            canonical_revision: empty.clone(),
            workload_type: WorkloadType::Pod,
            workload_name: empty,
            native_tunnel: false,
            policies: Vec::new(),
            health: Health::Healthy,
            cluster: Arc::from("Kubernetes"),
            services: ServicePorts::default(),
            application_tunnel: None,
            locality: Locality::default(),
            host_network: false,
            capacity: 1,
        }
    }
}
