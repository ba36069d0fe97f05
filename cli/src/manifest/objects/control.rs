//! The control plane: any number of replicas, none of them privileged.

use serde_json::{Value, json};

use super::{File, Object, env, field, global, labels, meta, scraped};
use crate::manifest::{
    AGENT, CONTROL, crds,
    template::{each, when},
};

fn args() -> Value {
    json!([
        "--kubernetes",
        "--state-dir=/var/lib/culvert",
        "--listen=0.0.0.0:15012",
        "--admin=0.0.0.0:15014",
        "--cluster=${clusterId}",
        "--trust-domain=${trustDomain}",
        "--root-namespace=${rootNamespace}",
        "--waypoint-image=${image.registry}/waypoint:${image.tag}",
        "--waypoint-pull-policy=${image.pullPolicy}",
        format!("--agent-account=${{namespace}}/{AGENT}"),
        when("control.ztunnelAccount", json!("--agent-account=${control.ztunnelAccount}")),
        when("control.istioWaypointClass", json!("--istio-waypoint-class")),
        each("control.extraArgs"),
    ])
}

fn probe(path: &str, period: u8, failures: u8) -> Value {
    json!({"httpGet": {"path": path, "port": "http-admin"}, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures})
}

fn container() -> Value {
    json!({
        "name": "control",
        "image": "${image.registry}/control:${image.tag}",
        "imagePullPolicy": "${image.pullPolicy}",
        "args": args(),
        "env": [
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            env("RUST_LOG", "${logLevel}"),
        ],
        "ports": [
            {"name": "https-xds", "containerPort": 15012, "protocol": "TCP"},
            {"name": "http-admin", "containerPort": 15014, "protocol": "TCP"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": "${control.resources}",
        "readinessProbe": probe("/readyz", 2, 3),
        "livenessProbe": probe("/healthz", 10, 6),
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/culvert"}],
    })
}

/// Mistakes are refused when an object is written. While nobody answers everything is let in: what is wrong
/// is then said afterwards, as without it. The control plane puts the roots in.
fn webhook() -> Value {
    let rule = |(group, resources): &(&str, Vec<&str>)| {
        json!({"apiGroups": [group], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
            "resources": resources, "scope": "Namespaced"})
    };
    let mut groups = crds::resources();
    groups.push(("gateway.networking.k8s.io", vec!["gateways"]));
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": global(CONTROL, "control"),
        "webhooks": [{
            "name": "validation.culvert.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {"name": CONTROL, "namespace": "${namespace}", "path": "/validate", "port": 15012},
            },
            "failurePolicy": "Ignore",
            "matchPolicy": "Equivalent",
            "rules": groups.iter().map(rule).collect::<Vec<_>>(),
            "sideEffects": "None",
            "timeoutSeconds": 2,
        }],
    })
}

pub(super) fn objects() -> Vec<Object> {
    let selector = json!({"app.kubernetes.io/name": CONTROL});
    let pod = json!({
        "serviceAccountName": CONTROL,
        "priorityClassName": "${control.priorityClassName}",
        "nodeSelector": "${control.nodeSelector}",
        "tolerations": "${control.tolerations}",
        "affinity": "${control.affinity}",
        "topologySpreadConstraints": "${control.topologySpreadConstraints}",
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container()],
        "volumes": [{"name": "state", "emptyDir": {"sizeLimit": "256Mi"}}],
    });
    let mut pod_labels = labels("control");
    // Its clients reach it before any of them has a certificate.
    pod_labels["istio.io/dataplane-mode"] = json!("none");
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(CONTROL, "control"),
        "spec": {
            "replicas": "${control.replicas}",
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": pod_labels, "annotations": scraped(15014)}, "spec": pod},
        },
    });
    let port =
        |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(CONTROL, "control"),
        "spec": {"selector": selector, "ports": [port("https-xds", 15012), port("http-admin", 15014)]},
    });
    let budget = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(CONTROL, "control"),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": selector}},
    });
    vec![
        Object::new(File::Control, webhook()).when("validation.enabled"),
        Object::new(File::Control, service),
        Object::new(File::Control, deployment),
        Object::new(File::Control, budget).when("control.podDisruptionBudget"),
    ]
}
