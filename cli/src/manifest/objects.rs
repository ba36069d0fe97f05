//! The objects of an installation, with references to settings.

mod agent;
pub use agent::CAPABILITIES;
mod control;
mod mesh;
mod monitoring;
pub mod rbac;

use serde_json::{Value, json};

use super::PART_OF;

/// Which file of the base and the chart an object is in; also the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// The namespace. Not in the chart: Helm makes it.
    Namespace,
    /// Service accounts and rights.
    Rbac,
    /// The control plane.
    Control,
    /// The agents.
    Agent,
    /// The class of waypoints.
    GatewayClass,
    /// Network policies.
    Network,
    /// Objects of the Prometheus operator.
    Monitoring,
    /// What single platforms ask for.
    Platform,
}

impl File {
    /// Every file, in order.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Rbac,
        Self::Control,
        Self::Agent,
        Self::GatewayClass,
        Self::Network,
        Self::Monitoring,
        Self::Platform,
    ];

    /// Its name, without its end.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Rbac => "rbac",
            Self::Control => "control",
            Self::Agent => "agent",
            Self::GatewayClass => "gatewayclass",
            Self::Network => "networkpolicy",
            Self::Monitoring => "monitoring",
            Self::Platform => "platform",
        }
    }
}

/// An object.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Where it is written.
    pub file: File,
    /// Setting without which it is not there.
    pub when: Option<&'static str>,
    /// The object.
    pub body: Value,
}

impl Object {
    fn new(file: File, body: Value) -> Self {
        Self { file, when: None, body }
    }

    fn when(mut self, setting: &'static str) -> Self {
        self.when = Some(setting);
        self
    }

    fn field(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Its API version.
    pub fn api_version(&self) -> &str {
        self.field("/apiVersion")
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        self.field("/kind")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.field("/metadata/name")
    }

    /// Its namespace; empty when it has none.
    pub fn namespace(&self) -> &str {
        self.field("/metadata/namespace")
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace() {
            "" => write!(f, "{} {}", self.kind(), self.name()),
            namespace => write!(f, "{} {namespace}/{}", self.kind(), self.name()),
        }
    }
}

/// Every object, in the order in which they are applied.
pub fn all() -> Vec<Object> {
    let mut all = vec![mesh::namespace()];
    all.extend(rbac::objects());
    all.extend(control::objects());
    all.extend(agent::objects());
    all.extend(mesh::objects());
    all.extend(monitoring::objects());
    all
}

/// Labels of an object of a component.
fn labels(component: &str) -> Value {
    json!({
        PART_OF.0: PART_OF.1,
        "app.kubernetes.io/name": format!("culvert-{component}"),
        "culvert.dev/component": component,
    })
}

/// Metadata in Culvert's namespace.
fn meta(name: &str, component: &str) -> Value {
    json!({"name": name, "namespace": "${namespace}", "labels": labels(component)})
}

/// Metadata of an object without namespace.
fn global(name: &str, component: &str) -> Value {
    json!({"name": name, "labels": labels(component)})
}

/// Annotations with which Prometheus finds a pod's metrics.
fn scraped(port: u16) -> Value {
    json!({
        "prometheus.io/scrape": "true",
        "prometheus.io/port": port.to_string(),
        "prometheus.io/path": "/metrics",
    })
}

/// An environment variable with a value.
fn env(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// An environment variable from a field of the pod.
fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}
