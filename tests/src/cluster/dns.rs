//! The cluster's DNS: CoreDNS as a Deployment.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Cluster, node_files::DNS};

/// How long its image may take to arrive and its pod to be ready.
const READY: Duration = Duration::from_secs(90);

const COREFILE: &str = ".:53 {
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
    }
    cache 5
}
";

impl Cluster {
    /// Applies it.
    pub(super) fn install_dns(&self) -> Result<()> {
        self.apply_object(&json!({"apiVersion": "v1", "kind": "List", "items": objects()})).map(drop)
    }

    /// Waits until it answers.
    pub(super) fn dns_ready(&self) -> Result<()> {
        self.rolled_out("kube-system", "deployment/coredns", READY)
    }
}

fn objects() -> Vec<Value> {
    let meta = json!({"name": "coredns", "namespace": "kube-system"});
    let global = json!({"name": "coredns"});
    let group = "rbac.authorization.k8s.io";
    let labels = json!({"k8s-app": "kube-dns"});
    let pod = json!({"serviceAccountName": "coredns", "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "containers": [{"name": "coredns", "image": "culvert.local/test-coredns:1",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}]}],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}]});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": global, "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": global,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": COREFILE}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": pod}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS, "selector": labels, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}}),
    ]
}
