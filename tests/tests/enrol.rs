//! How pods enter and leave the mesh: alive, in numbers, and with the agent killed at every step.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use harness::{
    capture::Capture,
    echo::{Echo, ask, say},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Family, Peer},
    require, runner, wait,
};

/// A namespace that a test labels when it wants.
const LATE: &str = "late";

fn mesh(name: &str) -> Option<Mesh> {
    require::root(name).then(|| {
        let mut mesh = Mesh::without_agents().unwrap();
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
    let mark = mesh.mark(agent(0));
    mesh.world.spawn_agent(0).unwrap();
    mesh.logged(&mark, &["enrolment", "action=Block"]).unwrap();
    mesh.world.kill_agent(0);
    assert!(ask(&pod, web.at(Family::V4, 80)).is_err());
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
