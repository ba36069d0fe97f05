//! The kinds that are watched: where the API server has them, and whether nothing is compiled without them.

/// One kind of the API server.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// API group; empty for the core one.
    pub group: &'static str,
    /// Versions that are understood, best first.
    pub versions: &'static [&'static str],
    /// Name in paths.
    pub plural: &'static str,
    /// Name in documents.
    pub kind: &'static str,
    /// Name of its objects' keys.
    pub known: &'static str,
    /// Has a namespace.
    pub namespaced: bool,
    /// Defined by a CustomResourceDefinition: may be absent, and may come later.
    pub custom: bool,
    /// Decides what is compiled; the others are only reported as without effect.
    pub needed: bool,
}

impl Kind {
    /// Name of the CustomResourceDefinition.
    pub fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// The best version of those that are served.
    pub fn version(&self, served: &[String]) -> Option<&'static str> {
        self.versions.iter().find(|known| served.iter().any(|one| one == **known)).copied()
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.into() } else { format!("{}/{version}", self.group) }
    }
}

const fn core(group: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group,
        versions: &["v1"],
        plural,
        kind,
        known: kind,
        namespaced: true,
        custom: false,
        needed: true,
    }
}

const fn cluster(kind: &'static str, plural: &'static str) -> Kind {
    Kind { namespaced: false, ..core("", kind, plural) }
}

const fn istio(group: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    let versions = &["v1", "v1beta1", "v1alpha3"];
    Kind { group, versions, plural, kind, known: kind, namespaced: true, custom: true, needed: true }
}

const fn gateway(kind: &'static str, plural: &'static str) -> Kind {
    let versions = &["v1", "v1beta1", "v1alpha2"];
    let group = "gateway.networking.k8s.io";
    Kind { group, versions, plural, kind, known: kind, namespaced: true, custom: true, needed: true }
}

const fn reported(kind: Kind) -> Kind {
    Kind { needed: false, ..kind }
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";

/// All kinds, each once.
pub static KINDS: [Kind; 21] = [
    cluster("Namespace", "namespaces"),
    cluster("Node", "nodes"),
    core("", "Pod", "pods"),
    core("", "Service", "services"),
    core("", "ServiceAccount", "serviceaccounts"),
    core("discovery.k8s.io", "EndpointSlice", "endpointslices"),
    istio(NETWORKING, "VirtualService", "virtualservices"),
    istio(NETWORKING, "DestinationRule", "destinationrules"),
    istio(NETWORKING, "ServiceEntry", "serviceentries"),
    istio(NETWORKING, "WorkloadEntry", "workloadentries"),
    istio(SECURITY, "PeerAuthentication", "peerauthentications"),
    istio(SECURITY, "AuthorizationPolicy", "authorizationpolicies"),
    gateway("Gateway", "gateways"),
    Kind { namespaced: false, ..gateway("GatewayClass", "gatewayclasses") },
    reported(istio(SECURITY, "RequestAuthentication", "requestauthentications")),
    reported(Kind { known: "Gateway.networking.istio.io", ..istio(NETWORKING, "Gateway", "gateways") }),
    reported(istio(NETWORKING, "EnvoyFilter", "envoyfilters")),
    reported(istio(NETWORKING, "Sidecar", "sidecars")),
    reported(Kind {
        versions: &["v1", "v1alpha1"],
        ..istio("telemetry.istio.io", "Telemetry", "telemetries")
    }),
    reported(gateway("HTTPRoute", "httproutes")),
    reported(gateway("GRPCRoute", "grpcroutes")),
];

/// The kind of a CustomResourceDefinition; none when it is not of ours.
pub fn of_definition(name: &str) -> Option<&'static Kind> {
    let (plural, group) = name.split_once('.')?;
    KINDS.iter().find(|kind| kind.custom && kind.plural == plural && kind.group == group)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{finding::Sink, object};

    #[test]
    fn every_kind_is_read_or_reported_under_the_name_that_its_objects_get() {
        for kind in &KINDS {
            for version in kind.versions {
                let sink = Sink::default();
                let value = json!({"apiVersion": kind.api_version(version), "kind": kind.kind,
                                   "metadata": {"name": "a"}, "spec": {}});
                let (key, _) = object::parse(&value, &sink);
                let problems = sink.into_problems();
                assert_eq!(*key.kind, *kind.known, "{problems:?}");
                assert_eq!(key.namespace.is_empty(), !kind.namespaced, "{key}");
                assert!(problems.iter().all(|p| p.code != "unknown-kind"), "{problems:?}");
                let reported = problems.iter().any(|p| p.code == "unsupported-kind");
                assert_eq!(reported, !kind.needed, "{key}: {problems:?}");
            }
        }
    }

    #[test]
    fn the_best_served_version_is_taken_and_none_of_an_unknown_future() {
        let kind = of_definition("virtualservices.networking.istio.io").unwrap();
        let served = |names: &[&str]| names.iter().map(|n| (*n).to_string()).collect::<Vec<_>>();
        assert_eq!(kind.version(&served(&["v1alpha3", "v1beta1", "v1"])), Some("v1"));
        assert_eq!(kind.version(&served(&["v1alpha3"])), Some("v1alpha3"));
        assert_eq!(kind.version(&served(&["v9"])), None);
        assert!(of_definition("virtualservices.example.com").is_none());
    }
}
