//! ServiceEntry and WorkloadEntry: services and endpoints that no pod stands for.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_core::{
    identity::Identity,
    model::{AppProtocol, Locality},
};

use super::{Labels, ServicePort, TargetPort, authz::cidr};
use crate::reader::Reader;

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: only in another network, behind its gateway.
    Unknown,
    /// An address.
    Ip(IpAddr),
    /// A name that agents resolve for each connection.
    Host(Arc<str>),
}

/// A workload entry, or an endpoint of a service entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Address.
    pub place: Place,
    /// Own port numbers by name of the service's port.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// Labels.
    pub labels: Labels,
    /// Network; empty is the default one.
    pub network: Arc<str>,
    /// Region, zone and subzone.
    pub locality: Locality,
    /// Service account.
    pub service_account: Arc<str>,
    /// Weight.
    pub weight: u32,
    /// A health check of its node says no.
    pub unhealthy: bool,
}

/// How the endpoints of a service entry are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The address that the client dialled.
    None,
    /// Addresses of endpoints.
    Static,
    /// Names of endpoints or hosts, resolved by agents for each connection.
    Dns,
}

/// A service entry.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// Host names.
    pub hosts: Vec<Arc<str>>,
    /// Virtual addresses and ranges.
    pub addresses: Vec<IpNet>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Endpoints.
    pub endpoints: Vec<Entry>,
    /// Pods and workload entries that are endpoints.
    pub selector: Labels,
    /// Accepted identities of endpoints.
    pub identities: Vec<Identity>,
    /// Hidden from other namespaces (`exportTo: [.]`).
    pub namespace_only: bool,
}

/// Parses a workload entry; its status says whether it is healthy.
pub fn entry(doc: &Reader<'_>) -> Entry {
    let unhealthy = doc.at("status", |s| {
        s.each("conditions", |c| {
            c.string("type").as_deref() == Some("Healthy") && c.string("status").as_deref() == Some("False")
        })
    });
    let mut entry = doc.at("spec", |s| endpoint(&s));
    entry.unhealthy = unhealthy.contains(&true);
    entry
}

fn endpoint(e: &Reader<'_>) -> Entry {
    if e.present() {
        e.known(&["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"]);
    }
    let weight = e.number("weight", u64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok());
    Entry {
        place: e.at("address", |a| place(&a)),
        ports: e.at("ports", |list| {
            let names = list.raw().as_object().into_iter().flatten().map(|(name, _)| name);
            names.filter_map(|name| Some((Arc::from(name.as_str()), list.port(name)?))).collect()
        }),
        labels: e.map("labels"),
        network: e.string("network").unwrap_or_default(),
        locality: locality(&e.string("locality").unwrap_or_default()),
        service_account: e.string("serviceAccount").unwrap_or_else(|| Arc::from("default")),
        weight: weight.unwrap_or(1),
        unhealthy: false,
    }
}

fn place(field: &Reader<'_>) -> Place {
    let Some(text) = field.text().filter(|t| !t.is_empty()) else { return Place::Unknown };
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Place::Ip(ip.to_canonical());
    }
    if !is_host(text) {
        let reason = format!("{text:?} is neither an IP address nor a host name");
        field.error("bad-address", reason, "Unix sockets are not supported; correct the address");
    }
    Place::Host(text.into())
}

fn is_host(text: &str) -> bool {
    let label =
        |l: &str| !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    text.len() <= 253 && text.split('.').all(label)
}

/// `region/zone/subzone`.
fn locality(text: &str) -> Locality {
    let mut parts = text.split('/').map(Arc::from);
    let mut part = || parts.next().unwrap_or_default();
    Locality { region: part(), zone: part(), subzone: part() }
}

const SERVICE_ENTRY: [&str; 9] = [
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
];

