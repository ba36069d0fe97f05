//! Istio's ztunnel under our control plane, on the node beside that of our agent.

use anyhow::{Context, Result, ensure};
use harness::{capture::Capture, wait};
use serde_json::{Value, json};

use crate::{
    ends::{ENDS, WAYS, curl, inside},
    load::SECRET,
    stage::{LIMIT, ROLLOUT, SYSTEM, Stage},
};

const OUTSIDE: &str = "outside";
const ROUTED: &str = "routed";
const HBONE: u16 = 15008;

/// Requests go both ways through one tunnel protocol: each side proves its identity to the other and logs
/// it, nobody on the wire can read them, and who is outside the mesh is refused by both.
pub fn ztunnel_under_our_control_plane_and_our_agent_carry_traffic_both_ways_by_hbone(
    stage: &mut Stage,
) -> Result<()> {
    stage.ends()?;
    let file = stage.cluster.root.join("both.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    for (client, server) in WAYS {
        let request = format!("{} -H 'secret: {SECRET}'", curl(server));
        let script = format!("for i in $(seq 20); do {request} || exit 1; done");
        stage.exec(ENDS, &inside(client), &["/bin/sh", "-c", &script]).with_context(|| client.to_string())?;
    }
    let seen = capture.stop()?;
    ensure!(!seen.contains(SECRET), "a request is readable on the wire");
    let (tunnelled, plain) = (seen.packets_of_port(HBONE), seen.packets_of_port(80));
    ensure!(tunnelled > 0 && plain == 0 && seen.contains_tls(), "{tunnelled} on {HBONE}, {plain} on 80");
    stage.say(&format!("20 requests each way: {tunnelled} packets on {HBONE}, {plain} on 80"));
    WAYS.iter().try_for_each(|(client, server)| stage.proven(client, server))?;
    stage.namespace(OUTSIDE, false)?;
    for (node, server) in [("node-a", "web-b"), ("node-b", "web-a")] {
        let stranger = format!("stranger-{node}");
        stage.idle(OUTSIDE, &stranger, node)?;
        // Curl's word for a connection that was made and then reset, or closed without an answer.
        let script = format!("{}; code=$?; test $code = 56 || test $code = 52", curl(server));
        let refused = stage.exec(OUTSIDE, &stranger, &["/bin/sh", "-c", &script]);
        refused.with_context(|| format!("{server} did not refuse a stranger"))?;
    }
    accepted(stage)
}

/// Refused for one principal and for no other, with the policy's name, and accepted again.
pub fn a_policy_that_denies_a_principal_counts_at_ztunnel_as_at_our_agent_until_it_is_gone(
    stage: &mut Stage,
) -> Result<()> {
    stage.ends()?;
    for (client, server) in WAYS {
        stage.denied_and_released(client, server)?;
        stage.say(&format!("{server} denied {client} and nobody else"));
    }
    accepted(stage)
}

/// Weights hold for clients of both agents, with a version on each node.
pub fn clients_and_versions_under_ztunnel_take_part_in_a_route_through_our_waypoint(
    stage: &mut Stage,
) -> Result<()> {
    const URL: &str = "http://nginx-service:8000/";
    stage.namespace(ROUTED, true)?;
    stage.strict(ROUTED)?;
    stage.apply_file(ROUTED, "examples/nginx-canary/app.yaml")?;
    for (version, node) in [("nginx-a", "node-a"), ("nginx-b", "node-b")] {
        let pin = json!({"spec": {"template": {"spec": {"nodeName": node}}}}).to_string();
        stage.cluster.kubectl(&["-n", ROUTED, "patch", "deployment", version, "-p", &pin])?;
    }
    stage.apply_file(ROUTED, "examples/nginx-canary/routing.yaml")?;
    for version in ["nginx-a", "nginx-b"] {
        stage.cluster.rolled_out(ROUTED, &format!("deployment/{version}"), ROLLOUT)?;
    }
    for (client, node) in [("client-a", "node-a"), ("client-b", "node-b")] {
        stage.idle(ROUTED, client, node)?;
    }
    stage.waypoint(ROUTED)?;
    for client in ["client-a", "client-b"] {
        let mut last = (0, 0);
        let ninety = wait::until(LIMIT, "nine of ten answers from version A", || {
            let answers = stage.ask(ROUTED, client, URL, 200).unwrap_or_default();
            let count = |what: &str| answers.iter().filter(|answer| answer.contains(what)).count();
            last = (count("Full Cycle A"), count("Full Cycle B"));
            (last.0 + last.1 == 200 && (165..=195).contains(&last.0)).then_some(())
        });
        ensure!(ninety.is_ok(), "{client}: A {} B {}", last.0, last.1);
        stage.say(&format!("{client}: A {} B {}", last.0, last.1));
    }
    accepted(stage)
}

/// A control plane that is replaced is asked only for what changed; what is said then counts.
pub fn ztunnel_goes_on_with_the_next_control_plane_and_refuses_nothing(stage: &mut Stage) -> Result<()> {
    stage.ends()?;
    let [(_, at_ztunnel), (client, server)] = WAYS;
    let load = stage.load(ENDS, &inside(client), &format!("http://{server}/"), 15, 50, true)?;
    stage.cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "deployment/culvert-control"])?;
    stage.cluster.rolled_out(SYSTEM, "deployment/culvert-control", ROLLOUT)?;
    let answers = load.end(stage)?;
    stage.say(&format!("control plane replaced: {:?}", answers.0));
    answers.all_good(600)?;
    wait::until(LIMIT, "ztunnel at the next control plane", || accepted(stage).ok())?;
    stage.denied_and_released("client-a", at_ztunnel)?;
    accepted(stage)
}

/// ztunnel holds workloads and policies of this control plane and has refused nothing of it.
fn accepted(stage: &Stage) -> Result<()> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/services/culvert-control:http-admin/proxy/debug/clients");
    let text = stage.cluster.kubectl(&["get", "--raw", &path])?;
    let clients: Vec<Value> = serde_json::from_str(&text).context("/debug/clients")?;
    let is_ztunnel =
        |client: &&Value| client["node"].as_str().is_some_and(|id| id.contains(".istio-system~"));
    let client = clients.iter().find(is_ztunnel).with_context(|| format!("no ztunnel among {text}"))?;
    ensure!(client["nacks"] == 0 && client["refused"] == json!({}), "{client}");
    for kind in ["istio.workload.Address", "istio.security.Authorization"] {
        let url = format!("type.googleapis.com/{kind}");
        ensure!(client["held"][&url].as_u64() > Some(0), "nothing of {kind} is held: {client}");
        ensure!(client["accepted_version"][&url].is_u64(), "nothing of {kind} was accepted: {client}");
    }
    stage.say(&format!("ztunnel accepted {} responses and refused none", client["acks"]));
    Ok(())
}
