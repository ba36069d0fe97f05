//! The settings of an installation: name, kind, default and meaning of each. `--set`, `values.yaml`, its
//! schema and `docs/install.md` are made from this list.

use serde_json::{Value, json};

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A whole number from 0 on.
    Whole,
    /// `true` or `false`.
    Switch,
    /// A list, in JSON.
    List,
    /// An object, in JSON.
    Map,
}

impl Kind {
    /// In words.
    pub fn words(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Choice(of) => of.join(" or "),
            Self::Whole => "whole number".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::List => "list".to_owned(),
            Self::Map => "object".to_owned(),
        }
    }

    /// As JSON schema.
    pub fn schema(self) -> Value {
        match self {
            Self::Text => json!({"type": "string"}),
            Self::Choice(of) => json!({"type": "string", "enum": of}),
            Self::Whole => json!({"type": "integer", "minimum": 0}),
            Self::Switch => json!({"type": "boolean"}),
            Self::List => json!({"type": "array"}),
            Self::Map => json!({"type": "object"}),
        }
    }

    /// Whether a value is of this kind.
    pub fn holds(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Choice(of) => value.as_str().is_some_and(|text| of.contains(&text)),
            Self::Whole => value.is_u64(),
            Self::Switch => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Map => value.is_object(),
        }
    }
}

/// A setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name, with dots.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Default, as JSON.
    pub default: &'static str,
    /// What it means, with units.
    pub about: &'static str,
}

