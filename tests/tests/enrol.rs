//! How pods enter and leave the mesh: alive, in numbers, and with the agent killed at every step.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use harness::{
    capture::Capture,
    echo::{Echo, ask, say},
    manifest,
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Family, Peer},
    require, runner, shell, wait,
    world::World,
};

/// A namespace that a test labels when it wants.
const LATE: &str = "late";

fn mesh(name: &str) -> Option<Mesh> {
    mesh_with(name, &[])
}

fn mesh_with(name: &str, words: &[&str]) -> Option<Mesh> {
    require::root(name).then(|| {
        let mut mesh = Mesh::without_agents().unwrap();
        mesh.world.agent_words = words.iter().map(ToString::to_string).collect();
        mesh.world.agent_filter = "info,agent::supervisor=debug".into();
        mesh.label(LATE, false).unwrap();
        mesh.world.start_control().unwrap();
        mesh.world.start_agent(0).unwrap();
        mesh.world.start_agent(1).unwrap();
        mesh
    })
}

fn left(mesh: &Mesh, peer: &Peer) {
    wait::until(LIMIT, "the pod to be announced no more", || {
        (!runner::is_enrolled(&mesh.world, &peer.pod)).then_some(())
    })
    .unwrap();
    wait::until(LIMIT, "the kernel to capture it no more", || {
        (!mesh.captured(peer.pod.node).contains(&peer.pod.ip)).then_some(())
    })
    .unwrap();
}

#[test]
fn a_running_pod_is_enrolled_and_withdrawn_while_its_open_connections_live_on_in_both_directions() {
    let name =
        "a_running_pod_is_enrolled_and_withdrawn_while_its_open_connections_live_on_in_both_directions";
    let Some(mut mesh) = mesh(name) else { return };
    let app = mesh.pod(LATE, "app", 0).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let _servers = [Echo::serve(&app, 80, "app").unwrap(), Echo::serve(&far, 80, "far").unwrap()];
    for family in FAMILIES {
        let out = app.connect(far.at(family, 80)).unwrap();
        let into = far.connect(app.at(family, 80)).unwrap();
        let both = || {
            assert_eq!(say(&out).unwrap().server, "far");
            assert_eq!(say(&into).unwrap().server, "app");
        };
        both();
        mesh.label(LATE, true).unwrap();
        mesh.enrolled(&[&app]).unwrap();
        both();
        // New connections of both directions do go through the agent now.
        let mark = mesh.mark(agent(0));
        mesh.reaches(&app, far.at(family, 80)).unwrap();
        mesh.reaches(&far, app.at(family, 80)).unwrap();
        mesh.logged(&mark, &["direction=\"outbound\"", &far.ip(family).to_string()]).unwrap();
        mesh.logged(&mark, &["direction=\"inbound\"", &app.ip(family).to_string()]).unwrap();
        let through = app.connect(far.at(family, 80)).unwrap();
        say(&through).unwrap();
        mesh.label(LATE, false).unwrap();
        left(&mesh, &app);
        both();
        say(&through).unwrap();
        let mark = mesh.mark(agent(0));
        mesh.reaches(&app, far.at(family, 80)).unwrap();
        mesh.reaches(&far, app.at(family, 80)).unwrap();
        drop(through);
        // Only the connection that was opened through the agent is in its log.
        mesh.logged(&mark, &["direction=\"outbound\""]).unwrap();
        let new = mesh.log(agent(0)).split_off(mark.offset());
        assert_eq!(new.matches("connection complete").count(), 1, "{new}");
        wait::until(LIMIT, "the pod to have left", || (mesh.standing(0, "ignored") > 0).then_some(()))
            .unwrap();
    }
}

