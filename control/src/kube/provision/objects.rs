//! The objects of a waypoint (pure).

use serde_json::{Value, json};

use super::{CONTROL, MANAGED_BY};
use crate::provision::{Place, Waypoint, labels};

/// What waypoints are made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of `culvert-waypoint`.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Control plane as waypoints reach it, `https://host:port`.
    pub control: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Cluster id.
    pub cluster: String,
}

/// Seconds that a waypoint drains before it ends, and that Kubernetes waits.
const DRAIN: u32 = 20;
/// Seconds for which one that ends still accepts: until every agent has been told.
const LINGER: u32 = 3;
const GRACE: u32 = 30;
/// uid and gid of the image's user.
const USER: u32 = 65532;
/// Seconds that a token lasts; the kubelet renews it at four fifths.
const TOKEN: u32 = 3600;

/// ServiceAccount, Service, PodDisruptionBudget and Deployment, in the order of `kinds`.
pub(super) fn of((namespace, name): &Place, waypoint: &Waypoint, settings: &Settings) -> [Value; 4] {
    let mut labels = labels(name, waypoint);
    labels[MANAGED_BY] = json!(CONTROL);
    labels["app.kubernetes.io/part-of"] = json!("culvert");
    let mut meta = json!({
        "name": name, "namespace": namespace, "labels": labels,
        "annotations": {"culvert.dev/reason": waypoint.why},
    });
    let owner = waypoint.gateway.as_ref().filter(|gateway| !gateway.uid.is_empty());
    if let Some(gateway) = owner {
        meta["ownerReferences"] = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "name": name, "uid": gateway.uid, "controller": true, "blockOwnerDeletion": false,
        }]);
    }
    let selector = json!({"gateway.networking.k8s.io/gateway-name": name});
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {
            "selector": selector,
            "ports": [{"name": "tcp-hbone", "port": 15008, "targetPort": 15008, "protocol": "TCP"}],
        }}),
        // One replica may always be taken away: a budget that forbids it would block the draining of nodes.
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": {
            "maxUnavailable": 1, "selector": {"matchLabels": selector},
        }}),
        // No replicas: one at first, then whatever an autoscaler or a user sets.
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": template(name, labels, settings),
        }}),
    ]
}

fn template(name: &str, mut labels: Value, settings: &Settings) -> Value {
    labels["istio.io/dataplane-mode"] = json!("none");
    labels["networking.istio.io/tunnel"] = json!("http");
    labels["sidecar.istio.io/inject"] = json!("false");
    let notes = json!({
        "prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/metrics",
    });
    json!({
        "metadata": {"labels": labels, "annotations": notes},
        "spec": {
            "serviceAccountName": name,
            // It talks to the control plane only, with the token below.
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": GRACE,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container(name, settings)],
            "volumes": [
                {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                    "audience": crate::kube::tokens::AUDIENCE, "expirationSeconds": TOKEN, "path": "istio-token",
                }}]}},
                {"name": "ca-root-cert", "configMap": {"name": crate::kube::bundle::NAME}},
                {"name": "state", "emptyDir": {"sizeLimit": "256Mi"}},
            ],
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"gateway.networking.k8s.io/gateway-name": name}},
            }],
        },
    })
}

fn container(name: &str, settings: &Settings) -> Value {
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "name": "waypoint", "image": settings.image, "imagePullPolicy": settings.pull_policy,
        "env": [
            value("CULVERT_CONTROL", &settings.control),
            value("CULVERT_CA_ROOT", "/var/run/secrets/culvert/root-cert.pem"),
            value("CULVERT_TOKEN_FILE", "/var/run/secrets/tokens/istio-token"),
            value("CULVERT_WAYPOINT_NAME", name),
            value("CULVERT_STATE_DIR", "/var/lib/culvert"),
            value("CULVERT_LINGER_SECONDS", &LINGER.to_string()),
            value("CULVERT_DRAIN_SECONDS", &DRAIN.to_string()),
            value("TRUST_DOMAIN", &settings.trust_domain),
            value("CLUSTER_ID", &settings.cluster),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("NODE_NAME", "spec.nodeName"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ],
        "ports": [
            {"name": "hbone", "containerPort": 15008, "protocol": "TCP"},
            {"name": "http-metrics", "containerPort": 15020, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 15020}, "periodSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 15020}, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            {"name": "ca-root-cert", "mountPath": "/var/run/secrets/culvert", "readOnly": true},
            {"name": "state", "mountPath": "/var/lib/culvert"},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::Owner;

    fn objects(gateway: Option<Owner>) -> [Value; 4] {
        let settings = Settings {
            image: "culvert.local/waypoint:0.1.0".into(),
            pull_policy: "IfNotPresent".into(),
            control: "https://culvert-control.culvert-system.svc:15012".into(),
            trust_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
        };
        of(&("shop".into(), "way".into()), &Waypoint { why: "routes".into(), gateway }, &settings)
    }

    #[test]
    fn every_object_is_labelled_as_ours_and_owned_by_its_gateway_if_there_is_one() {
        let owner = Owner { class: "istio-waypoint".into(), uid: "u".into() };
        for object in objects(Some(owner)) {
            let meta = &object["metadata"];
            assert_eq!((&meta["namespace"], &meta["name"]), (&json!("shop"), &json!("way")));
            assert_eq!(meta["labels"][MANAGED_BY], CONTROL);
            assert_eq!(meta["labels"]["gateway.networking.k8s.io/gateway-class-name"], "istio-waypoint");
            assert_eq!(meta["ownerReferences"][0]["uid"], "u");
        }
        for object in objects(None) {
            assert!(object["metadata"].get("ownerReferences").is_none());
        }
    }

    #[test]
    fn a_deployment_leaves_the_replicas_to_others_and_its_pods_may_nothing() {
        let [_, service, budget, deployment] = objects(None);
        assert!(deployment["spec"].get("replicas").is_none());
        let pod = &deployment["spec"]["template"];
        for (label, value) in service["spec"]["selector"].as_object().into_iter().flatten() {
            assert_eq!(&pod["metadata"]["labels"][label], value);
            assert_eq!(&budget["spec"]["selector"]["matchLabels"][label], value);
        }
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
    }
}
