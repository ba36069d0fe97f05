//! The control plane is away: while agents run, while they start, and until certificates end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, net::TcpStream, time::Duration};

use harness::{
    capture::Capture,
    echo::{Echo, ask, say},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Family, Peer},
    require, wait,
};
use serde_json::Value;

/// Reconnecting is spaced out, up to 15 s; certificates are asked for as soon as the stream is open.
const BACK: Duration = Duration::from_secs(30);

/// STRICT in [`MESHED`], where `denied` may not talk to anybody.
const POLICIES: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: mtls, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n---\n\
    apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: deny-one, namespace: shop}\nspec: {action: DENY, \
    rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/denied]}}]}]}\n";

struct Stage {
    mesh: Mesh,
    client: Peer,
    denied: Peer,
    stranger: Peer,
    web: Peer,
    far: Peer,
    _servers: [Echo; 2],
}

fn stage(name: &str, words: &[&str]) -> Option<Stage> {
    if !require::root(name) {
        return None;
    }
    let mut mesh = Mesh::without_agents().unwrap();
    mesh.world.agent_words = words.iter().map(ToString::to_string).collect();
    mesh.world.start_control().unwrap();
    (0..2).for_each(|node| mesh.world.start_agent(node).unwrap());
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let denied = mesh.pod(MESHED, "denied", 0).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let servers = [Echo::serve(&web, 80, "web").unwrap(), Echo::serve(&far, 80, "far").unwrap()];
    mesh.enrolled(&[&client, &denied, &web]).unwrap();
    mesh.apply(POLICIES).unwrap();
    Some(Stage { mesh, client, denied, stranger, web, far, _servers: servers })
}

impl Stage {
    /// What an agent says of itself.
    fn config(&self, node: u8) -> Value {
        serde_json::from_str(&self.mesh.world.agent_get(node, "/debug/config").unwrap()).unwrap()
    }

    fn control_goes(&mut self) {
        self.mesh.world.stop_control();
        for node in 0..2 {
            wait::until(LIMIT, "the agent to notice", || {
                let xds = &self.config(node)["control"];
                (xds["connected"] == false && xds["last_error"].is_string()).then_some(())
            })
            .unwrap();
        }
    }

    fn open(&self) -> Vec<TcpStream> {
        let ways = [(&self.client, &self.web), (&self.stranger, &self.far), (&self.client, &self.far)];
        let open = ways
            .into_iter()
            .flat_map(|(from, to)| FAMILIES.map(|family| from.connect(to.at(family, 80)).unwrap()));
        open.inspect(|stream| drop(say(stream).unwrap())).collect()
    }

    /// Everything is allowed and refused as it was when the control plane was there.
    fn all_is_as_it_was(&self) {
        for family in FAMILIES {
            let to = self.web.at(family, 80);
            self.mesh.reaches(&self.client, to).unwrap();
            self.mesh.reaches(&self.client, self.far.at(family, 80)).unwrap();
            self.mesh.refused(&self.denied, to, agent(1), "policy_denied").unwrap();
            self.mesh.refused(&self.stranger, to, agent(1), "mtls_required").unwrap();
        }
    }

    /// Pods of the first node are captured and refused in both directions, and nobody else is touched.
    fn is_closed(&self) {
        let captured = self.mesh.captured(0);
        assert!([&self.client, &self.denied].iter().all(|peer| captured.contains(&peer.pod.ip)));
        for family in FAMILIES {
            assert!(ask(&self.client, self.web.at(family, 80)).is_err());
            assert!(ask(&self.client, self.far.at(family, 80)).is_err());
            assert_eq!(ask(&self.stranger, self.far.at(family, 80)).unwrap().server, "far");
        }
    }

    /// Waits until a node is not ready for a reason.
    fn awaits(&self, node: u8, what: &str) {
        wait::until(LIMIT, &format!("node {node} to await {what}"), || {
            let (status, text) = self.mesh.world.agent_readiness(node).ok()?;
            (status == 503 && text.contains(what)).then_some(())
        })
        .unwrap();
    }

