//! Istio's own node agents, istio-cni and ztunnel, as its charts install them, on the nodes that ours leave
//! to them.

use anyhow::Result;
use serde_json::{Value, json};

use crate::stage::{ROLLOUT, Stage};

/// Istio's namespace.
pub const ISTIO: &str = "istio-system";
/// Label of the nodes that have our agent.
pub const OURS: &str = "culvert.dev/agent";

/// Whom ztunnel asks for configuration and certificates.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    address: &'static str,
    /// ConfigMap with the roots that its certificate is verified by.
    roots: &'static str,
}

/// Our control plane.
pub const CULVERT: Upstream =
    Upstream { address: "https://culvert-control.culvert-system.svc:15012", roots: "culvert-ca-root-cert" };

/// Istio's own.
pub const ISTIOD: Upstream =
    Upstream { address: "https://istiod.istio-system.svc:15012", roots: "istio-ca-root-cert" };

/// What keeps Istio's agents from our nodes. With a node selector in its place istio-cni would think of an
/// upgrade when its pod goes, and leave its plugin in the node's chain, where it fails every pod.
pub fn off_our_nodes() -> Value {
    let free = json!({"matchExpressions": [{"key": OURS, "operator": "DoesNotExist"}]});
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [free]}}})
}

impl Stage {
    /// Puts istio-cni and ztunnel on the nodes that this affinity allows, and waits until they are ready.
    pub fn istio_agents(&self, upstream: Upstream, affinity: &Value) -> Result<()> {
        let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ISTIO}});
        self.cluster.apply_object(&home)?;
        let mut objects = [cni(), ztunnel(upstream)].concat();
        for set in objects.iter_mut().filter(|object| object["kind"] == "DaemonSet") {
            set["spec"]["template"]["spec"]["affinity"] = affinity.clone();
        }
        self.cluster.apply_object(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))?;
        for agent in ["istio-cni-node", "ztunnel"] {
            self.cluster.rolled_out(ISTIO, &format!("daemonset/{agent}"), ROLLOUT)?;
        }
        Ok(())
    }
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": ISTIO})
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// Environment variables with fixed values.
fn fixed(settings: &[(&str, &str)]) -> Vec<Value> {
    settings.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// Environment variables about the pod itself.
fn own() -> Vec<Value> {
    vec![
        field("NODE_NAME", "spec.nodeName"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
    ]
}

fn capabilities(add: &[&str]) -> Value {
    json!({"privileged": false, "runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": add}})
}

/// A volume of the node and where a container sees it.
fn host(name: &str, path: &str, at: &str, kind: &str) -> (Value, Value) {
    let volume = json!({"name": name, "hostPath": {"path": path, "type": kind}});
    (volume, json!({"name": name, "mountPath": at}))
}

fn daemon_set(name: &str, labels: &Value, pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["tolerations"] = json!([{"operator": "Exists"}]);
    pod["priorityClassName"] = json!("system-node-critical");
    let mut all = labels.clone();
    all["istio.io/dataplane-mode"] = json!("none");
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta(name),
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": all}, "spec": pod}}})
}

/// The node agent that captures pods, and puts its plugin into the node's CNI chain.
fn cni() -> Vec<Value> {
    let name = json!({"name": "istio-cni"});
    let group = "rbac.authorization.k8s.io";
    let selectors = json!([
        {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
        {"podSelector": {"matchExpressions": [
            {"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}]},
         "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]);
    let mut env = own();
    env.extend(fixed(&[
        ("AMBIENT_ENABLED", "true"),
        ("AMBIENT_ENABLEMENT_SELECTOR", &selectors.to_string()),
        ("AMBIENT_DNS_CAPTURE", "true"),
        ("AMBIENT_IPV6", "true"),
        ("CHAINED_CNI_PLUGIN", "true"),
        ("EXCLUDE_NAMESPACES", "kube-system"),
        ("REPAIR_ENABLED", "false"),
        // One program in its image instead of three families of them.
        ("NATIVE_NFTABLES", "true"),
        ("ALLOW_SWITCH_TO_HOST_NS", "true"),
    ]));
    let (volumes, mut mounts): (Vec<Value>, Vec<Value>) = [
        host("bin", "/opt/cni/bin", "/host/opt/cni/bin", "Directory"),
        host("conf", "/etc/cni/net.d", "/host/etc/cni/net.d", "Directory"),
        host("proc", "/proc", "/host/proc", "Directory"),
        host("own", "/var/run/istio-cni", "/var/run/istio-cni", "DirectoryOrCreate"),
        host("netns", "/var/run/netns", "/host/var/run/netns", "DirectoryOrCreate"),
        host("ztunnel", "/var/run/ztunnel", "/var/run/ztunnel", "DirectoryOrCreate"),
    ]
    .into_iter()
    .unzip();
    for mount in mounts.iter_mut().filter(|mount| mount["name"] == "netns") {
        mount["mountPropagation"] = json!("HostToContainer");
    }
    let pod = json!({"serviceAccountName": "istio-cni", "terminationGracePeriodSeconds": 5, "volumes": volumes,
        "containers": [{"name": "install-cni", "image": "culvert.local/test-istio-cni:1", "env": env,
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 1},
            "securityContext": capabilities(&["NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE"]),
            "volumeMounts": mounts}]});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("istio-cni")}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": name, "rules": [
            {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch", "update"]},
            {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]}]}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": name,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "istio-cni"},
            "subjects": [{"kind": "ServiceAccount", "name": "istio-cni", "namespace": ISTIO}]}),
        daemon_set("istio-cni-node", &json!({"k8s-app": "istio-cni-node"}), &pod),
    ]
}

fn ztunnel(upstream: Upstream) -> Vec<Value> {
    let mut env = own();
    env.extend([field("INSTANCE_IP", "status.podIP"), field("SERVICE_ACCOUNT", "spec.serviceAccountName")]);
    env.extend(fixed(&[
        ("CA_ADDRESS", upstream.address),
        ("XDS_ADDRESS", upstream.address),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("INPOD_ENABLED", "true"),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "5"),
    ]));
    let (socket, at_socket) = host("cni", "/var/run/ztunnel", "/var/run/ztunnel", "DirectoryOrCreate");
    let token = json!({"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"});
    let pod = json!({"serviceAccountName": "ztunnel", "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "istio-proxy", "image": "culvert.local/test-ztunnel:1",
            "args": ["proxy", "ztunnel"], "env": env,
            "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 1},
            "securityContext": capabilities(&["NET_ADMIN", "SYS_ADMIN", "NET_RAW"]),
            "volumeMounts": [at_socket, {"name": "roots", "mountPath": "/var/run/secrets/istio"},
                {"name": "token", "mountPath": "/var/run/secrets/tokens"}, {"name": "tmp", "mountPath": "/tmp"}]}],
        "volumes": [socket, {"name": "tmp", "emptyDir": {}},
            {"name": "roots", "configMap": {"name": upstream.roots}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}]});
    let mut set = daemon_set("ztunnel", &json!({"app": "ztunnel"}), &pod);
    set["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("ztunnel")}), set]
}
