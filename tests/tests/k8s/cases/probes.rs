//! Kubelet's probes under STRICT.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::stage::{ROLLOUT, Stage, TOOLS};

const NS: &str = "probed";
const OUTSIDE: &str = "outside";

/// HTTP, TCP, gRPC and exec probes pass while a client outside the mesh is refused.
pub fn every_kind_of_probe_passes_under_strict_while_a_client_outside_the_mesh_is_refused(
    stage: &mut Stage,
) -> Result<()> {
    stage.namespace(NS, true)?;
    stage.namespace(OUTSIDE, false)?;
    stage.strict(NS)?;
    let kinds = [
        ("http", json!({"httpGet": {"path": "/debug", "port": 8080}})),
        ("tcp", json!({"tcpSocket": {"port": 8078}})),
        ("grpc", json!({"grpc": {"port": 8079}})),
        ("exec", json!({"exec": {"command": ["/bin/true"]}})),
    ];
    for (name, probe) in &kinds {
        stage.cluster.apply_object(&server(name, probe))?;
    }
    stage.idle(NS, "client", "node-b")?;
    stage.idle(OUTSIDE, "client", "node-b")?;
    for (name, _) in &kinds {
        stage.cluster.pods_ready(NS, &format!("app={name}"), ROLLOUT)?;
    }
    stage.enrolled(NS, true)?;
    let address = stage.address(NS, "http")?;
    let curl = format!("/usr/bin/curl -sf --max-time 3 -o /dev/null http://{address}:8080/debug");
    stage.until(NS, "client", &curl)?;
    // The policy arrives a little after the pods.
    stage.until(OUTSIDE, "client", &format!("! {curl}"))?;
    stage.until(NS, "client", &curl)?;
    // As long as it takes a failing probe to restart a container.
    let since = std::time::Instant::now();
    harness::wait::until(ROLLOUT, "probes to pass for some seconds", || {
        (since.elapsed().as_secs() > 8).then_some(())
    })?;
    let pods = stage.cluster.get(&["-n", NS, "pods"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(
            status["ready"] == true && status["restartCount"] == 0,
            "{}: {status}",
            pod["metadata"]["name"]
        );
    }
    Ok(())
}

fn server(name: &str, probe: &Value) -> Value {
    let mut often = probe.clone();
    (often["periodSeconds"], often["failureThreshold"]) = (1.into(), 3.into());
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NS, "labels": {"app": name}},
        "spec": {"nodeName": "node-a", "terminationGracePeriodSeconds": 1, "containers": [{"name": "fortio",
            "image": TOOLS, "command": ["/usr/bin/fortio", "server"],
            "readinessProbe": often, "livenessProbe": often, "startupProbe": often}]}})
}