/// Parses a service entry.
pub fn service_entry(spec: &Reader<'_>) -> ServiceEntry {
    spec.known(&SERVICE_ENTRY);
    let resolution = resolution(spec);
    let hosts = spec.each("hosts", |h| host(&h, resolution));
    if hosts.is_empty() {
        spec.at("hosts", |f| f.error("missing-field", "hosts is missing or empty", "name the service"));
    }
    let endpoints = spec.each("endpoints", |e| {
        let one = endpoint(&e);
        check_endpoint(&e, &one, resolution);
        one
    });
    let selector = spec.at("workloadSelector", |s| s.map("labels"));
    if !endpoints.is_empty() && !selector.is_empty() {
        spec.error("conflict", "endpoints and workloadSelector exclude each other", "keep one of them");
    }
    if resolution == Resolution::None && !(endpoints.is_empty() && selector.is_empty()) {
        let reason = "endpoints have no effect with resolution NONE: clients reach what they dial";
        spec.at("resolution", |f| f.warn("no-effect", reason, "use STATIC or DNS, or remove them"));
    }
    ServiceEntry {
        hosts,
        addresses: spec.each("addresses", |a| range(&a)).into_iter().flatten().collect(),
        ports: spec.each("ports", |p| port(&p)).into_iter().flatten().collect(),
        resolution,
        endpoints,
        selector,
        identities: spec.each("subjectAltNames", |n| identity(&n)).into_iter().flatten().collect(),
        namespace_only: namespace_only(spec),
    }
}

fn resolution(spec: &Reader<'_>) -> Resolution {
    match spec.string("resolution").as_deref() {
        None | Some("NONE") => Resolution::None,
        Some("STATIC") => Resolution::Static,
        Some("DNS" | "DNS_ROUND_ROBIN") => Resolution::Dns,
        Some(other) => {
            let reason = format!("resolution {other} is not supported");
            spec.at("resolution", |f| f.error("bad-value", reason, "use NONE, STATIC or DNS"));
            Resolution::None
        }
    }
}

fn host(field: &Reader<'_>, resolution: Resolution) -> Arc<str> {
    let text = field.text().unwrap_or_default();
    let bare = text.strip_prefix("*.").unwrap_or(text);
    if !is_host(bare) {
        field.error("bad-value", format!("{text:?} is no host name"), "write it like api.example.com");
    } else if bare != text && resolution == Resolution::Dns {
        let reason = "a wildcard cannot be resolved";
        field.error("bad-value", reason, "use resolution NONE, or name endpoints with STATIC");
    }
    text.to_ascii_lowercase().into()
}

fn check_endpoint(field: &Reader<'_>, one: &Entry, resolution: Resolution) {
    if resolution == Resolution::Static && matches!(one.place, Place::Host(_)) {
        let reason = "is a name, and resolution STATIC takes addresses only";
        field.at("address", |a| a.error("bad-address", reason, "write an IP address or use resolution DNS"));
    }
    if one.place == Place::Unknown {
        field.at("address", |a| a.error("missing-field", "address is missing", "add it"));
    }
}

fn range(field: &Reader<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let net = cidr(text).map(|net| net.trunc());
    if net.is_none() {
        field.error("bad-cidr", format!("{text:?} is no address or CIDR"), "write it like 10.0.0.0/8");
    }
    net
}

fn port(p: &Reader<'_>) -> Option<ServicePort> {
    p.known(&["number", "protocol", "name", "targetPort"]);
    let Some(number) = p.port("number") else {
        if !p.at("number", |n| n.present()) {
            p.at("number", |n| n.error("missing-field", "number is missing", "add it"));
        }
        return None;
    };
    let protocol = match p.string("protocol").unwrap_or_default().to_ascii_uppercase().as_str() {
        "UDP" => {
            let reason = "UDP is not carried by the mesh";
            p.at("protocol", |f| f.warn("unsupported-field", reason, "nothing to do"));
            return None;
        }
        "HTTP" => AppProtocol::Http11,
        "HTTP2" => AppProtocol::Http2,
        "GRPC" => AppProtocol::Grpc,
        "TLS" | "HTTPS" => AppProtocol::Tls,
        "TCP" | "MONGO" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    };
    let target = TargetPort::Number(p.port("targetPort").unwrap_or(number));
    Some(ServicePort { name: p.string("name").unwrap_or_default(), port: number, target, protocol })
}

/// An identity that cannot be read is left out: fewer peers are accepted, not more.
fn identity(field: &Reader<'_>) -> Option<Identity> {
    let text = field.text()?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let reason = format!("{text:?} is no SPIFFE identity and has no effect");
        field.warn("unsupported-field", reason, "write it like spiffe://cluster.local/ns/x/sa/y");
    }
    parsed
}

fn namespace_only(spec: &Reader<'_>) -> bool {
    let list = spec.strings("exportTo");
    match &*list.iter().map(|text| &**text).collect::<Vec<_>>() {
        [] | ["*"] => false,
        ["."] => true,
        _ => {
            let reason = "only \"*\" and \".\" are supported; the entry stays in its own namespace";
            spec.at("exportTo", |f| f.warn("unsupported-field", reason, "use \"*\" or \".\""));
            true
        }
    }
}