#[test]
fn a_connection_that_was_dialled_before_its_peer_was_in_the_mesh_goes_through_the_tunnel() {
    let name = "a_connection_that_was_dialled_before_its_peer_was_in_the_mesh_goes_through_the_tunnel";
    let Some(mut mesh) = mesh(name) else { return };
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let app = mesh.pod(LATE, "app", 1).unwrap();
    let _server = Echo::serve(&app, 80, "app").unwrap();
    mesh.enrolled(&[&client]).unwrap();
    let node = mesh.world.node_place(0).netns;
    for (family, kind) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let hole = |verb: &str| {
            let rule = format!("{kind} rule {verb} to {} priority 1 blackhole", app.ip(family));
            shell::ip_in(&node, &rule).unwrap()
        };
        mesh.reaches(&client, app.at(family, 80)).unwrap();
        let mark = mesh.mark(agent(0));
        hole("add");
        let asked = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&client, app.at(family, 80)));
            wait::until(LIMIT, "the agent to dial", || {
                let dialling = client.pod.exec(&["ss", "-Htn", "state", "syn-sent"]).ok()?;
                (!dialling.trim().is_empty()).then_some(())
            })
            .unwrap();
            mesh.label(LATE, true).unwrap();
            mesh.enrolled(&[&app]).unwrap();
            hole("del");
            asking.join()
        });
        assert_eq!(asked.unwrap().unwrap().server, "app");
        mesh.logged(&mark, &["direction=\"outbound\"", "path=\"tunnel\""]).unwrap();
        mesh.label(LATE, false).unwrap();
        left(&mesh, &app);
        mesh.workload("app", |found| found["tunnel"] != "Hbone").unwrap();
    }
}

/// Every way through the agent of `app`'s node, in both families; a byte has gone each way.
fn ways(app: &Peer, others: [&Peer; 2]) -> Vec<TcpStream> {
    let pairs = others.into_iter().flat_map(|other| [(app, other), (other, app)]);
    let open = pairs.flat_map(|(from, to)| FAMILIES.map(|family| from.connect(to.at(family, 80)).unwrap()));
    open.inspect(|stream| drop(say(stream).unwrap())).collect()
}

/// Uses connections again and again for some time.
fn live_on(streams: &[TcpStream], time: Duration) {
    let start = Instant::now();
    wait::until(LIMIT, "time to pass", || {
        streams.iter().for_each(|stream| drop(say(stream).unwrap()));
        (start.elapsed() > time).then_some(())
    })
    .unwrap();
}

#[test]
fn connections_of_a_pod_that_left_the_mesh_alive_have_no_deadline_and_end_without_harm_to_newer_ones() {
    let name =
        "connections_of_a_pod_that_left_the_mesh_alive_have_no_deadline_and_end_without_harm_to_newer_ones";
    let Some(mut mesh) = mesh_with(name, &["--drain-seconds", "1"]) else { return };
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let app = mesh.pod(LATE, "app", 0).unwrap();
    let _servers = [(&web, "web"), (&far, "far"), (&app, "app")]
        .map(|(peer, name)| Echo::serve(peer, 80, name).unwrap());
    mesh.label(LATE, true).unwrap();
    mesh.enrolled(&[&web, &app]).unwrap();
    let mark = mesh.mark(agent(0));
    let first = ways(&app, [&web, &far]);
    mesh.label(LATE, false).unwrap();
    left(&mesh, &app);
    // Far longer than the listeners stay and an agent that stops would wait.
    live_on(&first, Duration::from_secs(6));
    assert_eq!(mesh.standing(0, "draining"), 1);
    mesh.label(LATE, true).unwrap();
    mesh.enrolled(&[&app]).unwrap();
    let second = ways(&app, [&web, &far]);
    live_on(&first, Duration::ZERO);
    drop(first);
    live_on(&second, Duration::from_secs(3));
    mesh.label(LATE, false).unwrap();
    left(&mesh, &app);
    live_on(&second, Duration::from_secs(4));
    drop(second);
    wait::until(LIMIT, "the pod to have left", || {
        (mesh.standing(0, "draining") + mesh.standing(0, "active") == 0).then_some(())
    })
    .unwrap();
    let new = mesh.log(agent(0)).split_off(mark.offset());
    assert!(!new.contains("drain_deadline") && !new.contains("reason="), "{new}");
}

