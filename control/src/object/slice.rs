//! EndpointSlice.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{Labels, kube::address};
use crate::reader::Reader;

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceEndpoint {
    /// Addresses of the same endpoint.
    pub ips: Vec<IpAddr>,
    /// Takes connections.
    pub ready: bool,
    /// Node.
    pub node: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Namespace and name of its pod; an empty namespace is that of the slice.
    pub pod: Option<(Arc<str>, Arc<str>)>,
}

/// An endpoint slice.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Service, of the same namespace.
    pub service: Option<Arc<str>>,
    /// Ports by the name of the service's port.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// Parses an endpoint slice; the service is named by a label.
pub fn parse(doc: &Reader<'_>, labels: &Labels) -> Slice {
    let names = doc.string("addressType").as_deref() == Some("FQDN");
    if names {
        let reason = "FQDN is not supported: the slice has no endpoints";
        doc.at("addressType", |f| {
            f.warn("unsupported-field", reason, "use a ServiceEntry with resolution DNS")
        });
    }
    let ports = doc.each("ports", |p| Some((p.string("name").unwrap_or_default(), p.port("port")?)));
    let endpoints = if names { Vec::new() } else { doc.each("endpoints", |e| endpoint(&e)) };
    Slice {
        service: labels.get("kubernetes.io/service-name").cloned(),
        ports: ports.into_iter().flatten().collect(),
        endpoints,
    }
}

fn endpoint(e: &Reader<'_>) -> SliceEndpoint {
    let ips = e.each("addresses", |ip| address(&ip)).into_iter().flatten();
    SliceEndpoint {
        ips: ips.map(|ip| ip.to_canonical()).collect(),
        // Nothing said means ready (the API's own default).
        ready: e.at("conditions", |c| !c.at("ready", |r| r.present()) || c.flag("ready")),
        node: e.string("nodeName").unwrap_or_default(),
        zone: e.string("zone").unwrap_or_default(),
        pod: e.at("targetRef", |t| {
            let pod = t.string("kind").as_deref() == Some("Pod");
            pod.then(|| (t.string("namespace").unwrap_or_default(), t.string("name").unwrap_or_default()))
        }),
    }
}
