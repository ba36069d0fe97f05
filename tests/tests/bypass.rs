//! What the kernel lets pass the agent: destinations proven outside the mesh, and probes of the node. And
//! what it tells of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use harness::{
    echo::{Echo, ask},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Peer},
    require, wait,
};

/// The ranges of services and of the first node's pods. The second node's are outside, unless configuration
/// mentions them.
const RANGES: &str = "10.244.0.0/24,10.96.0.0/16,fd00:244::/48,fd00:96::/32";

/// A client on the first node, and something outside the mesh on the second, whose addresses are in
/// none of [`RANGES`].
struct Stage {
    mesh: Mesh,
    client: Peer,
    outsider: Peer,
    _outside: Echo,
}

fn stage(name: &str) -> Option<Stage> {
    if !require::root(name) {
        return None;
    }
    let mut mesh = Mesh::without_agents().unwrap();
    mesh.world.agent_words = ["--mesh-cidrs", RANGES].map(String::from).to_vec();
    mesh.world.start_control().unwrap();
    mesh.world.start_agent(0).unwrap();
    mesh.world.start_agent(1).unwrap();
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let outsider = mesh.outsider("outsider", 1).unwrap();
    let outside = Echo::serve(&outsider, 80, "outsider").unwrap();
    mesh.enrolled(&[&client]).unwrap();
    Some(Stage { mesh, client, outsider, _outside: outside })
}

impl Stage {
    /// A figure of the client's bypassed flows.
    fn bypassed(&self, family: &str) -> f64 {
        self.mesh.metric(0, &[family, "leg=\"bypass\"", "workload=\"client\"", "namespace=\"shop\""])
    }

    fn site(&self, site: &str) -> f64 {
        self.mesh.metric(0, &["culvert_bpf_events_total", &format!("site=\"{site}\"")])
    }

    /// Whether the kernel lets what is outside pass.
    fn bypass_is_on(&self, to: SocketAddr) {
        wait::until(LIMIT, "a flow to bypass the agent", || {
            let before = self.site("bypass");
            ask(&self.client, to).ok()?;
            (self.site("bypass") > before).then_some(())
        })
        .unwrap();
    }
}

#[test]
fn what_is_proven_outside_the_mesh_bypasses_the_agent_and_the_kernel_still_counts_it() {
    let name = "what_is_proven_outside_the_mesh_bypasses_the_agent_and_the_kernel_still_counts_it";
    let Some(mut stage) = stage(name) else { return };
    let web = stage.mesh.pod(MESHED, "web", 0).unwrap();
    let _web = Echo::serve(&web, 80, "web").unwrap();
    stage.mesh.enrolled(&[&web]).unwrap();
    for family in FAMILIES {
        let to = stage.outsider.at(family, 80);
        stage.bypass_is_on(to);
        let figures = [
            "culvert_tcp_flows_total",
            "culvert_tcp_sent_bytes_total",
            "culvert_tcp_received_bytes_total",
            "culvert_tcp_rtt_seconds_count",
            "culvert_tcp_rtt_seconds_sum",
            "culvert_tcp_connect_seconds_count",
            "culvert_tcp_connect_seconds_sum",
        ];
        let before = figures.map(|figure| stage.bypassed(figure));
        let mark = stage.mesh.mark(agent(0));
        assert_eq!(stage.mesh.reaches(&stage.client, to).unwrap().server, "outsider");
        wait::until(LIMIT, "every figure of a bypassed flow to grow", || {
            let now = figures.map(|figure| stage.bypassed(figure));
            now.iter().zip(&before).all(|(now, before)| now > before).then_some(())
        })
        .unwrap();
        // The twin: a pod of the mesh is captured, and its line comes after where the other's would be.
        let captured = stage.site("captured");
        assert_eq!(stage.mesh.reaches(&stage.client, web.at(family, 80)).unwrap().server, "web");
        assert!(stage.site("captured") > captured);
        stage.mesh.logged(&mark, &["direction=\"outbound\"", "path=\"tunnel\""]).unwrap();
        let new = stage.mesh.log(agent(0)).split_off(mark.offset());
        assert!(!new.contains(&to.ip().to_string()), "the agent never saw it:\n{new}");
        let named = ["culvert_tcp_flows_total", "leg=\"captured\"", "peer_workload=\"web\""];
        wait::until(LIMIT, "the captured flow to be named after its destination", || {
            (stage.mesh.metric(0, &named) > 0.0).then_some(())
        })
        .unwrap();
    }
}

