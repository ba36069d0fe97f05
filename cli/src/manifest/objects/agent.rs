//! The agents: one on each node, in the node's network namespace.

use serde_json::{Value, json};

use super::{File, Object, env, field, labels, meta, scraped};
use crate::manifest::{
    AGENT, CONTROL, TRUST_BUNDLE,
    template::{each, when},
};

/// What an agent may do on its node, and why. Everything else is dropped, and it is not privileged. Found by
/// experiment: a fresh installation enrols, carries and cleans up with these under the runtime's seccomp.
pub const CAPABILITIES: &[(&str, &str)] = &[
    ("BPF", "loading eBPF programs, making and reading their tables"),
    (
        "NET_ADMIN",
        "attaching programs to cgroups and network namespaces, rules and routes inside pods, transparent sockets",
    ),
    ("SYS_ADMIN", "entering pods' network namespaces, pinning in the bpf file system"),
    ("SYS_PTRACE", "reading /proc/<pid>/ns/net of pods that run as other users"),
];

const TOKENS: &str = "/var/run/secrets/tokens";
const ROOTS: &str = "/var/run/secrets/culvert";

/// Folders of the node: name, path there, path in the container, type, and what a mount says besides.
fn folders() -> Vec<(&'static str, &'static str, &'static str, &'static str, Value)> {
    let two_way = json!({"mountPropagation": "HostToContainer"});
    vec![
        ("cgroup", "/sys/fs/cgroup", "/sys/fs/cgroup", "Directory", json!({})),
        ("bpf", "/sys/fs/bpf", "/sys/fs/bpf", "Directory", two_way.clone()),
        // Writable: settings of pods' networks are files there, and the container's own are read-only.
        ("proc", "/proc", "/host/proc", "Directory", json!({})),
        ("state", "/var/lib/culvert", "/var/lib/culvert", "DirectoryOrCreate", json!({})),
        ("run", "/run/culvert", "/run/culvert", "DirectoryOrCreate", json!({})),
        ("netns", "/run/netns", "/run/netns", "DirectoryOrCreate", two_way),
    ]
}

fn mounts() -> Value {
    let mut mounts = vec![
        json!({"name": "token", "mountPath": TOKENS, "readOnly": true}),
        json!({"name": "roots", "mountPath": ROOTS, "readOnly": true}),
    ];
    for (name, _, path, _, more) in folders() {
        let mut mount = json!({"name": name, "mountPath": path});
        for (key, value) in more.as_object().into_iter().flatten() {
            mount[key] = value.clone();
        }
        mounts.push(mount);
    }
    for (name, path) in [("cni-bin", "/host/cni/bin"), ("cni-conf", "/host/cni/net.d")] {
        mounts.push(when("cni.enabled", json!({"name": name, "mountPath": path})));
    }
    Value::from(mounts)
}

fn volumes() -> Value {
    let token = json!({"serviceAccountToken": {"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"}});
    let mut volumes = vec![
        json!({"name": "token", "projected": {"sources": [token]}}),
        json!({"name": "roots", "configMap": {"name": TRUST_BUNDLE}}),
    ];
    for (name, path, _, kind, _) in folders() {
        volumes.push(json!({"name": name, "hostPath": {"path": path, "type": kind}}));
    }
    for (name, path) in [("cni-bin", "${cni.binDir}"), ("cni-conf", "${cni.confDir}")] {
        let folder = json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
        volumes.push(when("cni.enabled", folder));
    }
    Value::from(volumes)
}

fn args() -> Value {
    json!([
        "--kubernetes",
        "--proc=/host/proc",
        "--cgroup=/sys/fs/cgroup",
        "--state-dir=/var/lib/culvert/agent",
        "--admin=0.0.0.0:15020",
        "--admin-socket=/run/culvert/agent.sock",
        "--cni-socket=/run/culvert/cni.sock",
        when("cni.enabled", json!("--cni-bin-dir=/host/cni/bin")),
        when("cni.enabled", json!("--cni-conf-dir=/host/cni/net.d")),
        when("agent.meshCidrs", json!("--mesh-cidrs=${agent.meshCidrs}")),
        when("agent.readyTaint", json!("--ready-taint")),
        each("agent.extraArgs"),
    ])
}

