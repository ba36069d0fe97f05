//! Objects of the Prometheus operator. Without it, the pods' `prometheus.io` annotations do.

use serde_json::json;

use super::{File, Object, meta};
use crate::manifest::{AGENT, CONTROL, WAYPOINT_CLASS};

/// Address of the metrics, from the annotations: agents declare no ports, so that two can be on a node.
const ADDRESS: &str = "$1:15020";

pub(super) fn objects() -> Vec<Object> {
    let by_pod = |name: &str, component: &str, selector| {
        json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": meta(name, component),
            "spec": {
                "namespaceSelector": {"any": true},
                "selector": selector,
                "podMetricsEndpoints": [{
                    "path": "/metrics",
                    "relabelings": [{
                        "action": "replace",
                        "sourceLabels": ["__meta_kubernetes_pod_ip"],
                        "regex": "(.+)",
                        "replacement": ADDRESS,
                        "targetLabel": "__address__",
                    }],
                }],
            },
        })
    };
    let agents = by_pod(AGENT, "agent", json!({"matchLabels": {"app.kubernetes.io/name": AGENT}}));
    let class = json!({"matchLabels": {"gateway.networking.k8s.io/gateway-class-name": WAYPOINT_CLASS}});
    let waypoints = by_pod("culvert-waypoint", "waypoint", class);
    let control = json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": meta(CONTROL, "control"),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": CONTROL}},
            "endpoints": [{"port": "http-admin", "path": "/metrics"}],
        },
    });
    vec![
        Object::new(File::Monitoring, agents).when("monitoring.podMonitor"),
        Object::new(File::Monitoring, waypoints).when("monitoring.podMonitor"),
        Object::new(File::Monitoring, control).when("monitoring.serviceMonitor"),
    ]
}
