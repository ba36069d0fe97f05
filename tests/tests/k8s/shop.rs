//! The tutorial's workload, enrolled and routed through a waypoint, that several cases look at.

use anyhow::Result;
use harness::wait;
use serde_json::{Value, json};

use crate::stage::{LIMIT, ROLLOUT, Stage, TOOLS};

/// Its namespace.
pub const SHOP: &str = "shop";
/// Its address for clients.
pub const URL: &str = "http://nginx-service:8000/";
/// A client on the first node.
pub const CLIENT: &str = "client";

impl Stage {
    /// Makes it, or finds it as an earlier case left it.
    pub fn shop(&self) -> Result<()> {
        if self.cluster.kubectl(&["get", "namespace", SHOP]).is_ok() {
            return self.shop_answers();
        }
        self.namespace(SHOP, true)?;
        self.apply_file(SHOP, "examples/nginx-canary/app.yaml")?;
        self.apply_file(SHOP, "examples/nginx-canary/routing.yaml")?;
        self.idle(SHOP, CLIENT, "node-a")?;
        for version in ["nginx-a", "nginx-b"] {
            self.cluster.rolled_out(SHOP, &format!("deployment/{version}"), ROLLOUT)?;
        }
        self.waypoint(SHOP)?;
        self.shop_answers()
    }

    /// Waits until the client has an answer.
    pub fn shop_answers(&self) -> Result<()> {
        self.until(SHOP, CLIENT, &format!("/usr/bin/curl -sf --max-time 5 {URL}")).map(drop)
    }

    /// Waits until a namespace's waypoint is there and ready.
    pub fn waypoint(&self, namespace: &str) -> Result<()> {
        wait::until(LIMIT, "a waypoint", || {
            self.cluster.kubectl(&["-n", namespace, "get", "deployment", "waypoint"]).ok().map(drop)
        })?;
        self.cluster.rolled_out(namespace, "deployment/waypoint", ROLLOUT)
    }

    /// A Deployment of nginx and its Service on port 80; `more` is put into the pod's description.
    pub fn web(&self, namespace: &str, name: &str, replicas: u32, more: &Value) -> Result<()> {
        let labels = json!({"app": name});
        let mut pod = json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "image": TOOLS,
            "command": ["/usr/sbin/nginx", "-g", "daemon off;"],
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            pod[key] = value.clone();
        }
        let meta = json!({"name": name, "namespace": namespace});
        self.cluster.apply_object(
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod}}}),
        )?;
        self.cluster.apply_object(&json!({"apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 80}]}}))?;
        self.cluster.rolled_out(namespace, &format!("deployment/{name}"), ROLLOUT)
    }

    /// Demands mutual TLS of a namespace's pods.
    pub fn strict(&self, namespace: &str) -> Result<()> {
        let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "strict", "namespace": namespace}, "spec": {"mtls": {"mode": "STRICT"}}});
        self.cluster.apply_object(&policy).map(drop)
    }
}
