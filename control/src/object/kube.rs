//! Kubernetes kinds and Gateway.

use std::{net::IpAddr, sync::Arc};

use mesh_core::model::{AppProtocol, IpFamilies};

use super::Labels;
use crate::reader::Reader;

/// A pod as far as the mesh cares.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Node.
    pub node: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Shares the node's network.
    pub host_network: bool,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Ready and not terminating.
    pub ready: bool,
    /// Being deleted.
    pub terminating: bool,
    /// Succeeded or failed: gone for the mesh.
    pub finished: bool,
    /// Owner kind and name.
    pub owner: Option<(Arc<str>, Arc<str>)>,
    /// Named container ports.
    pub ports: Vec<(Arc<str>, u16)>,
}

/// Where a service port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A container port's name.
    Named(Arc<str>),
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePort {
    /// Name; empty when it has none.
    pub name: Arc<str>,
    /// Port.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// Declared protocol.
    pub protocol: AppProtocol,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Selector; empty selects nothing.
    pub selector: Labels,
    /// Given addresses.
    pub ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// `trafficDistribution`.
    pub distribution: Option<Arc<str>>,
    /// `sessionAffinity: ClientIP`.
    pub sticky: bool,
    /// `ipFamilies`.
    pub families: IpFamilies,
    /// `type: ExternalName`: a name for DNS only, nothing for the mesh.
    pub external_name: bool,
}

/// A Gateway of a waypoint class.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// `gatewayClassName`.
    pub class: Arc<str>,
}

/// Parses a pod.
pub fn pod(doc: &Reader<'_>) -> Pod {
    let owner = doc.at("metadata", |m| {
        m.each("ownerReferences", |o| Some((o.string("kind")?, o.string("name")?)))
            .into_iter()
            .flatten()
            .next()
    });
    let terminating = doc.at("metadata", |m| m.at("deletionTimestamp", |t| t.present()));
    let (node, service_account, host_network, ports) = doc.at("spec", |s| {
        let ports = s
            .each("containers", |c| c.each("ports", |p| Some((p.string("name")?, p.port("containerPort")?))));
        (
            s.string("nodeName").unwrap_or_default(),
            s.string("serviceAccountName").unwrap_or_else(|| Arc::from("default")),
            s.flag("hostNetwork"),
            ports.into_iter().flatten().flatten().collect(),
        )
    });
    doc.at("status", |s| {
        let mut ips: Vec<IpAddr> =
            s.each("podIPs", |p| p.at("ip", |ip| address(&ip))).into_iter().flatten().collect();
        if ips.is_empty() {
            ips.extend(s.at("podIP", |ip| address(&ip)));
        }
        let ready = s.each("conditions", |c| {
            c.string("type").as_deref() == Some("Ready") && c.string("status").as_deref() == Some("True")
        });
        let finished = matches!(s.string("phase").as_deref(), Some("Succeeded" | "Failed"));
        let ready = ready.contains(&true) && !terminating;
        Pod { node, service_account, host_network, ips, ready, terminating, finished, owner, ports }
    })
}

pub(super) fn address(field: &Reader<'_>) -> Option<IpAddr> {
    let text = field.text().filter(|t| !t.is_empty())?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        field.error("bad-address", format!("{text:?} is no IP address"), "correct the address");
    }
    parsed
}

/// Parses a service.
pub fn service(spec: &Reader<'_>) -> Service {
    let mut ips: Vec<IpAddr> = Vec::new();
    let headless = spec.string("clusterIP").as_deref() == Some("None");
    if !headless {
        ips = spec.each("clusterIPs", |ip| address(&ip)).into_iter().flatten().collect();
        if ips.is_empty() {
            ips.extend(spec.at("clusterIP", |ip| address(&ip)));
        }
    }
    Service {
        sticky: spec.string("sessionAffinity").as_deref() == Some("ClientIP"),
        external_name: spec.string("type").as_deref() == Some("ExternalName"),
        selector: spec.map("selector"),
        ips,
        headless,
        ports: spec.each("ports", |p| service_port(&p)).into_iter().flatten().collect(),
        publish_not_ready: spec.flag("publishNotReadyAddresses"),
        local_only: spec.string("internalTrafficPolicy").as_deref() == Some("Local"),
        distribution: spec.opt("trafficDistribution", |d| distribution(&d)).flatten(),
        families: families(spec),
    }
}

