//! What an earlier agent left: programs of another ABI version, ranges that nobody wants any more.

use agent::mesh_sync::Table;
use mesh_core::{
    projection::{MeshRanges, mesh_ranges},
    snapshot::Snapshot,
};

use super::*;

impl World {
    fn pins(&self, version: u32) -> PathBuf {
        bpffs().join("culvert").join(&self.id).join(format!("v{version}"))
    }

    /// What this version pinned becomes what an older one did.
    fn grow_old(&self) {
        fs::rename(self.pins(agent_common::ABI_VERSION), self.pins(0)).unwrap();
    }

    /// Names of the links that the old version still has.
    fn old_links(&self) -> Vec<String> {
        let objects = fs::read_dir(self.pins(0).join("links")).into_iter().flatten().flatten();
        let links = objects.flat_map(|object| fs::read_dir(object.path()).unwrap().flatten());
        links.map(|link| link.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Whether the kernel still has one of these links: they end some time after their pins.
fn any_lives(links: &[u32]) -> bool {
    aya::programs::loaded_links().flatten().any(|link| links.contains(&link.id()))
}

#[test]
fn another_abi_version_replaces_all_programs_and_its_pods_stay_closed_until_they_are_enrolled_anew() {
    let Some(world) = world("abi change") else { return };
    let pod = world.pod_a(PodState::Active);
    let (outside, app) = (listen(&world.n, 0), listen(&world.a, 8080));
    let port = outside.local_addr().unwrap().port();
    let first = world.load(false, &[]);
    first.maps.set_pod(&pod).unwrap();
    first.attach_pod(pod.netns, &world.a).unwrap();
    let mut old = pinned_links(&world);
    old.retain(|(name, _)| name.starts_with("culvert"));
    let old: Vec<u32> = old.into_iter().map(|(_, id)| id).collect();
    drop(first);
    world.grow_old();

    let second = world.load(false, &[]);
    eventually("the old programs end", || !any_lives(&old));
    assert_eq!(world.old_links(), [format!("pod_{}", pod.netns)], "one program at each of the node's hooks");
    let closed = Pod { v4: None, v6: None, state: PodState::Blocked, epoch: 0, ..pod.clone() };
    assert_eq!(second.maps.pods().unwrap(), [closed], "known, and closed");
    for (own, node) in FAMILIES {
        assert!(dial(&world.a, &at(node, port)).is_err(), "nothing leaves the pod");
        assert!(dial(&world.b, &at(own, 8080)).is_err(), "nothing enters it");
    }
    nothing_waits(&outside);
    nothing_waits(&app);

    let [agent, hbone, plaintext] = [15001, 15008, 15006].map(|port| listen(&world.a, port));
    second.maps.set_listeners(pod.netns, &hbone, &plaintext).unwrap();
    second.attach_pod(pod.netns, &world.a).unwrap();
    second.maps.set_pod(&pod).unwrap();
    assert!(world.old_links().is_empty(), "and one in the pod");
    for (own, node) in FAMILIES {
        let to = at(node, port);
        let _out = dial(&world.a, &to).unwrap();
        let (_server, peer) = accept(&agent);
        assert_eq!(second.maps.take_original(pod.netns, peer).unwrap(), to.parse().ok());
        let _in = dial(&world.b, &at(own, 8080)).unwrap();
        accept(&plaintext);
    }
    drop(second);
    let third = world.load(false, &[]);
    assert!(!world.pins(0).exists(), "nothing of the old version is left");
    assert_eq!(third.maps.pods().unwrap(), [pod]);
}

#[test]
fn uninstalling_removes_the_programs_of_every_version() {
    let Some(world) = world("uninstall") else { return };
    let pod = world.pod_a(PodState::Active);
    let (outside, app) = (listen(&world.n, 0), listen(&world.a, 8080));
    let to = at(N4, outside.local_addr().unwrap().port());
    let first = world.load(false, &[]);
    first.maps.set_pod(&pod).unwrap();
    first.attach_pod(pod.netns, &world.a).unwrap();
    drop(first);
    world.grow_old();
    let second = world.load(false, &[]);
    assert!(dial(&world.a, &to).is_err() && dial(&world.b, &at(A4, 8080)).is_err());
    second.remove_all().unwrap();
    assert!(!bpffs().join("culvert").join(&world.id).exists());
    eventually("programs end some time after their pins", || dial(&world.a, &to).is_ok());
    accept(&outside);
    let _in = dial(&world.b, &at(A4, 8080)).unwrap();
    accept(&app);
}

#[test]
fn ranges_of_an_earlier_agent_are_removed_and_its_bypass_does_not_outlive_its_option() {
    let Some(world) = world("stale ranges") else { return };
    let (agent, outside) = (listen(&world.a, 15001), listen(&world.n, 0));
    let to = at(N4, outside.local_addr().unwrap().port());
    let first = world.load(false, &[]);
    first.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let stale = [("10.98.0.0".parse().unwrap(), 16), ("fd98::".parse().unwrap(), 32)];
    first.maps.sync_mesh(&stale, &[], true, 7).unwrap();
    let _bypassed = dial(&world.a, &to).unwrap();
    accept(&outside);
    drop(first);

    let second = world.load(false, &[]);
    let mut table = Table::default();
    table.make(&second, mesh_ranges(&Snapshot::new(), &[])).unwrap();
    assert_eq!((second.maps.mesh().unwrap(), second.maps.bypasses().unwrap()), (Vec::new(), false));
    let _captured = dial(&world.a, &to).unwrap();
    accept(&agent);
    nothing_waits(&outside);

    let ranges = ["10.99.0.0/16", "fd99::/32"].map(|range| range.parse().unwrap()).to_vec();
    table.make(&second, MeshRanges { ranges: ranges.clone(), complete: true, epoch: 8 }).unwrap();
    let mut held = second.maps.mesh().unwrap();
    held.sort();
    assert_eq!(
        held,
        ranges.iter().map(|range: &ipnet::IpNet| (range.addr(), range.prefix_len())).collect::<Vec<_>>()
    );
    let _bypassed = dial(&world.a, &to).unwrap();
    accept(&outside);
}
