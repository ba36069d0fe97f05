//! Every way in which Kubernetes names a service.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stage::Stage;

const NS: &str = "services";
/// From a range for documentation (RFC 5737): nobody outside answers for it.
const BALANCER: &str = "203.0.113.10";

/// By its address, as a headless service, by an alias, and by ports of nodes and of a load balancer. The
/// last two are the node's translation, behind which nobody knows who asks: they are plaintext, and what
/// demands mutual TLS refuses them.
pub fn every_kind_of_service_is_reached_and_ports_of_nodes_are_plaintext(stage: &mut Stage) -> Result<()> {
    stage.namespace(NS, true)?;
    stage.web(NS, "web", 1, &json!({"nodeName": "node-b"}))?;
    stage.idle(NS, "client", "node-a")?;
    stage.enrolled(NS, true)?;
    let port = json!([{"name": "http", "port": 80}]);
    let selector = json!({"app": "web"});
    service(stage, "headless", &json!({"clusterIP": "None", "selector": selector, "ports": port}))?;
    let target = format!("web.{NS}.svc.cluster.local");
    service(stage, "alias", &json!({"type": "ExternalName", "externalName": target}))?;
    service(stage, "node-port", &json!({"type": "NodePort", "selector": selector, "ports": port}))?;
    service(stage, "balanced", &json!({"type": "LoadBalancer", "selector": selector, "ports": port}))?;
    // As a load balancer's controller does.
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}).to_string();
    let patch = ["-n", NS, "patch", "service", "balanced", "--subresource=status", "--type=merge", "-p"];
    stage.cluster.kubectl(&[&patch[..], &[&ingress]].concat())?;

    let node_port = stage.cluster.get(&["-n", NS, "service", "node-port"])?["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("the API server gives a port of nodes")?;
    let mesh = ["http://web/".to_string(), "http://headless/".into(), "http://alias/".into()];
    let mut translated = vec![format!("http://{BALANCER}/")];
    for node in stage.cluster.nodes.values() {
        translated.push(format!("http://{}:{node_port}/", node.address()));
    }
    for url in mesh.iter().chain(&translated) {
        stage.until(NS, "client", &curl(url))?;
    }
    stage.strict(NS)?;
    for url in &translated {
        stage.until(NS, "client", &format!("! {}", curl(url)))?;
        let again = stage.exec(NS, "client", &["/bin/sh", "-c", &curl(url)]);
        ensure!(again.is_err(), "{url} is answered in plaintext under STRICT");
    }
    for url in &mesh {
        stage.exec(NS, "client", &["/bin/sh", "-c", &curl(url)])?;
    }
    Ok(())
}

fn curl(url: &str) -> String {
    format!("/usr/bin/curl -sf --max-time 3 -o /dev/null {url}")
}

fn service(stage: &Stage, name: &str, spec: &Value) -> Result<()> {
    let meta = json!({"name": name, "namespace": NS});
    stage
        .cluster
        .apply_object(&json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}))
        .map(drop)
}