const fn setting(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Setting {
    Setting { path, kind, default, about }
}

/// Version of the images, which is that of the programs.
pub const TAG: &str = env!("CARGO_PKG_VERSION");
const TAG_JSON: &str = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    setting(
        "image.registry",
        Kind::Text,
        r#""culvert.local""#,
        "Registry and folder of the images `agent`, `control`, `waypoint` and `cli`.",
    ),
    setting("image.tag", Kind::Text, TAG_JSON, "Tag of the images."),
    setting(
        "image.pullPolicy",
        Kind::Choice(&["Always", "IfNotPresent", "Never"]),
        r#""IfNotPresent""#,
        "When nodes pull images.",
    ),
    setting(
        "image.pullSecrets",
        Kind::List,
        "[]",
        "Secrets for the registry: `[{\"name\": \"x\"}]`, in Culvert's namespace.",
    ),
    setting(
        "trustDomain",
        Kind::Text,
        r#""cluster.local""#,
        "Trust domain of every identity. Changing it later refuses connections until both sides have new certificates.",
    ),
    setting("clusterId", Kind::Text, r#""Kubernetes""#, "Name of this cluster in the mesh."),
    setting(
        "network",
        Kind::Text,
        r#""""#,
        "Network of this cluster's pods; empty when all pods reach each other.",
    ),
    setting(
        "rootNamespace",
        Kind::Text,
        r#""istio-system""#,
        "Namespace whose policies and destination rules count for the whole mesh.",
    ),
    setting(
        "logLevel",
        Kind::Text,
        r#""info""#,
        "Log level of agents and control plane: `error`, `warn`, `info`, `debug`, `trace`, or a list by module.",
    ),
    setting(
        "agent.excludeNamespaces",
        Kind::Text,
        r#""kube-system""#,
        "Namespaces whose pods are never enrolled, with commas. Culvert's own is always among them.",
    ),
    setting(
        "agent.updateStrategy",
        Kind::Map,
        r#"{"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}"#,
        "How agents are replaced.",
    ),
    setting(
        "agent.resources",
        Kind::Map,
        r#"{"requests": {"cpu": "100m", "memory": "128Mi"}}"#,
        "Requests and limits of an agent.",
    ),
    setting(
        "agent.priorityClassName",
        Kind::Text,
        r#""system-node-critical""#,
        "Priority of agents. Without them pods of the mesh cannot open connections.",
    ),
    setting("agent.nodeSelector", Kind::Map, r#"{"kubernetes.io/os": "linux"}"#, "Nodes that get an agent."),
    setting("agent.tolerations", Kind::List, r#"[{"operator": "Exists"}]"#, "Taints that agents tolerate."),
    setting("agent.drainSeconds", Kind::Whole, "5", "Seconds that open connections get when an agent stops."),
    setting(
        "agent.terminationGracePeriodSeconds",
        Kind::Whole,
        "30",
        "Seconds until Kubernetes kills an agent that stops. More than `agent.drainSeconds`.",
    ),
    setting(
        "agent.meshCidrs",
        Kind::Text,
        r#""""#,
        "Every pod and service range, with commas. With it, connections to other destinations bypass the agent.",
    ),
    setting("agent.workers", Kind::Whole, "0", "Data threads of an agent; 0 is one per core."),
    setting(
        "agent.appArmorProfile",
        Kind::Text,
        r#""Unconfined""#,
        "AppArmor profile type. The runtimes' default one denies pinning eBPF programs.",
    ),
    setting(
        "agent.seLinuxOptions",
        Kind::Map,
        "{}",
        "SELinux options of an agent, `{\"type\": \"spc_t\"}` where SELinux confines containers.",
    ),
    setting(
        "agent.readyTaint",
        Kind::Switch,
        "false",
        "Agents remove the taint `culvert.dev/not-ready` from their node when they are ready. For nodes that start with it.",
    ),
    setting("agent.extraArgs", Kind::List, "[]", "More arguments of `culvert-agent`."),
    setting(
        "cni.enabled",
        Kind::Switch,
        "true",
        "Installs the CNI plugin, so that new pods start blocked instead of unmeshed until the agent has them.",
    ),
    setting("cni.binDir", Kind::Text, r#""/opt/cni/bin""#, "Folder of CNI plugins on the nodes."),
    setting(
        "cni.confDir",
        Kind::Text,
        r#""/etc/cni/net.d""#,
        "Folder of the CNI configuration on the nodes.",
    ),
    setting(
        "control.replicas",
        Kind::Whole,
        "1",
        "Replicas of the control plane. All serve; one of them writes.",
    ),
    setting(
        "control.resources",
        Kind::Map,
        r#"{"requests": {"cpu": "100m", "memory": "128Mi"}}"#,
        "Requests and limits of a replica.",
    ),
    setting(
        "control.podDisruptionBudget",
        Kind::Switch,
        "false",
        "Keeps one replica during voluntary disruptions. Only with two or more replicas: with one, nodes could not be drained.",
    ),
    setting("control.topologySpreadConstraints", Kind::List, "[]", "How replicas are spread."),
    setting("control.priorityClassName", Kind::Text, r#""""#, "Priority of the control plane."),
    setting(
        "control.nodeSelector",
        Kind::Map,
        r#"{"kubernetes.io/os": "linux"}"#,
        "Nodes for the control plane.",
    ),
    setting("control.tolerations", Kind::List, "[]", "Taints that the control plane tolerates."),
    setting("control.affinity", Kind::Map, "{}", "Affinity of the control plane."),
    setting(
        "control.ztunnelAccount",
        Kind::Text,
        r#""istio-system/ztunnel""#,
        "Service account of Istio's ztunnel, which may ask for its node as our agents do; empty when there is none.",
    ),
    setting(
        "control.istioWaypointClass",
        Kind::Switch,
        "false",
        "Also makes waypoints for Gateways of class `istio-waypoint`. Only where istiod does not.",
    ),
    setting("control.extraArgs", Kind::List, "[]", "More arguments of `culvert-control`."),
    setting(
        "validation.enabled",
        Kind::Switch,
        "true",
        "Mistakes in Istio's kinds and in Gateways are refused when they are written; let in while no control plane answers. The API server has to reach port 15012 of its pods.",
    ),
    setting(
        "gatewayClass.enabled",
        Kind::Switch,
        "true",
        "The GatewayClass `culvert-waypoint`. Needs the CRDs of the Gateway API.",
    ),
    setting("networkPolicy.enabled", Kind::Switch, "true", "NetworkPolicies for the control plane."),
    setting(
        "monitoring.podMonitor",
        Kind::Switch,
        "false",
        "A PodMonitor for agents and waypoints. Needs the Prometheus operator's CRDs.",
    ),
    setting(
        "monitoring.serviceMonitor",
        Kind::Switch,
        "false",
        "A ServiceMonitor for the control plane. Needs the Prometheus operator's CRDs.",
    ),
    setting(
        "resourceQuota.enabled",
        Kind::Switch,
        "false",
        "A ResourceQuota that admits critical priority classes outside `kube-system` (GKE asks for it).",
    ),
    setting(
        "openshift.enabled",
        Kind::Switch,
        "false",
        "Bindings to OpenShift's security context constraints.",
    ),
];

/// The setting of that name.
pub fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_json_of_its_kind_and_every_name_is_there_once() {
        for setting in SETTINGS {
            let value: Value = serde_json::from_str(setting.default).unwrap();
            assert!(setting.kind.holds(&value), "{}: {value}", setting.path);
            assert!(setting.about.ends_with('.') || setting.about.ends_with(')'), "{}", setting.path);
            assert_eq!(SETTINGS.iter().filter(|other| other.path == setting.path).count(), 1);
        }
    }
}
