//! What a node's agent and CNI plugin do with every kind of pod, and while they are away.

use anyhow::{Result, ensure};
use harness::wait;
use serde_json::{Value, json};

use crate::stage::{LIMIT, ROLLOUT, SYSTEM, Stage, TOOLS};

const NS: &str = "node-cases";
/// Keeps the agents off every node.
const AWAY: &str = r#"{"spec": {"template": {"spec": {"nodeSelector": {"culvert.dev/nowhere": "true"}}}}}"#;
/// Lets them come back.
const BACK: &str = r#"{"spec": {"template": {"spec": {"nodeSelector": {"culvert.dev/nowhere": null}}}}}"#;

/// Makes the namespace, strict, with a server on the second node.
fn set(stage: &Stage) -> Result<String> {
    // The case before may have had it, and it goes away by and by.
    stage.cluster.kubectl(&["wait", "--for=delete", &format!("namespace/{NS}"), "--timeout=90s"])?;
    stage.namespace(NS, true)?;
    stage.cluster.apply_object(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": NS}, "spec": {"mtls": {"mode": "STRICT"}},
    }))?;
    let probe = json!({"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1});
    pod(
        stage,
        "server",
        "node-b",
        &json!({"containers": [{
            "name": "server", "image": TOOLS, "command": ["/usr/sbin/nginx", "-g", "daemon off;"],
            "readinessProbe": probe, "livenessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1},
        }]}),
    )?;
    stage.cluster.pods_ready(NS, "app=server", ROLLOUT)?;
    Ok(format!("http://{}/", stage.address(NS, "server")?))
}

fn pod(stage: &Stage, name: &str, node: &str, spec: &Value) -> Result<()> {
    let mut object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NS, "labels": {"app": name}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    stage.cluster.apply_object(&object).map(drop)
}

fn curl(url: &str) -> String {
    format!("/usr/bin/curl -sf -o /dev/null --max-time 5 {url}")
}

fn reaches(stage: &Stage, pod: &str, url: &str) -> bool {
    stage.exec(NS, pod, &["/bin/sh", "-c", &curl(url)]).is_ok()
}

/// An init container's first request, and a Job's, go through a strict mesh; probes of the kubelet do too;
/// what ended is in no table.
pub fn init_containers_and_jobs_use_the_mesh_from_their_first_request_and_probes_work_under_strict(
    stage: &mut Stage,
) -> Result<()> {
    let url = set(stage)?;
    stage.namespace("node-plain", false)?;
    stage.idle("node-plain", "outside", "node-a")?;
    let outside = stage.exec("node-plain", "outside", &["/bin/sh", "-c", &curl(&url)]);
    ensure!(outside.is_err(), "the mesh is not strict");
    let once = |name: &str| json!({"name": name, "image": TOOLS, "command": ["/bin/sh", "-c", curl(&url)]});
    let stays = json!({"name": "stays", "image": TOOLS, "command": ["/bin/sleep", "1000000"]});
    // A failed first request would show: a pod that must not restart fails for good.
    pod(
        stage,
        "init",
        "node-a",
        &json!({"restartPolicy": "Never",
        "initContainers": [once("first"), once("second")], "containers": [stays.clone(), once("beside")]}),
    )?;
    stage.cluster.wait_for(ROLLOUT, "the init containers to end", &["-n", NS, "pod", "init"], |pod| {
        let ended = pod["status"]["initContainerStatuses"].as_array()?;
        let codes: Vec<_> = ended.iter().map(|one| one["state"]["terminated"]["exitCode"].as_i64()).collect();
        (codes.len() == 2 && codes.iter().all(Option::is_some)).then_some(codes)
    })?;
    stage.cluster.apply_object(&json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "job", "namespace": NS},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "nodeName": "node-a", "restartPolicy": "Never", "containers": [once("job")]}}}}))?;
    stage.cluster.wait_for(ROLLOUT, "the job to end", &["-n", NS, "job", "job"], |job| {
        job["status"]["succeeded"].as_u64().filter(|done| *done == 1)
    })?;
    let init = stage.cluster.get(&["-n", NS, "pod", "init"])?;
    for status in init["status"]["initContainerStatuses"].as_array().into_iter().flatten() {
        ensure!(status["state"]["terminated"]["exitCode"] == 0, "an init container failed: {status}");
    }
    let server = stage.cluster.get(&["-n", NS, "pod", "server"])?;
    ensure!(server["status"]["containerStatuses"][0]["restartCount"] == 0, "a probe failed: {server}");

    stage.clear();
    Ok(())
}

/// While no agent runs, pods of the namespace start blocked, others untouched, and all are as they should be
/// when it is back.
pub fn pods_that_start_while_the_agent_is_away_are_blocked_and_recover_by_themselves(
    stage: &mut Stage,
) -> Result<()> {
    let url = set(stage)?;
    stage.idle(NS, "before", "node-a")?;
    stage.enrolled(NS, true)?;
    ensure!(reaches(stage, "before", &url), "before the agents leave");
    stage.cluster.kubectl(&["-n", SYSTEM, "patch", "daemonset", "culvert-agent", "-p", AWAY])?;
    let selector = "app.kubernetes.io/name=culvert-agent";
    stage.cluster.wait_for(
        LIMIT,
        "the agents to be gone",
        &["-n", SYSTEM, "pods", "-l", selector],
        |list| list["items"].as_array()?.is_empty().then_some(()),
    )?;
    stage.idle(NS, "late", "node-a")?;
    stage.namespace("node-new", false)?;
    let blocked = !reaches(stage, "late", &url) && !reaches(stage, "before", &url);
    stage.cluster.kubectl(&["-n", SYSTEM, "patch", "daemonset", "culvert-agent", "-p", BACK])?;
    ensure!(blocked, "a pod of a strict namespace sent something without an agent");
    stage.cluster.rolled_out(SYSTEM, "daemonset/culvert-agent", ROLLOUT)?;
    for pod in ["late", "before"] {
        wait::until(LIMIT, &format!("{pod} to recover"), || reaches(stage, pod, &url).then_some(()))?;
    }
    stage.enrolled(NS, true)?;

    stage.clear();
    Ok(())
}
