//! The namespace, the class of waypoints, network policies, and what single platforms ask for.

use serde_json::{Value, json};

use super::{File, Object, global, labels, meta};
use crate::manifest::{AGENT, CONTROL, PART_OF, WAYPOINT_CLASS};

pub(super) fn namespace() -> Object {
    let labels = json!({
        PART_OF.0: PART_OF.1,
        // Agents use the node's network and folders, which lower levels of pod security refuse.
        "pod-security.kubernetes.io/enforce": "privileged",
        "pod-security.kubernetes.io/audit": "privileged",
        "pod-security.kubernetes.io/warn": "privileged",
    });
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "${namespace}", "labels": labels}});
    Object::new(File::Namespace, body)
}

pub(super) fn objects() -> Vec<Object> {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": global(WAYPOINT_CLASS, "control"),
        "spec": {
            "controllerName": "culvert.dev/waypoint-controller",
            "description": "Waypoints: L7 routing and policy for services of the mesh.",
        },
    });
    vec![
        Object::new(File::GatewayClass, class).when("gatewayClass.enabled"),
        Object::new(File::Network, policy()).when("networkPolicy.enabled"),
        Object::new(File::Platform, quota()).when("resourceQuota.enabled"),
        Object::new(File::Platform, constraint(AGENT, "agent", "privileged")).when("openshift.enabled"),
        Object::new(File::Platform, constraint(CONTROL, "control", "nonroot-v2")).when("openshift.enabled"),
    ]
}

/// Agents call from their nodes' addresses and waypoints from anywhere, so the port of configuration and
/// certificates, which asks each caller for a token, is open to all; the admin one is for pods of the
/// cluster (Prometheus). Egress is left alone: the API server's address is not known here.
fn policy() -> Value {
    let port = |port: &str| json!([{"port": port, "protocol": "TCP"}]);
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(CONTROL, "control"),
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": CONTROL}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": port("https-xds")},
                {"ports": port("http-admin"), "from": [{"namespaceSelector": {}}]},
            ],
        },
    })
}

fn quota() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "culvert-critical-pods", "namespace": "${namespace}", "labels": labels("agent")},
        "spec": {
            "hard": {"pods": "5000"},
            "scopeSelector": {"matchExpressions": [{
                "operator": "In",
                "scopeName": "PriorityClass",
                "values": ["system-node-critical", "system-cluster-critical"],
            }]},
        },
    })
}

fn constraint(account: &str, component: &str, scc: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": meta(&format!("{account}-scc"), component),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": format!("system:openshift:scc:{scc}"),
        },
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "${namespace}"}],
    })
}