#[test]
fn a_folder_that_vanishes_under_strict_lets_no_pod_send_plaintext_though_the_agent_starts_meanwhile() {
    let name =
        "a_folder_that_vanishes_under_strict_lets_no_pod_send_plaintext_though_the_agent_starts_meanwhile";
    let Some(mut mesh) = mesh(name) else { return };
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let _servers = [Echo::serve(&web, 80, "web").unwrap(), Echo::serve(&far, 80, "far").unwrap()];
    mesh.enrolled(&[&client, &web]).unwrap();
    mesh.apply(STRICT).unwrap();
    let open = client.connect(web.at(Family::V4, 80)).unwrap();
    say(&open).unwrap();
    let capture = Capture::start(&mesh.world.underlay(), "br0", mesh.world.root.join("away.pcap")).unwrap();
    let (home, away) = (mesh.world.cluster(), mesh.world.root.join("elsewhere"));
    let marks = [0, 1].map(|node| mesh.mark(agent(node)));
    std::fs::rename(&home, &away).unwrap();
    for mark in &marks {
        mesh.logged(mark, &["cluster folder is not known in full", "cannot be read"]).unwrap();
    }
    let on = |mesh: &Mesh| {
        assert_eq!(mesh.captured(0), [client.pod.ip.as_str()]);
        FAMILIES.iter().for_each(|family| drop(mesh.reaches(&client, web.at(*family, 80)).unwrap()));
        say(&open).unwrap();
    };
    let start = Instant::now();
    wait::until(LIMIT, "time to pass", || {
        on(&mesh);
        (start.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .unwrap();
    // An agent that starts now knows of no pod, and leaves what is captured as it is.
    mesh.world.kill_agent(0);
    let mark = mesh.mark(agent(0));
    mesh.world.spawn_agent(0).unwrap();
    mesh.logged(&mark, &["cluster folder is not known in full"]).unwrap();
    wait::until(LIMIT, "readiness to be answered", || {
        let (status, text) = mesh.world.agent_readiness(0).ok()?;
        (status == 503 && text.contains("pods of this node")).then_some(())
    })
    .unwrap();
    assert_eq!(mesh.captured(0), [client.pod.ip.as_str()]);
    for family in FAMILIES {
        assert!(ask(&client, web.at(family, 80)).is_err() && ask(&client, far.at(family, 80)).is_err());
    }
    let seen = capture.stop().unwrap();
    assert_eq!(seen.packets_of_port(80), 0, "plaintext left the node");
    assert!(seen.packets_of_port(15008) > 0);
    std::fs::rename(&away, &home).unwrap();
    wait::until(LIMIT, "the pod to be active", || (mesh.standing(0, "active") == 1).then_some(())).unwrap();
    FAMILIES.iter().for_each(|family| drop(mesh.reaches(&client, web.at(*family, 80)).unwrap()));
}

/// A pod whose account cannot be part of an identity: the authority refuses it a certificate.
fn odd(mesh: &mut Mesh, name: &str) -> Peer {
    let pod = mesh.world.add_pod(MESHED, name, 0, &format!("{name}/account")).unwrap();
    let peer = Peer::start(pod.clone(), &mesh.world.programs, &mesh.world.log_file(name)).unwrap();
    let container = serde_json::json!({"name": name, "image": "test"});
    mesh.world.write(&World::pod_file(&pod), &manifest::pod(&pod, None, &container, true)).unwrap();
    peer
}

#[test]
fn a_pod_whose_certificate_is_refused_stays_blocked_and_is_named_and_the_node_is_ready_all_the_same() {
    let name =
        "a_pod_whose_certificate_is_refused_stays_blocked_and_is_named_and_the_node_is_ready_all_the_same";
    let Some(mut mesh) = mesh(name) else { return };
    mesh.world.kill_agent(0);
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let _server = Echo::serve(&far, 80, "far").unwrap();
    let good = mesh.pod(MESHED, "good", 0).unwrap();
    // They ran before the agent: it is ready when it has dealt with both.
    let early = odd(&mut mesh, "early");
    let mark = mesh.mark(agent(0));
    mesh.world.start_agent(0).unwrap();
    mesh.enrolled(&[&good]).unwrap();
    let late = odd(&mut mesh, "late");
    for peer in [&early, &late] {
        let name = format!("shop/{}", peer.pod.name);
        mesh.logged(&mark, &["no certificate", &name, "refused"]).unwrap();
        let config = mesh.world.agent_get(0, "/debug/config").unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let shown = config["pods"].as_array().unwrap().iter().find(|pod| pod["pod"] == *name).unwrap();
        assert_eq!(shown["state"], "listening", "{shown}");
        let reason = shown["reason"].as_str().unwrap();
        assert!(reason.contains("certificate authority refused spiffe://"), "{reason}");
        assert!(!runner::is_enrolled(&mesh.world, &peer.pod));
    }
    // Who starts in the mesh is blocked until it is in; the pod beside it is not.
    assert!(ask(&late, far.at(Family::V4, 80)).is_err() && ask(&late, far.at(Family::V6, 80)).is_err());
    mesh.reaches(&good, far.at(Family::V4, 80)).unwrap();
    assert_eq!(mesh.world.agent_readiness(0).unwrap().0, 200);
}

#[test]
fn a_deleted_pod_leaves_nothing_in_the_kernel_and_disturbs_nobody() {
    let Some(mut mesh) = mesh("a_deleted_pod_leaves_nothing_in_the_kernel_and_disturbs_nobody") else {
        return;
    };
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let victim = mesh.pod(MESHED, "victim", 1).unwrap();
    let _servers = [Echo::serve(&web, 80, "web").unwrap(), Echo::serve(&victim, 80, "victim").unwrap()];
    mesh.enrolled(&[&client, &web, &victim]).unwrap();
    let stays = client.connect(web.at(Family::V4, 80)).unwrap();
    let goes = client.connect(victim.at(Family::V4, 80)).unwrap();
    say(&stays).unwrap();
    say(&goes).unwrap();
    assert!(mesh.captured(1).contains(&victim.pod.ip));
    let mark = mesh.mark(agent(1));
    mesh.world.delete_pod(MESHED, "victim").unwrap();
    wait::until(LIMIT, "the kernel to forget the pod", || {
        (mesh.captured(1) == vec![web.pod.ip.clone()]).then_some(())
    })
    .unwrap();
    mesh.logged(&mark, &["reason=\"pod_gone\""]).unwrap();
    say(&stays).unwrap();
    mesh.reaches(&client, web.at(Family::V6, 80)).unwrap();
}

#[test]
fn a_pod_that_is_deleted_while_no_agent_runs_or_one_dies_over_it_is_forgotten_by_the_next_one() {
    let name = "a_pod_that_is_deleted_while_no_agent_runs_or_one_dies_over_it_is_forgotten_by_the_next_one";
    let Some(mut mesh) = mesh(name) else { return };
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let stays = mesh.pod(MESHED, "stays", 0).unwrap();
    let _server = Echo::serve(&web, 80, "web").unwrap();
    mesh.enrolled(&[&web, &stays]).unwrap();
    for step in [None, Some("CloseFlows"), Some("CleanUp")] {
        let victim = mesh.pod(MESHED, "victim", 0).unwrap();
        mesh.enrolled(&[&victim]).unwrap();
        mesh.reaches(&victim, web.at(Family::V4, 80)).unwrap();
        let address = victim.pod.ip.clone();
        // Its helper holds its network open.
        drop(victim);
        if let Some(step) = step {
            let mark = mesh.mark(agent(0));
            mesh.world.delete_pod(MESHED, "victim").unwrap();
            mesh.logged(&mark, &["enrolment", &format!("action={step}")]).unwrap();
            mesh.world.kill_agent(0);
        } else {
            mesh.world.kill_agent(0);
            mesh.world.delete_pod(MESHED, "victim").unwrap();
        }
        // Who has the address next is neither captured nor taken for the one before it.
        let next = mesh.pod(PLAIN, "next", 0).unwrap();
        assert_eq!(next.pod.ip, address, "the address is used again");
        let mark = mesh.mark(agent(0));
        mesh.world.start_agent(0).unwrap();
        wait::until(LIMIT, "the pod to be forgotten", || {
            (mesh.captured(0) == [stays.pod.ip.as_str()]).then_some(())
        })
        .unwrap();
        if step.is_none() {
            mesh.logged(&mark, &["a pod that is gone was forgotten"]).unwrap();
        }
        mesh.reaches(&stays, web.at(Family::V4, 80)).unwrap();
        mesh.reaches(&next, web.at(Family::V4, 80)).unwrap();
        drop(next);
        mesh.world.delete_pod(PLAIN, "next").unwrap();
    }
}

#[test]
fn an_address_that_another_pod_has_now_is_reached_as_that_pod_and_carries_its_identity() {
    let name = "an_address_that_another_pod_has_now_is_reached_as_that_pod_and_carries_its_identity";
    let Some(mut mesh) = mesh(name) else { return };
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let _own = Echo::serve(&client, 80, "client").unwrap();
    let first = mesh.pod(MESHED, "first", 1).unwrap();
    let server = Echo::serve(&first, 80, "first").unwrap();
    mesh.enrolled(&[&client, &first]).unwrap();
    let to = first.at(Family::V4, 80);
    assert_eq!(mesh.reaches(&client, to).unwrap().server, "first");
    drop(server);
    mesh.world.delete_pod(MESHED, "first").unwrap();
    let second = mesh.pod(MESHED, "second", 1).unwrap();
    assert_eq!(second.pod.ip, first.pod.ip, "the address is used again");
    let _server = Echo::serve(&second, 80, "second").unwrap();
    mesh.enrolled(&[&client, &second]).unwrap();
    let mark = mesh.mark(agent(0));
    assert_eq!(mesh.reaches(&client, to).unwrap().server, "second");
    mesh.logged(&mark, &["direction=\"outbound\"", "dst.identity=spiffe://cluster.local/ns/shop/sa/second"])
        .unwrap();
    // As a client, the new pod is itself and not the one before it.
    let deny = |account: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: deny-{account}, namespace: shop}}\nspec: {{action: DENY, \
             rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]}}]}}\n"
        )
    };
    mesh.apply(&deny("first")).unwrap();
    mesh.reaches(&second, client.at(Family::V4, 80)).unwrap();
    mesh.apply(&deny("second")).unwrap();
    mesh.refused(&second, client.at(Family::V4, 80), agent(0), "policy_denied").unwrap();
}