/// A way to prefer near endpoints; another one prefers none.
fn distribution(field: &Reader<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    if !["PreferClose", "PreferSameZone", "PreferSameNode"].contains(&text) {
        let reason = format!("{text} is not supported: all endpoints are the same");
        field.warn("unsupported-field", reason, "use PreferSameZone, PreferSameNode or PreferClose");
    }
    Some(text.into())
}

fn families(spec: &Reader<'_>) -> IpFamilies {
    let known = ["IPv4", "IPv6"];
    let said = spec.each("ipFamilies", |item| {
        let text = item.element().unwrap_or_default();
        if !text.is_empty() && !known.contains(&text) {
            item.error("bad-value", format!("{text:?} is no address family"), "use IPv4 or IPv6");
        }
        Arc::<str>::from(text)
    });
    match known.map(|family| said.iter().any(|text| **text == *family)) {
        [true, true] => IpFamilies::Dual,
        [true, false] => IpFamilies::V4,
        [false, true] => IpFamilies::V6,
        [false, false] => IpFamilies::Automatic,
    }
}

fn service_port(p: &Reader<'_>) -> Option<ServicePort> {
    if !p.at("port", |f| f.present()) {
        p.at("port", |f| f.error("missing-field", "port is missing", "add it"));
        return None;
    }
    let port = p.port("port")?;
    let protocol = p.string("protocol").unwrap_or_else(|| Arc::from("TCP"));
    if &*protocol != "TCP" {
        p.at("protocol", |f| {
            f.warn("unsupported-field", format!("{protocol} is not carried by the mesh"), "nothing to do");
        });
        return None;
    }
    let target = p.at("targetPort", |t| match t.raw().as_str() {
        Some(name) => Some(TargetPort::Named(name.into())),
        None if t.present() => p.port("targetPort").map(TargetPort::Number),
        None => Some(TargetPort::Number(port)),
    })?;
    let name = p.string("name").unwrap_or_default();
    let declared = p.string("appProtocol").unwrap_or_else(|| name.clone());
    Some(ServicePort { name, port, target, protocol: app_protocol(&declared) })
}

fn app_protocol(name: &str) -> AppProtocol {
    match name.rsplit('/').next().unwrap_or(name).split('-').next().unwrap_or_default() {
        "http" | "http1" | "ws" => AppProtocol::Http11,
        "http2" | "h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "mongo" | "redis" | "mysql" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

/// Classes whose Gateways are waypoints: ours, and Istio's where istiod is absent.
pub const WAYPOINT_CLASSES: [&str; 2] = ["culvert-waypoint", "istio-waypoint"];

/// Parses a Gateway. One of a waypoint class needs the listener that agents tunnel to.
pub fn gateway(spec: &Reader<'_>) -> Gateway {
    let class = spec.required("gatewayClassName");
    let listeners = spec.each("listeners", |l| (l.string("protocol").unwrap_or_default(), l.port("port")));
    let hbone = |(protocol, port): &(Arc<str>, Option<u16>)| &**protocol == "HBONE" && *port == Some(15008);
    if WAYPOINT_CLASSES.contains(&&*class) {
        if !listeners.iter().any(hbone) {
            let reason = "a waypoint is reached by HBONE on port 15008, and no listener says so";
            let remedy = "add the listener {name: mesh, port: 15008, protocol: HBONE}";
            spec.at("listeners", |l| l.error("missing-listener", reason, remedy));
        } else if listeners.len() > 1 {
            let reason = "a waypoint listens on 15008 only: other listeners have no effect";
            spec.at("listeners", |l| l.warn("unsupported-field", reason, "remove them"));
        }
        for name in ["addresses", "infrastructure"] {
            let reason = format!("{name} of a waypoint is not supported and has no effect");
            spec.opt(name, |field| field.warn("unsupported-field", reason, "remove it"));
        }
    }
    Gateway { class }
}
