//! Culvert removed, and installed again.

use anyhow::{Result, ensure};
use harness::capture::Capture;

use crate::{
    load::SECRET,
    shop::{CLIENT, SHOP, URL},
    stage::{ROLLOUT, SYSTEM, Stage},
};

/// What an agent leaves on a node: its plugin's files, the plugin's entry in a list, programs in the kernel.
const TRACES: &str = "ls /opt/cni/bin/culvert-cni /sys/fs/bpf/culvert 2> /dev/null; \
                      grep -l culvert-cni /etc/cni/net.d/* 2> /dev/null; true";

/// Nodes have no trace of it, pods that were in the mesh talk plaintext without a restart; installed again,
/// the same pods are in the mesh again.
pub fn culvert_is_removed_without_a_trace_and_installed_again(stage: &mut Stage) -> Result<()> {
    stage.shop()?;
    let curl = format!("/usr/bin/curl -sf --max-time 5 -H secret:{SECRET} {URL}");
    for node in stage.cluster.nodes.values() {
        let traces = node.exec(&["/bin/sh", "-c", TRACES])?;
        ensure!(traces.contains("culvert-cni"), "{} has no plugin: {traces}", node.name);
    }
    let config = stage.cluster.kubeconfig().display().to_string();
    stage.culvert(&["uninstall", "--kubeconfig", &config, "--with-enrolled"])?;
    stage.say("Culvert is removed");
    for node in stage.cluster.nodes.values() {
        let traces = node.exec(&["/bin/sh", "-c", TRACES])?;
        ensure!(traces.trim().is_empty(), "{} keeps {traces}", node.name);
    }
    ensure!(
        stage.cluster.kubectl(&["-n", SHOP, "get", "deployment", "waypoint"]).is_err(),
        "a waypoint stays"
    );
    let file = stage.cluster.root.join("removed.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    for _ in 0..20 {
        stage.exec(SHOP, CLIENT, &["/bin/sh", "-c", &curl])?;
    }
    ensure!(capture.stop()?.contains(SECRET), "without a mesh requests are readable");

    stage.cluster.kubectl(&["wait", "--for=delete", &format!("namespace/{SYSTEM}"), "--timeout=60s"])?;
    stage.install(&[])?;
    stage.waypoint(SHOP)?;
    // It names pods that should be in the mesh and are not.
    stage.culvert(&["check", "--kubeconfig", &config, "--wait"])?;
    stage.shop_answers()?;
    let file = stage.cluster.root.join("again.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    for _ in 0..20 {
        stage.exec(SHOP, CLIENT, &["/bin/sh", "-c", &curl])?;
    }
    ensure!(!capture.stop()?.contains(SECRET), "a request is readable after the second installation");
    stage.cluster.rolled_out(SYSTEM, "daemonset/culvert-agent", ROLLOUT)
}