#[test]
fn what_is_not_enrolled_is_not_touched_with_the_agent_up_down_and_up_again() {
    let Some(mut mesh) = mesh("what_is_not_enrolled_is_not_touched_with_the_agent_up_down_and_up_again")
    else {
        return;
    };
    let near = mesh.pod(PLAIN, "near", 0).unwrap();
    let far = mesh.pod(PLAIN, "far", 1).unwrap();
    let meshed = mesh.pod(MESHED, "meshed", 0).unwrap();
    let _servers = [Echo::serve(&near, 80, "near").unwrap(), Echo::serve(&far, 80, "far").unwrap()];
    mesh.enrolled(&[&meshed]).unwrap();
    let open = near.connect(far.at(Family::V4, 80)).unwrap();
    let mark = mesh.mark(agent(0));
    let capture = Capture::start(&mesh.world.underlay(), "br0", mesh.world.root.join("plain.pcap")).unwrap();
    let all = || {
        for family in FAMILIES {
            mesh.reaches(&near, far.at(family, 80)).unwrap();
            mesh.reaches(&far, near.at(family, 80)).unwrap();
        }
        say(&open).unwrap();
    };
    all();
    let seen = capture.stop().unwrap();
    assert!(seen.contains("far 10.244.0"), "its bytes are as they were");
    assert_eq!(seen.packets_of_port(15008), 0);
    let new = mesh.log(agent(0)).split_off(mark.offset());
    assert!(!new.contains("connection complete"), "{new}");
    mesh.world.kill_agent(0);
    for family in FAMILIES {
        ask(&near, far.at(family, 80)).unwrap();
        ask(&far, near.at(family, 80)).unwrap();
    }
    say(&open).unwrap();
    assert!(ask(&meshed, far.at(Family::V4, 80)).is_err(), "what is enrolled is refused meanwhile");
    mesh.world.start_agent(0).unwrap();
    say(&open).unwrap();
    mesh.reaches(&meshed, far.at(Family::V4, 80)).unwrap();
}

