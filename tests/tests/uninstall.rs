//! Taking the mesh off a node: `culvert-agent --uninstall`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use harness::{
    echo::{Echo, ask},
    mesh::{LIMIT, MESHED, Mesh, PLAIN},
    peer::FAMILIES,
    require, shell, wait,
};

/// Runs a node's agent as who uninstalls it does.
fn uninstall(mesh: &Mesh, node: u8, name: &str) -> anyhow::Result<String> {
    let world = &mesh.world;
    let program = world.programs.join("culvert-agent");
    let mut command: Command = world.node_place(node).command(&program.to_string_lossy())?;
    command.args(["--uninstall", "--node", name]);
    command.arg("--cgroup").arg(world.node_cgroup(node));
    command.arg("--bpffs").arg(world.root.join(format!("bpf-{name}")));
    shell::output(&mut command)
}

/// What is pinned below a folder.
fn pinned(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { pinned(&path) } else { vec![path] }).collect()
}

#[test]
fn a_node_without_the_mesh_has_plain_pods_nothing_in_the_kernel_and_can_be_taken_in_again() {
    let name = "a_node_without_the_mesh_has_plain_pods_nothing_in_the_kernel_and_can_be_taken_in_again";
    if !require::root(name) {
        return;
    }
    let mut mesh = Mesh::start().unwrap();
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 1).unwrap();
    let _page = Echo::serve(&stranger, 80, "stranger").unwrap();
    let _own = Echo::serve(&client, 80, "client").unwrap();
    mesh.enrolled(&[&client, &web]).unwrap();
    assert!(!pinned(&mesh.world.root.join("bpf-node-a/culvert")).is_empty());
    mesh.world.kill_agent(0);
    for family in FAMILIES {
        assert!(ask(&client, stranger.at(family, 80)).is_err(), "still captured, and nobody there");
        assert!(ask(&stranger, client.at(family, 80)).is_err(), "still captured, and nobody there");
    }
    uninstall(&mesh, 0, "node-a").unwrap();
    for family in FAMILIES {
        let out = ask(&client, stranger.at(family, 80)).unwrap();
        assert_eq!((out.server, out.seen), ("stranger".into(), client.ip(family)));
        let back = ask(&stranger, client.at(family, 80)).unwrap();
        assert_eq!((back.server, back.seen), ("client".into(), stranger.ip(family)));
    }
    let left = pinned(&mesh.world.root.join("bpf-node-a/culvert"));
    assert!(left.is_empty(), "{left:?}");
    assert!(mesh.captured(1).contains(&web.pod.ip), "the other node is as it was");

    mesh.world.start_agent(0).unwrap();
    let taken_in = || mesh.captured(0).contains(&client.pod.ip).then_some(());
    wait::until(LIMIT, "the pod to be captured again", taken_in).unwrap();
    mesh.reaches(&client, stranger.at(FAMILIES[0], 80)).unwrap();
}