#[test]
fn what_configuration_mentions_outside_the_ranges_is_captured() {
    let name = "what_configuration_mentions_outside_the_ranges_is_captured";
    let Some(stage) = stage(name) else { return };
    for family in FAMILIES {
        let to = stage.outsider.at(family, 80);
        stage.bypass_is_on(to);
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: outside, namespace: {MESHED}}}\n\
             spec: {{hosts: [outside.example.com], addresses: [\"{}\"], location: MESH_EXTERNAL, \
             resolution: STATIC, ports: [{{number: 80, name: tcp, protocol: TCP}}], \
             endpoints: [{{address: \"{}\"}}]}}\n",
            to.ip(),
            to.ip()
        );
        stage.mesh.apply(&entry).unwrap();
        wait::until(LIMIT, "the address to be captured", || {
            let before = (stage.site("captured"), stage.site("bypass"));
            ask(&stage.client, to).ok()?;
            (stage.site("captured") > before.0 && stage.site("bypass") == before.1).then_some(())
        })
        .unwrap();
        stage.mesh.apply("").unwrap();
        stage.bypass_is_on(to);
    }
}

#[test]
fn nothing_bypasses_an_agent_that_does_not_know_the_whole_mesh() {
    let name = "nothing_bypasses_an_agent_that_does_not_know_the_whole_mesh";
    let Some(mut stage) = stage(name) else { return };
    for family in FAMILIES {
        stage.bypass_is_on(stage.outsider.at(family, 80));
    }
    stage.mesh.world.stop_control();
    stage.mesh.world.kill_agent(0);
    std::fs::remove_dir_all(stage.mesh.world.root.join("state/node-a")).unwrap();
    stage.mesh.world.spawn_agent(0).unwrap();
    wait::until(LIMIT, "the agent to answer", || stage.mesh.world.agent_get(0, "/metrics").ok()).unwrap();
    for family in FAMILIES {
        let to = stage.outsider.at(family, 80);
        wait::until(LIMIT, "bypass to end", || {
            let before = stage.site("bypass");
            let answer = ask(&stage.client, to);
            (answer.is_err() && stage.site("bypass") == before).then_some(())
        })
        .unwrap();
    }
    // The twin: the same agent, once it knows everything.
    stage.mesh.world.start_control().unwrap();
    for family in FAMILIES {
        stage.bypass_is_on(stage.outsider.at(family, 80));
    }
}

/// Asks from the namespace of a node, as a kubelet's probe does.
fn probe(mesh: &Mesh, node: u8, to: SocketAddr) -> Option<String> {
    let word = format!("exec 3<>/dev/tcp/{}/{} && echo who >&3 && head -n1 <&3", to.ip(), to.port());
    let mut command = mesh.world.node_place(node).command("timeout").unwrap();
    let output = command.args(["5", "bash", "-c", &word]).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_string();
    (output.status.success() && !answer.is_empty()).then_some(answer)
}

#[test]
fn the_nodes_probes_reach_the_application_under_strict_and_a_plain_pod_does_not() {
    let name = "the_nodes_probes_reach_the_application_under_strict_and_a_plain_pod_does_not";
    if !require::root(name) {
        return;
    }
    let mut mesh = Mesh::start().unwrap();
    let web = mesh.pod(MESHED, "web", 0).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
    let _web = Echo::serve(&web, 80, "web").unwrap();
    mesh.enrolled(&[&web]).unwrap();
    let strict = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: strict, namespace: {MESHED}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    );
    mesh.apply(&strict).unwrap();
    let probes = |mesh: &Mesh| mesh.metric(0, &["culvert_bpf_events_total", "site=\"probe\""]);
    for family in FAMILIES {
        let (to, before) = (web.at(family, 80), probes(&mesh));
        let answer = probe(&mesh, 0, to).unwrap();
        assert!(answer.starts_with("web "), "{answer}");
        assert!(probes(&mesh) > before);
        mesh.refused(&stranger, to, agent(0), "mtls_required").unwrap();
    }
    // A pod whose agent is gone is still probed, and reached by nobody else.
    mesh.world.kill_agent(0);
    for family in FAMILIES {
        let to = web.at(family, 80);
        assert!(probe(&mesh, 0, to).unwrap().starts_with("web "));
        assert!(ask(&stranger, to).is_err());
    }
}