    fn is_ready(&self, node: u8) {
        wait::until(BACK, &format!("node {node} to be ready"), || {
            (self.mesh.world.agent_readiness(node).ok()?.0 == 200).then_some(())
        })
        .unwrap();
    }
}

#[test]
fn while_the_control_plane_is_away_flows_go_on_new_ones_are_carried_and_policies_hold() {
    let name = "while_the_control_plane_is_away_flows_go_on_new_ones_are_carried_and_policies_hold";
    let Some(mut stage) = stage(name, &[]) else { return };
    let open = stage.open();
    stage.all_is_as_it_was();
    stage.control_goes();
    stage.all_is_as_it_was();
    open.iter().for_each(|stream| drop(say(stream).unwrap()));
    for node in 0..2 {
        assert_eq!(stage.mesh.world.agent_readiness(node).unwrap().0, 200, "it still serves");
        let text = stage.mesh.world.agent_get(node, "/metrics").unwrap();
        assert!(text.lines().any(|line| line.starts_with("culvert_xds_connected") && line.ends_with(" 0")));
    }
    stage.mesh.world.start_control().unwrap();
    wait::until(LIMIT, "the stream to be open again", || {
        (stage.config(0)["control"]["connected"] == true).then_some(())
    })
    .unwrap();
    // News arrive again, and nothing was lost.
    stage.mesh.apply("").unwrap();
    stage.mesh.reaches(&stage.denied, stage.web.at(Family::V4, 80)).unwrap();
    open.iter().for_each(|stream| drop(say(stream).unwrap()));
}

#[test]
fn an_agent_that_starts_while_the_control_plane_is_away_keeps_its_pods_closed_and_heals_by_itself() {
    let name =
        "an_agent_that_starts_while_the_control_plane_is_away_keeps_its_pods_closed_and_heals_by_itself";
    let Some(mut stage) = stage(name, &[]) else { return };
    // A killed agent may lose what it learnt in its last second; this is not about that.
    let cache = stage.mesh.world.root.join("state/node-a/snapshot");
    wait::until(LIMIT, "the configuration to be on disk", || {
        String::from_utf8_lossy(&fs::read(&cache).ok()?).contains("deny-one").then_some(())
    })
    .unwrap();
    stage.control_goes();
    stage.mesh.world.kill_agent(0);
    let file = stage.mesh.world.root.join("away.pcap");
    let capture = Capture::start(&stage.mesh.world.underlay(), "br0", file).unwrap();
    stage.mesh.world.spawn_agent(0).unwrap();
    // Keys are in memory only: without an authority nobody can be in the mesh, and nobody leaves it.
    stage.awaits(0, "enrolment of running pods");
    let config = stage.config(0);
    assert_eq!(config["snapshot"]["from_disk"], true, "{config}");
    assert_eq!(config["snapshot"]["complete"], true);
    wait::until(LIMIT, "the pods to say what they lack", || {
        stage.config(0)["pods"].to_string().contains("certificate authority cannot be reached").then_some(())
    })
    .unwrap();
    stage.is_closed();
    // The same with a file that is damaged: then nothing at all is known.
    stage.mesh.world.kill_agent(0);
    let mut text = fs::read(&cache).unwrap();
    let middle = text.len() / 2;
    text[middle] ^= 1;
    fs::write(&cache, text).unwrap();
    let mark = stage.mesh.mark(agent(0));
    stage.mesh.world.spawn_agent(0).unwrap();
    stage.mesh.logged(&mark, &["damaged", "it is ignored"]).unwrap();
    stage.awaits(0, "configuration");
    assert_eq!(stage.config(0)["snapshot"]["from_disk"], false);
    stage.is_closed();
    let seen = capture.stop().unwrap();
    let plain = [&stage.client, &stage.denied].map(|peer| seen.contains(&format!("far {}", peer.pod.ip)));
    assert_eq!(plain, [false, false], "a captured pod was answered in plaintext");
    assert!(seen.contains(&format!("far {}", stage.stranger.pod.ip)), "who is not captured was");
    stage.mesh.world.start_control().unwrap();
    stage.is_ready(0);
    stage.all_is_as_it_was();
}