/// Steps of a pod's way in and out, as the agent's log names them.
const STEPS: &[(&str, bool)] = &[
    ("BindListeners", true),
    ("RequestCertificate", true),
    ("Capture", true),
    ("Announce", true),
    ("Withdraw", false),
    ("Release", false),
    ("Drain", false),
    ("CleanUp", false),
];

#[test]
fn an_agent_killed_at_any_step_of_enrolment_never_lets_a_pod_send_plaintext_and_the_next_one_finishes() {
    let name =
        "an_agent_killed_at_any_step_of_enrolment_never_lets_a_pod_send_plaintext_and_the_next_one_finishes";
    let Some(mut mesh) = mesh(name) else { return };
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let _server = Echo::serve(&web, 80, "web").unwrap();
    let pods: Vec<Peer> = (0..10).map(|n| mesh.pod(LATE, &format!("late-{n}"), 0).unwrap()).collect();
    mesh.enrolled(&[&web]).unwrap();
    mesh.apply(STRICT).unwrap();
    for (step, inwards) in STEPS {
        if !inwards {
            mesh.label(LATE, true).unwrap();
            mesh.enrolled(&pods.iter().collect::<Vec<_>>()).unwrap();
        }
        let mark = mesh.mark(agent(0));
        mesh.label(LATE, *inwards).unwrap();
        mesh.logged(&mark, &["enrolment", &format!("action={step}")]).unwrap();
        mesh.world.kill_agent(0);
        let announced: Vec<&Peer> =
            pods.iter().filter(|peer| runner::is_enrolled(&mesh.world, &peer.pod)).collect();
        let file = mesh.world.root.join(format!("{step}.pcap"));
        let capture = Capture::start(&mesh.world.underlay(), "br0", file).unwrap();
        for peer in &announced {
            assert!(ask(peer, web.at(Family::V4, 80)).is_err(), "{} after {step}", peer.pod.name);
        }
        let seen = capture.stop().unwrap();
        assert_eq!(seen.packets_of_port(80), 0, "plaintext left the node after {step}");
        println!("killed at {step}: {} of {} pods were announced", announced.len(), pods.len());
        // The end is the same whatever was half done: all in, all out, all in.
        mesh.world.start_agent(0).unwrap();
        if !inwards {
            pods.iter().for_each(|peer| left(&mesh, peer));
            let mark = mesh.mark(agent(1));
            assert!(ask(&pods[0], web.at(Family::V4, 80)).is_err());
            mesh.logged(&mark, &["reason=\"mtls_required\""]).unwrap();
        }
        mesh.label(LATE, true).unwrap();
        mesh.enrolled(&pods.iter().collect::<Vec<_>>()).unwrap();
        for peer in &pods {
            mesh.reaches(peer, web.at(Family::V4, 80)).unwrap();
        }
        mesh.label(LATE, false).unwrap();
        pods.iter().for_each(|peer| left(&mesh, peer));
    }
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: mtls, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn a_pod_that_starts_in_the_mesh_sends_nothing_in_plaintext_though_agents_die_while_it_is_blocked() {
    let name =
        "a_pod_that_starts_in_the_mesh_sends_nothing_in_plaintext_though_agents_die_while_it_is_blocked";
    let Some(mut mesh) = mesh(name) else { return };
    let web = mesh.pod(PLAIN, "web", 1).unwrap();
    let _server = Echo::serve(&web, 80, "web").unwrap();
    let mark = mesh.mark(agent(0));
    let pod = mesh.pod(MESHED, "pod", 0).unwrap();
    mesh.logged(&mark, &["enrolment", "action=BindListeners"]).unwrap();
    mesh.world.kill_agent(0);
    assert!(ask(&pod, web.at(Family::V4, 80)).is_err(), "blocked, or captured with nobody there");
    // The next ones find it captured, and die at each step of its way back in, too.
    let file = mesh.world.root.join("blocked.pcap");
    let capture = Capture::start(&mesh.world.underlay(), "br0", file).unwrap();
    for step in ["Block", "BindListeners", "RequestCertificate", "Capture", "Announce"] {
        let mark = mesh.mark(agent(0));
        mesh.world.spawn_agent(0).unwrap();
        mesh.logged(&mark, &["enrolment", &format!("action={step}")]).unwrap();
        mesh.world.kill_agent(0);
        for family in FAMILIES {
            assert!(ask(&pod, web.at(family, 80)).is_err(), "{family:?} after {step}");
        }
    }
    let seen = capture.stop().unwrap();
    assert_eq!(seen.packets_of_port(80), 0, "plaintext left the node");
    mesh.world.start_agent(0).unwrap();
    mesh.enrolled(&[&pod]).unwrap();
    mesh.reaches(&pod, web.at(Family::V4, 80)).unwrap();
}

#[test]
fn two_hundred_pods_of_a_node_are_enrolled_and_each_has_its_own_identity() {
    let Some(mut mesh) = mesh("two_hundred_pods_of_a_node_are_enrolled_and_each_has_its_own_identity") else {
        return;
    };
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let _server = Echo::serve(&web, 80, "web").unwrap();
    for number in 0..198 {
        mesh.idle(LATE, &format!("pod-{number}"), 0).unwrap();
    }
    let ends = [mesh.pod(LATE, "first", 0).unwrap(), mesh.pod(LATE, "last", 0).unwrap()];
    wait::until(LIMIT, "all pods to be seen", || (mesh.standing(0, "ignored") == 200).then_some(())).unwrap();
    let start = Instant::now();
    mesh.label(LATE, true).unwrap();
    wait::until(Duration::from_secs(120), "200 active pods", || {
        (mesh.standing(0, "active") == 200).then_some(())
    })
    .unwrap();
    let took = start.elapsed();
    mesh.enrolled(&[&web, &ends[0], &ends[1]]).unwrap();
    println!("200 pods enrolled in {took:.1?}, {:.1?} each", took / 200);
    assert_eq!(mesh.captured(0).len(), 200);
    for peer in &ends {
        let mark = mesh.mark(agent(1));
        mesh.reaches(peer, web.at(Family::V4, 80)).unwrap();
        let identity = format!("src.identity=spiffe://cluster.local/ns/late/sa/{}", peer.pod.name);
        mesh.logged(&mark, &[&identity]).unwrap();
    }
    println!("agent: {} MiB", mesh.agent_memory(0) >> 20);
}
