//! An address that goes from one pod to another.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::stage::{ROLLOUT, Stage, TOOLS};

const NS: &str = "reuse";
/// Where the CNI plugin remembers what it gave out last.
const LAST: &str = "/var/lib/cni/networks/ptp/last_reserved_ip.0";

/// The next pod has the address of a deleted one and another identity: a policy that allows only the
/// first one's account refuses the second.
pub fn a_pod_with_a_used_address_has_its_own_identity(stage: &mut Stage) -> Result<()> {
    stage.namespace(NS, true)?;
    for account in ["first", "second"] {
        stage.cluster.apply_object(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": NS}}))?;
    }
    stage.web(NS, "web", 1, &json!({"nodeName": "node-a"}))?;
    stage.cluster.apply_object(&json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "first-only", "namespace": NS},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "ALLOW", "rules": [{"from": [{"source":
            {"principals": [format!("cluster.local/ns/{NS}/sa/first")]}}]}]}}))?;
    let curl = "/usr/bin/curl -sf --max-time 3 -o /dev/null http://web/";
    client(stage, "first")?;
    stage.until(NS, "first", curl)?;
    let address = stage.address(NS, "first")?;
    stage.cluster.kubectl(&["-n", NS, "delete", "pod", "first"])?;
    let before = before(&address)?;
    let node = stage.cluster.nodes.get(&1).ok_or_else(|| anyhow::anyhow!("no second node"))?;
    node.exec(&["/bin/sh", "-c", &format!("printf {before} > {LAST}")])?;
    client(stage, "second")?;
    let again = stage.address(NS, "second")?;
    ensure!(again == address, "the address {address} was not given out again, but {again}");
    stage.enrolled(NS, true)?;
    // Refused, not merely late: the negative twin comes right after it.
    stage.until(NS, "second", &format!("! {curl}"))?;
    for _ in 0..20 {
        let refused = stage.exec(NS, "second", &["/bin/sh", "-c", curl]).is_err();
        ensure!(refused, "the second pod was taken for the first");
    }
    stage.cluster.kubectl(&["-n", NS, "delete", "authorizationpolicy", "first-only"])?;
    stage.until(NS, "second", curl)?;
    Ok(())
}

fn client(stage: &Stage, account: &str) -> Result<()> {
    stage.cluster.apply_object(&json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": account, "namespace": NS, "labels": {"app": account}},
        "spec": {"nodeName": "node-b", "serviceAccountName": account, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": TOOLS, "command": ["/bin/sleep", "1000000"]}]}}))?;
    stage.cluster.pods_ready(NS, &format!("app={account}"), ROLLOUT)
}

/// The address before one: what was given out last when that one comes next.
fn before(address: &str) -> Result<std::net::Ipv4Addr> {
    let address: std::net::Ipv4Addr = address.parse()?;
    Ok((u32::from(address) - 1).into())
}