fn environment() -> Value {
    let control = format!("https://{CONTROL}.${{namespace}}.svc:15012");
    json!([
        field("NODE_NAME", "spec.nodeName"),
        field("INSTANCE_IP", "status.podIP"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        env("CULVERT_CONTROL", &control),
        env("CULVERT_CA_ROOT", &format!("{ROOTS}/root-cert.pem")),
        env("CULVERT_TOKEN_FILE", &format!("{TOKENS}/istio-token")),
        env("TRUST_DOMAIN", "${trustDomain}"),
        env("CLUSTER_ID", "${clusterId}"),
        env("NETWORK", "${network}"),
        env("EXCLUDE_NAMESPACES", "${agent.excludeNamespaces},${namespace}"),
        env("CULVERT_DRAIN_SECONDS", "${agent.drainSeconds:text}"),
        env("CULVERT_WORKERS", "${agent.workers:text}"),
        env("RUST_LOG", "${logLevel}"),
    ])
}

/// The security context of an agent, also that of the job which cleans a node.
fn security() -> Value {
    let added: Vec<_> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
    json!({
        "privileged": false,
        "allowPrivilegeEscalation": true,
        "readOnlyRootFilesystem": true,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {"drop": ["ALL"], "add": added},
        "seccompProfile": {"type": "RuntimeDefault"},
        "appArmorProfile": {"type": "${agent.appArmorProfile}"},
        "seLinuxOptions": when("agent.seLinuxOptions", json!("${agent.seLinuxOptions}")),
    })
}

fn probe(path: &str, period: u8, failures: u8) -> Value {
    json!({"httpGet": {"path": path, "port": 15020}, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures})
}

fn container() -> Value {
    json!({
        "name": "agent",
        "image": "${image.registry}/agent:${image.tag}",
        "imagePullPolicy": "${image.pullPolicy}",
        "args": args(),
        "env": environment(),
        "securityContext": security(),
        "resources": "${agent.resources}",
        "readinessProbe": probe("/readyz", 2, 3),
        "livenessProbe": probe("/healthz", 10, 6),
        "volumeMounts": mounts(),
    })
}

pub(super) fn objects() -> Vec<Object> {
    let pod = json!({
        "serviceAccountName": AGENT,
        "hostNetwork": true,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "priorityClassName": "${agent.priorityClassName}",
        "terminationGracePeriodSeconds": "${agent.terminationGracePeriodSeconds}",
        "nodeSelector": "${agent.nodeSelector}",
        "tolerations": "${agent.tolerations}",
        "containers": [container()],
        "volumes": volumes(),
    });
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": meta(AGENT, "agent"),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": AGENT}},
            "updateStrategy": "${agent.updateStrategy}",
            "template": {
                "metadata": {"labels": labels("agent"), "annotations": scraped(15020)},
                "spec": pod,
            },
        },
    });
    vec![Object::new(File::Agent, set)]
}

#[cfg(test)]
mod tests {
    use crate::manifest::{AGENT, CONTROL, objects::Object, resolve, values::Values};

    fn objects(settings: &[&str]) -> Vec<Object> {
        let mut values = Values::defaults("n");
        settings.iter().for_each(|setting| values.set(setting).unwrap());
        resolve::objects(&values)
    }

    #[test]
    fn agents_are_critical_confined_on_every_node_and_say_what_they_need_and_where_they_are_scraped() {
        let all = objects(&[]);
        let set = all.iter().find(|object| object.kind() == "DaemonSet").unwrap();
        let template = &set.body["spec"]["template"];
        let (pod, container) = (&template["spec"], &template["spec"]["containers"][0]);
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert_eq!(pod["tolerations"][0]["operator"], "Exists");
        assert!(container["resources"]["requests"]["memory"].is_string());
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(template["metadata"]["annotations"]["prometheus.io/port"], "15020");
    }

    #[test]
    fn monitors_and_network_policies_are_settings() {
        let named = |all: &[Object], kind: &str| -> Vec<String> {
            all.iter().filter(|object| object.kind() == kind).map(|object| object.name().to_owned()).collect()
        };
        let all = objects(&[]);
        assert_eq!(named(&all, "NetworkPolicy"), [CONTROL]);
        assert!(named(&all, "PodMonitor").is_empty() && named(&all, "ServiceMonitor").is_empty());
        let all = objects(&[
            "networkPolicy.enabled=false",
            "monitoring.podMonitor=true",
            "monitoring.serviceMonitor=true",
        ]);
        assert!(named(&all, "NetworkPolicy").is_empty());
        assert_eq!(named(&all, "PodMonitor"), [AGENT, "culvert-waypoint"]);
        assert_eq!(named(&all, "ServiceMonitor"), [CONTROL]);
    }
}
