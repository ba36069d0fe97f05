//! `docs/migrate-from-istio.md`, step by step.

use anyhow::{Result, ensure};
use harness::{capture::Capture, wait};
use serde_json::{Value, json};

use crate::{
    ends::{ENDS, WAYS, curl, inside},
    istio::{ISTIO, OURS, off_our_nodes},
    load::SECRET,
    stage::{ROLLOUT, SYSTEM, Stage},
};

/// The nodes move one after the other from istiod, istio-cni and ztunnel to ours, and one of them back in
/// between; at each stage pods of both nodes reach each other with proven identities under STRICT, the wire
/// shows nothing readable, and with a control plane of each kind a policy counts at both.
pub fn a_cluster_moves_from_istio_ambient_node_by_node_as_the_page_says(stage: &mut Stage) -> Result<()> {
    stage.ends()?;
    proven(stage, "under Istio")?;

    let checked = stage.culvert(&["check", "--kubeconfig", &config(stage)]);
    let checked = checked.unwrap_or_else(|error| format!("{error:#}"));
    ensure!(checked.contains("ztunnel") && checked.contains("istio-cni-node"), "culvert check: {checked}");

    same_roots(stage)?;
    for agent in ["ztunnel", "istio-cni-node"] {
        leaves(stage, agent)?;
    }
    let ours = format!("agent.nodeSelector={}", json!({OURS: "culvert"}));
    stage.install(&["--set", &ours, "--set", "validation.enabled=false"])?;

    moved(stage, "node-a")?;
    proven(stage, "with a node of each kind")?;
    ensure!(stage.agent_of("node-a")?.0 == SYSTEM && stage.agent_of("node-b")?.0 == ISTIO, "agents of nodes");
    WAYS.iter().try_for_each(|(client, server)| stage.denied_and_released(client, server))?;
    stage.say("policies count on both");
    moved_back(stage, "node-a")?;
    proven(stage, "with that node back at Istio")?;
    ensure!(stage.agent_of("node-a")?.0 == ISTIO, "the node that went back has ztunnel");
    moved(stage, "node-a")?;
    moved(stage, "node-b")?;
    proven(stage, "with both nodes moved")?;

    for part in ["daemonset/ztunnel", "daemonset/istio-cni-node", "deployment/istiod"] {
        stage.cluster.kubectl(&["-n", ISTIO, "delete", part])?;
    }
    let everywhere = format!("agent.nodeSelector={}", json!({"kubernetes.io/os": "linux"}));
    stage.culvert(&[
        "upgrade",
        "--kubeconfig",
        &config(stage),
        "--wait",
        "--set",
        &everywhere,
        "--set",
        "validation.enabled=true",
    ])?;
    proven(stage, "without Istio")?;
    let text = stage.culvert(&["check", "--kubeconfig", &config(stage), "--json"])?;
    let told: Value = serde_json::from_str(&text)?;
    ensure!(told["errors"] == 0 && !text.contains("istio-cni-node"), "{text}");
    Ok(())
}

fn config(stage: &Stage) -> String {
    stage.cluster.kubeconfig().display().to_string()
}

/// Both ways work, by identities that both agents saw, unreadable in between.
fn proven(stage: &Stage, when: &str) -> Result<()> {
    stage.both_ways()?;
    let file = stage.cluster.root.join(format!("{}.pcap", when.replace(' ', "-")));
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    for (client, server) in WAYS {
        let request = format!("{} -H 'secret: {SECRET}'", curl(server));
        stage.exec(ENDS, &inside(client), &["/bin/sh", "-c", &request])?;
    }
    let seen = capture.stop()?;
    ensure!(!seen.contains(SECRET) && seen.packets_of_port(80) == 0, "{when}: a request is readable");
    ensure!(seen.packets_of_port(15008) > 0, "{when}: nothing on 15008");
    WAYS.iter().try_for_each(|(client, server)| stage.proven(client, server))?;
    stage.say(&format!("both ways {when}"));
    Ok(())
}

/// Istio's intermediate under its own name in our namespace.
fn same_roots(stage: &Stage) -> Result<()> {
    stage.cluster.kubectl(&["create", "namespace", SYSTEM])?;
    let secret = stage.cluster.get(&["-n", ISTIO, "secret", "cacerts"])?;
    let copy = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": SYSTEM},
        "data": secret["data"]});
    stage.cluster.apply_object(&copy).map(drop)
}

/// Gives an agent of Istio's an affinity that keeps it from our nodes.
fn leaves(stage: &Stage, agent: &str) -> Result<()> {
    let patch = json!({"spec": {"template": {"spec": {"affinity": off_our_nodes()}}}}).to_string();
    stage.cluster.kubectl(&["-n", ISTIO, "patch", "daemonset", agent, "-p", &patch])?;
    stage.cluster.rolled_out(ISTIO, &format!("daemonset/{agent}"), ROLLOUT)
}

/// Drained, labelled, and back when it has our agent and none of Istio's.
fn moved(stage: &Stage, node: &str) -> Result<()> {
    drain(stage, node)?;
    stage.cluster.kubectl(&["label", "node", node, &format!("{OURS}=culvert")])?;
    gone(stage, ISTIO, node, &["ztunnel", "istio-cni"])?;
    stage.cluster.rolled_out(SYSTEM, "daemonset/culvert-agent", ROLLOUT)?;
    stage.cluster.kubectl(&["uncordon", node])?;
    stage.say(&format!("{node} has moved"));
    Ok(())
}

/// The other way round; what our agent leaves on a node has to be cleaned.
fn moved_back(stage: &Stage, node: &str) -> Result<()> {
    let command = ["uninstall", "--kubeconfig", &config(stage), "--node", node];
    let early = stage.culvert(&command).unwrap_or_else(|error| format!("{error:#}"));
    ensure!(early.contains("still in the mesh") || early.contains("selector has node"), "too early: {early}");
    drain(stage, node)?;
    stage.cluster.kubectl(&["label", "node", node, &format!("{OURS}-")])?;
    gone(stage, SYSTEM, node, &["culvert-agent"])?;
    let said = stage.culvert(&command)?;
    ensure!(said.contains("the mesh goes on without them"), "{said}");
    for agent in ["istio-cni-node", "ztunnel"] {
        stage.cluster.rolled_out(ISTIO, &format!("daemonset/{agent}"), ROLLOUT)?;
    }
    stage.cluster.kubectl(&["uncordon", node])?;
    stage.say(&format!("{node} has moved back"));
    Ok(())
}

fn drain(stage: &Stage, node: &str) -> Result<()> {
    let words = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"];
    stage.cluster.kubectl(&words).map(drop)
}

/// Waits until a node has none of these pods.
fn gone(stage: &Stage, namespace: &str, node: &str, names: &[&str]) -> Result<()> {
    wait::until(ROLLOUT, &format!("{} to leave {node}", names.join(" and ")), || {
        let on = format!("spec.nodeName={node}");
        let words = ["-n", namespace, "get", "pods", "--field-selector", &on, "-o", "name"];
        let left = stage.cluster.kubectl(&words).ok()?;
        names.iter().all(|name| !left.contains(&format!("pod/{name}"))).then_some(())
    })
}
