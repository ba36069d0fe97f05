//! Agents that are told to stop, and the limits of what peers may hold.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
    time::{Duration, Instant},
};

use harness::{
    capture::Capture,
    echo::{Echo, ask, say},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Family},
    require, wait,
};

const DRAIN: Duration = Duration::from_secs(4);

#[test]
fn an_agent_that_is_told_to_stop_lets_flows_end_closes_the_rest_at_its_deadline_and_refuses_new_ones() {
    let name =
        "an_agent_that_is_told_to_stop_lets_flows_end_closes_the_rest_at_its_deadline_and_refuses_new_ones";
    if !require::root(name) {
        return;
    }
    let mut mesh = Mesh::without_agents().unwrap();
    mesh.world.agent_words = vec!["--drain-seconds".into(), DRAIN.as_secs().to_string()];
    mesh.world.start_control().unwrap();
    (0..2).for_each(|node| mesh.world.start_agent(node).unwrap());
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let _servers = [
        Echo::serve(&web, 80, "web").unwrap(),
        Echo::serve(&far, 80, "far").unwrap(),
        Echo::serve(&client, 80, "client").unwrap(),
    ];
    mesh.enrolled(&[&client, &web]).unwrap();
    // In, out, tunnel and plaintext: two of each.
    let open = |_| -> Vec<TcpStream> {
        let ways = FAMILIES.into_iter().flat_map(|family| {
            [(&client, &web), (&client, &far), (&web, &client), (&far, &client)]
                .map(|(from, to)| from.connect(to.at(family, 80)).unwrap())
        });
        ways.inspect(|stream| drop(say(stream).unwrap())).collect()
    };
    let [ends, stays] = [0, 1].map(open);
    let capture = Capture::start(&mesh.world.underlay(), "br0", mesh.world.root.join("stop.pcap")).unwrap();
    let mark = mesh.mark(agent(0));
    let start = Instant::now();
    mesh.world.terminate_agent(0);
    wait::until(LIMIT, "the agent to drain", || {
        (mesh.world.agent_readiness(0).ok()? == (503, "draining\n".to_string())).then_some(())
    })
    .unwrap();
    for family in FAMILIES {
        assert!(ask(&client, web.at(family, 80)).is_err(), "new connections are refused");
        assert!(ask(&web, client.at(family, 80)).is_err(), "in both directions");
    }
    for stream in &ends {
        say(stream).unwrap();
    }
    drop(ends);
    wait::until(LIMIT, "flows to end in order", || {
        let new = mesh.log(agent(0)).split_off(mark.offset());
        let complete = new.lines().filter(|line| line.contains("connection complete"));
        (complete.filter(|line| !line.contains("reason=")).count() == 8).then_some(())
    })
    .unwrap();
    for mut stream in stays {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let end = stream.read(&mut [0]);
        assert!(matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    }
    assert!(start.elapsed() >= DRAIN, "closed after {:?}", start.elapsed());
    assert!(mesh.world.agent_ended(0, LIMIT).unwrap().success());
    let new = mesh.log(agent(0)).split_off(mark.offset());
    assert_eq!(new.matches("reason=\"drain_deadline\"").count(), 8, "{new}");
    // Capture outlives the agent: nothing goes out in plaintext, and the next agent takes over.
    assert!(ask(&client, web.at(Family::V4, 80)).is_err());
    let seen = capture.stop().unwrap();
    assert!(!seen.contains("web 10.244.0"), "nothing of the tunnels is seen in plaintext");
    mesh.world.start_agent(0).unwrap();
    mesh.reaches(&client, web.at(Family::V4, 80)).unwrap();
}

#[test]
fn what_an_agent_learns_right_before_it_is_told_to_stop_is_on_disk() {
    if !require::root("what_an_agent_learns_right_before_it_is_told_to_stop_is_on_disk") {
        return;
    }
    let mut mesh = Mesh::start().unwrap();
    let deny = |name: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{action: DENY, rules: [{{}}]}}\n"
        )
    };
    // The first change is written at once, and the second one has to wait its turn.
    mesh.apply(&deny("deny-first")).unwrap();
    mesh.apply(&deny("deny-second")).unwrap();
    mesh.world.terminate_agent(0);
    assert!(mesh.world.agent_ended(0, LIMIT).unwrap().success());
    let file = mesh.world.root.join("state/node-a/snapshot");
    let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
    assert!(text.contains("deny-second") && !text.contains("deny-first"));
}

#[test]
fn peers_may_keep_so_many_connections_to_15008_and_one_that_ends_makes_room() {
    if !require::root("peers_may_keep_so_many_connections_to_15008_and_one_that_ends_makes_room") {
        return;
    }
    let mut mesh = Mesh::without_agents().unwrap();
    mesh.world.agent_words = ["--workers", "1", "--max-tunnels", "2"].map(String::from).to_vec();
    mesh.world.start_control().unwrap();
    (0..2).for_each(|node| mesh.world.start_agent(node).unwrap());
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let _server = Echo::serve(&web, 80, "web").unwrap();
    mesh.enrolled(&[&client, &web]).unwrap();
    let to = web.at(Family::V4, 15008);
    let mark = mesh.mark(agent(1));
    let mut held = [stranger.connect(to).unwrap(), stranger.connect(to).unwrap()];
    // The reset may come before or after the client has noticed that it is connected.
    let third = stranger.connect(to).and_then(|mut third| third.read(&mut [0]));
    assert_eq!(third.unwrap_err().kind(), ErrorKind::ConnectionReset);
    mesh.logged(&mark, &["reason=\"limit_reached\"", "--max-tunnels"]).unwrap();
    // The first two still wait for a handshake.
    for stream in &mut held {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    drop(held);
    wait::until(LIMIT, "room for a tunnel", || ask(&client, web.at(Family::V4, 80)).ok()).unwrap();
}
