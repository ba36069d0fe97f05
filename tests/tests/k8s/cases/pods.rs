//! Pods that are not a plain server or client.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::stage::{ROLLOUT, Stage, TOOLS};

const NS: &str = "pods";
const MARK: &str = "/metadata/annotations/ambient.istio.io~1redirection";

/// An init container and a Job reach the mesh from their first moment, several containers share one
/// identity, a pod on the host's network is left alone, and a Job that ended is no member any more.
pub fn init_containers_jobs_several_containers_and_host_network_behave_as_documented(
    stage: &mut Stage,
) -> Result<()> {
    stage.namespace(NS, true)?;
    stage.strict(NS)?;
    stage.web(NS, "web", 1, &json!({"nodeName": "node-a"}))?;
    stage.enrolled(NS, true)?;
    // As an application does that is started before its network is complete: it tries again.
    let ask = "/usr/bin/curl -sf --max-time 2 --retry 20 --retry-delay 1 --retry-all-errors -o /dev/null http://web/";
    let container = |name: &str, script: &str| json!({"name": name, "image": TOOLS, "command": ["/bin/sh", "-c", script]});
    let idle = "exec /bin/sleep 1000000";
    stage.cluster.apply_object(&pod(
        "double",
        json!({"initContainers": [container("init", ask)],
            "containers": [container("one", idle), container("two", idle)]}),
    ))?;
    stage
        .cluster
        .apply_object(&pod("host", json!({"hostNetwork": true, "containers": [container("one", idle)]})))?;
    stage.cluster.apply_object(&json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "job", "namespace": NS},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "job"}}, "spec": {
            "nodeName": "node-b", "restartPolicy": "Never", "containers": [container("job", ask)]}}}}))?;
    stage.cluster.pods_ready(NS, "app=double", ROLLOUT)?;
    stage.cluster.pods_ready(NS, "app=host", ROLLOUT)?;
    stage.cluster.kubectl(&["-n", NS, "wait", "--for=condition=Complete", "job/job", "--timeout=120s"])?;
    for name in ["one", "two"] {
        let words = ["-n", NS, "exec", "double", "-c", name, "--", "/bin/sh", "-c", ask];
        stage.cluster.kubectl(&words)?;
    }
    let marked = |name: &str| -> Result<bool> {
        let pod = stage.cluster.get(&["-n", NS, "pod", name])?;
        Ok(pod.pointer(MARK).is_some_and(|mark| mark == "enabled"))
    };
    ensure!(marked("double")?, "a pod with two containers is not marked as enrolled");
    ensure!(!marked("host")?, "a pod on the host's network is marked as enrolled");
    Ok(())
}

fn pod(name: &str, mut spec: Value) -> Value {
    (spec["nodeName"], spec["terminationGracePeriodSeconds"]) = ("node-b".into(), 1.into());
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NS, "labels": {"app": name}}, "spec": spec})
}