#[test]
fn a_first_start_without_a_control_plane_awaits_configuration_and_touches_nobody() {
    let name = "a_first_start_without_a_control_plane_awaits_configuration_and_touches_nobody";
    if !require::root(name) {
        return;
    }
    let mut mesh = Mesh::without_agents().unwrap();
    // The authority's root is on disk, as an installation puts it there.
    mesh.world.start_control().unwrap();
    mesh.world.stop_control();
    let near = mesh.pod(PLAIN, "near", 0).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let pod = mesh.pod(MESHED, "pod", 0).unwrap();
    let _server = Echo::serve(&far, 80, "far").unwrap();
    mesh.world.spawn_agent(0).unwrap();
    wait::until(LIMIT, "readiness to name configuration", || {
        let (status, text) = mesh.world.agent_readiness(0).ok()?;
        (status == 503 && text.contains("configuration")).then_some(())
    })
    .unwrap();
    // A pod that ran before keeps its traffic until it can be captured; one that starts now is blocked.
    let late = mesh.pod(MESHED, "late", 0).unwrap();
    wait::until(LIMIT, "the new pod to be blocked", || mesh.captured(0).contains(&late.pod.ip).then_some(()))
        .unwrap();
    for family in FAMILIES {
        let to = far.at(family, 80);
        assert_eq!(ask(&near, to).unwrap().server, "far");
        assert_eq!(ask(&pod, to).unwrap().server, "far");
        assert!(ask(&late, to).is_err());
    }
    mesh.world.start_control().unwrap();
    wait::until(BACK, "both pods to be active and the node ready", || {
        let ready = mesh.world.agent_readiness(0).ok()?.0 == 200;
        (ready && mesh.standing(0, "active") == 2).then_some(())
    })
    .unwrap();
    mesh.world.start_agent(1).unwrap();
    [&near, &pod, &late].iter().for_each(|peer| drop(mesh.reaches(peer, far.at(Family::V4, 80)).unwrap()));
}

#[test]
fn certificates_that_end_while_the_control_plane_is_away_close_pods_to_new_flows_until_it_is_back() {
    let name =
        "certificates_that_end_while_the_control_plane_is_away_close_pods_to_new_flows_until_it_is_back";
    let Some(mut stage) = stage(name, &["--certificate-seconds", "15"]) else { return };
    let open = stage.open();
    stage.all_is_as_it_was();
    stage.control_goes();
    let to = stage.web.at(Family::V4, 80);
    wait::until(LIMIT * 2, "the certificate to end", || {
        let pods = stage.config(0)["pods"].to_string();
        pods.contains("certificate authority cannot be reached").then_some(())
    })
    .unwrap();
    stage.mesh.refused(&stage.client, to, agent(0), "certificate_unavailable").unwrap();
    stage
        .mesh
        .refused(&stage.client, stage.web.at(Family::V6, 80), agent(0), "certificate_unavailable")
        .unwrap();
    // What was proven when it began goes on, and who needs no identity is carried.
    open.iter().for_each(|stream| drop(say(stream).unwrap()));
    stage.mesh.reaches(&stage.client, stage.far.at(Family::V4, 80)).unwrap();
    stage.mesh.world.start_control().unwrap();
    wait::until(BACK, "certificates of all", || {
        let healed = |node| !stage.config(node)["pods"].to_string().contains("authority");
        (healed(0) && healed(1)).then_some(())
    })
    .unwrap();
    stage.all_is_as_it_was();
}
