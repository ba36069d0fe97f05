//! Paths of objects at the API server.

use serde_json::Value;

/// Kinds that culvert touches, and their names in paths.
const PLURALS: &[(&str, &str)] = &[
    ("ClusterRole", "clusterroles"),
    ("ClusterRoleBinding", "clusterrolebindings"),
    ("ConfigMap", "configmaps"),
    ("CustomResourceDefinition", "customresourcedefinitions"),
    ("DaemonSet", "daemonsets"),
    ("Deployment", "deployments"),
    ("Gateway", "gateways"),
    ("GatewayClass", "gatewayclasses"),
    ("Job", "jobs"),
    ("Lease", "leases"),
    ("Namespace", "namespaces"),
    ("NetworkPolicy", "networkpolicies"),
    ("Node", "nodes"),
    ("Pod", "pods"),
    ("PodDisruptionBudget", "poddisruptionbudgets"),
    ("PodMonitor", "podmonitors"),
    ("ResourceQuota", "resourcequotas"),
    ("Role", "roles"),
    ("RoleBinding", "rolebindings"),
    ("Secret", "secrets"),
    ("Service", "services"),
    ("ServiceAccount", "serviceaccounts"),
    ("ServiceMonitor", "servicemonitors"),
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
];

/// Name of a kind in paths.
pub fn plural(kind: &str) -> String {
    let known = PLURALS.iter().find(|(name, _)| *name == kind).map(|(_, plural)| (*plural).to_owned());
    known.unwrap_or_else(|| format!("{}s", kind.to_lowercase()))
}

/// Group of an API version; empty for the core one.
pub fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Path of a collection, of all namespaces when `namespace` is empty.
pub fn collection(api_version: &str, kind: &str, namespace: &str) -> String {
    let root = if api_version.contains('/') { "/apis/" } else { "/api/" };
    let plural = plural(kind);
    match namespace {
        "" => format!("{root}{api_version}/{plural}"),
        namespace => format!("{root}{api_version}/namespaces/{namespace}/{plural}"),
    }
}

/// Path of an object.
pub fn path(api_version: &str, kind: &str, namespace: &str, name: &str) -> String {
    format!("{}/{name}", collection(api_version, kind, namespace))
}

/// Path of an object as it is.
pub fn path_of(object: &Value) -> String {
    let field = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    path(field("/apiVersion"), field("/kind"), field("/metadata/namespace"), field("/metadata/name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api_server_and_every_kind_of_the_manifests_is_known() {
        assert_eq!(path("apps/v1", "DaemonSet", "a", "b"), "/apis/apps/v1/namespaces/a/daemonsets/b");
        assert_eq!(path("v1", "Namespace", "", "b"), "/api/v1/namespaces/b");
        assert_eq!(group("v1"), "");
        for object in crate::manifest::objects::all() {
            assert!(PLURALS.iter().any(|(kind, _)| *kind == object.kind()), "{object}");
        }
    }
}
