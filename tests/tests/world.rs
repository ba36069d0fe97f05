//! The test world itself: what every end-to-end case relies on.

use std::{path::PathBuf, process::Command, time::Duration};

use harness::{
    capture::Capture,
    janitor, runner, shell, wait,
    world::{Spec, World},
};
use serde_json::json;

/// Whether namespaces can be made here; as `CULVERT_REQUIRE` says so, a skip is a failure.
#[allow(clippy::disallowed_methods, reason = "the tests' one reader of the environment")]
fn can_run(name: &str) -> bool {
    let root = shell::output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0");
    let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("root");
    assert!(root || !required, "{name} must run: CULVERT_REQUIRE lists root");
    if !root {
        println!("SKIP {name}: needs root");
    }
    root
}

fn world() -> World {
    World::new(&Spec { nodes: 2, programs: PathBuf::new() }).expect("a world")
}

/// nginx on node-b and an idle client on node-a.
fn with_pods(world: &mut World) {
    for (name, node, image) in [("web", "node-b", "nginx"), ("client", "node-a", "idle")] {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"template": {"metadata": {"labels": {"app": name}},
                "spec": {"nodeName": node, "serviceAccountName": name, "containers": [{"name": name,
                    "image": image, "command": ["sh", "-c"], "args": [
                        "echo 'a page of text' > /usr/share/nginx/html/index.html; exec nginx -g 'daemon off;'"]}]}}}});
        world.write(&format!("{name}.yaml"), &deployment).expect("written");
    }
    let made = runner::reconcile(world).expect("pods");
    assert_eq!(made, ["shop/client-0-0", "shop/web-0-0"]);
}

fn fetch(world: &World, url: &str) -> Option<String> {
    let client = &world.pods["shop/client-0-0"];
    client.exec(&["curl", "-sSf", "--max-time", "2", url]).ok()
}

#[test]
fn a_pod_reaches_nginx_on_another_node_by_both_families_and_the_capture_sees_the_text() {
    if !can_run("a_pod_reaches_nginx_on_another_node_by_both_families_and_the_capture_sees_the_text") {
        return;
    }
    let mut world = world();
    with_pods(&mut world);
    let web = world.pods["shop/web-0-0"].clone();
    let four = format!("http://{}/", web.ip);
    let limit = Duration::from_secs(10);
    wait::until(limit, "nginx", || fetch(&world, &four)).expect("an answer over IPv4");
    let capture = Capture::start(&world.underlay(), "br0", world.root.join("seen.pcap")).expect("capture");
    assert_eq!(fetch(&world, &four).as_deref(), Some("a page of text\n"));
    let six = fetch(&world, &format!("http://[{}]/", web.ip6));
    assert_eq!(six.as_deref(), Some("a page of text\n"));
    let seen = capture.stop().expect("a capture");
    assert!(seen.contains("a page of text"), "an unmeshed page is readable on the wire");
    assert!(seen.packets_of_port(80) > 0 && seen.packets_of_port(15008) == 0);
    let log = runner::access_log(&world, &web);
    assert!(log.contains(&world.pods["shop/client-0-0"].ip), "the client's own address: {log}");
}

#[test]
fn reconciling_again_makes_no_second_pod_and_pod_objects_name_their_namespace_file() {
    if !can_run("reconciling_again_makes_no_second_pod_and_pod_objects_name_their_namespace_file") {
        return;
    }
    let mut world = world();
    with_pods(&mut world);
    assert!(runner::reconcile(&mut world).expect("pods").is_empty());
    let pods = harness::manifest::objects(&world.cluster(), "Pod");
    assert_eq!(pods.len(), 2);
    for pod in pods {
        let netns = pod["metadata"]["annotations"]["culvert.dev/netns"].as_str().expect("annotated");
        assert!(PathBuf::from(netns).exists());
    }
}

#[test]
fn two_worlds_live_side_by_side_and_a_dropped_one_leaves_nothing() {
    if !can_run("two_worlds_live_side_by_side_and_a_dropped_one_leaves_nothing") {
        return;
    }
    let (first, mut second) = (world(), world());
    with_pods(&mut second);
    let gone = first.id.clone();
    drop(first);
    let names = shell::ip("netns list").expect("namespaces");
    assert!(!names.contains(&format!("{}{gone}", janitor::NETNS_PREFIX)));
    assert!(!janitor::folder(&gone).exists());
    assert!(!harness::cgroup::of_world(&gone).expect("a group").exists());
    let url = format!("http://{}/", second.pods["shop/web-0-0"].ip);
    wait::until(Duration::from_secs(10), "the other world's nginx", || fetch(&second, &url))
        .expect("it lives");
}

#[test]
fn a_sweep_removes_a_world_whose_owner_was_killed_and_spares_one_that_lives() {
    if !can_run("a_sweep_removes_a_world_whose_owner_was_killed_and_spares_one_that_lives") {
        return;
    }
    let (mut dead, alive) = (world(), world());
    with_pods(&mut dead);
    let (group, id) = (harness::cgroup::of_world(&dead.id).expect("a group"), dead.id.clone());
    let runs = || (!harness::cgroup::pids(&group).is_empty()).then_some(());
    wait::until(Duration::from_secs(10), "nginx to run", runs).expect("nginx runs");
    // The same pid with another start time is another process: as after a SIGKILL.
    std::fs::write(dead.root.join("owner"), format!("{} 1", std::process::id())).expect("written");
    std::mem::forget(dead);
    janitor::sweep().expect("swept");
    assert!(!janitor::folder(&id).exists() && !group.exists());
    assert!(alive.root.exists());
}
