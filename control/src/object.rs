//! Documents → objects: what each kind says, with every field that has no effect named.

mod api;
mod authz;
mod external;
mod kube;
mod rule;
mod slice;
pub mod stand_in;
mod unsupported;
mod virtual_service;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::Value;

pub use authz::{Authorization, Mode, PeerAuth, cidr};
pub use external::{Entry, Place, Resolution, ServiceEntry};
pub use kube::{Gateway, Pod, Service, ServicePort, TargetPort, WAYPOINT_CLASSES};
pub use rule::DestinationRule;
pub use slice::{Slice, SliceEndpoint};
pub use virtual_service::VirtualService;

use crate::{
    finding::{Severity, Sink},
    reader::Reader,
};

/// Labels or annotations.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Identity of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub kind: Arc<str>,
    /// Namespace; empty for kinds without one.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.kind.is_empty() {
            write!(f, "{} ", self.kind)?;
        }
        match self.namespace.is_empty() {
            true => f.write_str(&self.name),
            false => write!(f, "{}/{}", self.namespace, self.name),
        }
    }
}

/// Metadata of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meta {
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// `creationTimestamp`, for "oldest wins"; empty sorts first.
    pub created: Arc<str>,
    /// `uid`; empty outside an API server.
    pub uid: Arc<str>,
}

/// An object.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Metadata.
    pub meta: Meta,
    /// The rest.
    pub body: Body,
}

/// What a kind says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Only its metadata matters.
    Plain,
    /// Pod.
    Pod(Pod),
    /// Service.
    Service(Service),
    /// WorkloadEntry.
    Entry(Entry),
    /// ServiceEntry.
    ServiceEntry(ServiceEntry),
    /// EndpointSlice.
    Slice(Slice),
    /// VirtualService.
    VirtualService(VirtualService),
    /// DestinationRule.
    DestinationRule(DestinationRule),
    /// PeerAuthentication.
    PeerAuth(PeerAuth),
    /// AuthorizationPolicy.
    Authorization(Authorization),
    /// Gateway of a waypoint class.
    Gateway(Gateway),
}

const CLUSTER_KINDS: [&str; 3] = ["Namespace", "Node", "GatewayClass"];
const PLAIN: [&str; 8] = [
    "Namespace",
    "Node",
    "ServiceAccount",
    "Deployment",
    "StatefulSet",
    "ReplicaSet",
    "ConfigMap",
    "GatewayClass",
];
/// Kinds that Istio's users expect to work and that we do not read.
const NOT_YET: [&str; 8] = [
    "Endpoints",
    "RequestAuthentication",
    "EnvoyFilter",
    "Sidecar",
    "Telemetry",
    "HTTPRoute",
    "GRPCRoute",
    "Gateway.networking.istio.io",
];

/// Kinds that are read.
pub const KINDS: [&str; 18] = [
    "Namespace",
    "Node",
    "ServiceAccount",
    "Deployment",
    "StatefulSet",
    "ReplicaSet",
    "ConfigMap",
    "Pod",
    "Service",
    "WorkloadEntry",
    "ServiceEntry",
    "EndpointSlice",
    "Gateway",
    "GatewayClass",
    "VirtualService",
    "DestinationRule",
    "PeerAuthentication",
    "AuthorizationPolicy",
];

/// Parses a document; none when there is nothing to keep. Errors in `sink` refuse it.
pub fn parse(value: &Value, sink: &Sink) -> (Key, Option<Object>) {
    let doc = Reader::root(value, sink);
    let kind = api::kind_of(&doc, doc.required("kind"));
    let (namespace, name, meta) = doc.at("metadata", |m| {
        let name = m.required("name");
        let namespace = m.string("namespace").unwrap_or_else(|| Arc::from("default"));
        if m.present() {
            for (field, text) in [("name", &name), ("namespace", &namespace)] {
                m.opt(field, |f| check_name(&f, text));
            }
        }
        let created = m.string("creationTimestamp").unwrap_or_else(|| Arc::from(""));
        let uid = m.string("uid").unwrap_or_default();
        (namespace, name, Meta { labels: m.map("labels"), annotations: m.map("annotations"), created, uid })
    });
    doc.at("metadata", |m| unsupported::report(&m, &meta));
    let namespace = if CLUSTER_KINDS.contains(&&*kind) { Arc::from("") } else { namespace };
    let key = Key { kind: kind.clone(), namespace: namespace.clone(), name };
    let spec = |f: &mut dyn FnMut(Reader<'_>) -> Body| doc.at("spec", |s| required_spec(&s).then(|| f(s)));
    let body = match &*kind {
        "Pod" => Some(Body::Pod(kube::pod(&doc))),
        "Service" => spec(&mut |s| Body::Service(kube::service(&s))),
        "WorkloadEntry" => spec(&mut |_| Body::Entry(external::entry(&doc))),
        "ServiceEntry" => spec(&mut |s| Body::ServiceEntry(external::service_entry(&s))),
        "EndpointSlice" => Some(Body::Slice(slice::parse(&doc, &meta.labels))),
        "Gateway" => spec(&mut |s| Body::Gateway(kube::gateway(&s))),
        "VirtualService" => spec(&mut |s| Body::VirtualService(virtual_service::parse(&s, &namespace))),
        "DestinationRule" => spec(&mut |s| Body::DestinationRule(rule::parse(&s, &namespace))),
        "PeerAuthentication" => Some(doc.at("spec", |s| Body::PeerAuth(authz::peer(&s)))),
        "AuthorizationPolicy" => Some(doc.at("spec", |s| Body::Authorization(authz::policy(&s, &namespace)))),
        plain if PLAIN.contains(&plain) => Some(Body::Plain),
        "" => None,
        later if NOT_YET.contains(&later) => {
            let reason = format!("kind {later} is not supported yet and has no effect");
            sink.add(Severity::Warning, "kind", "unsupported-kind", reason, "do not rely on it");
            Some(Body::Plain)
        }
        other => {
            let reason = format!("kind {other} is not used by the mesh");
            sink.add(
                Severity::Info,
                "kind",
                "unknown-kind",
                reason,
                "nothing to do unless it is a typing error",
            );
            Some(Body::Plain)
        }
    };
    (key, body.map(|body| Object { meta, body }))
}

fn required_spec(spec: &Reader<'_>) -> bool {
    if !spec.raw().is_object() {
        spec.error("missing-field", "spec is missing or no mapping", "add it");
    }
    spec.raw().is_object()
}

fn check_name(field: &Reader<'_>, name: &str) {
    let ok = name.len() <= 253
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.');
    if !ok {
        let remedy = "use lower-case letters, digits, - and .";
        field.error("bad-name", format!("{name:?} is no Kubernetes name"), remedy);
    }
}

/// Reports an `exportTo` other than everywhere, which is what it is here.
fn exported(spec: &Reader<'_>) {
    if spec.strings("exportTo").iter().any(|to| **to != *"*") {
        let reason = "exportTo other than \"*\" is not supported and has no effect";
        spec.at("exportTo", |f| f.warn("unsupported-field", reason, "remove it"));
    }
}

/// The namespace and full name of a host: short names are of the object's namespace. The namespace is
/// empty when the host is no service of the cluster (then compilation looks it up).
pub fn resolve_host(host: &str, namespace: &str) -> (Arc<str>, Arc<str>) {
    if !host.contains('.') {
        return (namespace.into(), format!("{host}.{namespace}.svc.cluster.local").into());
    }
    let of = host.strip_suffix(".svc.cluster.local").and_then(|rest| rest.split_once('.'));
    (of.map_or("", |(_, ns)| ns).into(), host.into())
}
