//! A node that reboots.

use anyhow::{Result, ensure};
use harness::capture::Capture;
use serde_json::json;

use crate::stage::{ROLLOUT, Stage};

const NS: &str = "rebooted";

/// All networks of the node's pods are gone, its agent comes late, the API server later still: nothing
/// leaves in plaintext, and the pods recover by themselves.
pub fn a_node_that_reboots_sends_no_plaintext_and_its_pods_recover(stage: &mut Stage) -> Result<()> {
    stage.namespace(NS, true)?;
    stage.web(NS, "web", 1, &json!({"nodeName": "node-a"}))?;
    // It asks all the time, from its first moment on.
    let script = "while true; do /usr/bin/curl -s -m 2 -H 'secret: openwords' http://web/ > /tmp/last; \
                  echo $? > /tmp/status; /bin/sleep 0.1; done";
    let caller = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "caller", "namespace": NS, "labels": {"app": "caller"}},
        "spec": {"nodeName": "node-b", "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "caller", "image": crate::stage::TOOLS, "command": ["/bin/sh", "-c", script]}]}});
    stage.cluster.apply_object(&caller)?;
    stage.cluster.pods_ready(NS, "app=caller", ROLLOUT)?;
    stage.enrolled(NS, true)?;
    stage.until(NS, "caller", "test $(cat /tmp/status) = 0")?;

    let file = stage.cluster.root.join("rebooted.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    stage.cluster.power_off(1)?;
    stage.cluster.kill_api_server();
    stage.cluster.power_on(1)?;
    stage.cluster.start_api_server()?;
    let words = ["-n", NS, "pod", "caller"];
    stage.cluster.wait_for(ROLLOUT, "the caller to be started again", &words, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        (status["restartCount"] == 1 && status["ready"] == true).then_some(())
    })?;
    stage.until_within(ROLLOUT, NS, "caller", "test $(cat /tmp/status) = 0 && grep -q nginx /tmp/last")?;
    let seen = capture.stop()?;
    ensure!(!seen.contains("openwords"), "a request of the rebooted node's pod is readable on the wire");
    Ok(())
}
