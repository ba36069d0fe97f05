//! Full tables: what cannot be remembered is refused, or costs only statistics, and is counted.

use agent::{bpf::BpfError, mesh_sync::Table};
use mesh_core::projection::MeshRanges;

use super::*;

/// Name of the table that an operation found full.
fn full<T: std::fmt::Debug>(result: Result<T, BpfError>) -> &'static str {
    match result.unwrap_err() {
        BpfError::Map { map, .. } => map,
        other => panic!("no full table: {other}"),
    }
}

fn entries(bpf: &Bpf, name: &str) -> usize {
    bpf.maps.fill().unwrap().into_iter().find(|table| table.map == name).unwrap().entries
}

#[test]
fn a_full_table_refuses_and_says_so() {
    let Some(world) = world("full ORIG") else { return };
    let bpf = world.load(false, &[("ORIG", 2)]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let agent = listen(&world.a, 15001);
    let outside = listen(&world.n, 0);
    let port = outside.local_addr().unwrap().port();
    for (_, node) in FAMILIES {
        let before = count(&bpf, "orig_full");
        let open: Vec<_> = (0..32).map(|_| dial(&world.a, &at(node, port))).collect();
        let refused = open.iter().filter(|result| result.is_err()).count();
        assert!(refused > 0 && open[0].is_ok(), "{refused} refused");
        assert_eq!(count(&bpf, "orig_full"), before + refused as u64);
        nothing_waits(&outside);
        drop(open);
        eventually("room again", || entries(&bpf, "ORIG") == 0);
    }
    drop(agent);
}

#[test]
fn a_captured_connection_whose_destination_found_no_room_has_none_and_is_counted() {
    let Some(world) = world("full FLOW_DST") else { return };
    let bpf = world.load(false, &[("FLOW_DST", 1)]);
    let pod = world.pod_a(PodState::Active);
    bpf.maps.set_pod(&pod).unwrap();
    let agent = listen(&world.a, 15001);
    let to = "10.99.0.9:80";
    let _first = dial(&world.a, to).unwrap();
    let (_first_server, first) = accept(&agent);
    let _second = dial(&world.a, to).unwrap();
    let (_second_server, second) = accept(&agent);
    assert_eq!(count(&bpf, "flow_dst_full"), 1);
    assert_eq!(bpf.maps.take_original(pod.netns, second).unwrap(), None, "to be refused by the agent");
    assert_eq!(bpf.maps.take_original(pod.netns, first).unwrap(), to.parse().ok());
    let _third = dial(&world.a, to).unwrap();
    let (_third_server, third) = accept(&agent);
    assert_eq!(bpf.maps.take_original(pod.netns, third).unwrap(), to.parse().ok(), "there is room again");
}

#[test]
fn a_full_table_of_own_sockets_is_an_error_until_one_is_closed() {
    let Some(world) = world("full OWN") else { return };
    let bpf = world.load(false, &[("OWN", 1)]);
    let socket = || netns::within(&world.a, || Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    let (first, second) = (socket(), socket());
    bpf.maps.own_socket(netns::socket_cookie(&first).unwrap()).unwrap();
    let cookie = netns::socket_cookie(&second).unwrap();
    assert_eq!(full(bpf.maps.own_socket(cookie)), "OWN");
    drop(first);
    eventually("room again", || bpf.maps.own_socket(cookie).is_ok());
}

#[test]
fn a_probe_that_finds_no_room_is_ordinary_inbound_traffic() {
    let Some(world) = world("full PROBES") else { return };
    let bpf = world.load(true, &[("PROBES", 1)]);
    let pod = world.pod_a(PodState::Active);
    let (hbone, plaintext) = (listen(&world.a, 15008), listen(&world.a, 15006));
    let app = listen(&world.a, 8080);
    bpf.maps.set_listeners(pod.netns, &hbone, &plaintext).unwrap();
    bpf.attach_pod(pod.netns, &world.a).unwrap();
    bpf.maps.set_pod(&pod).unwrap();
    for (own, _) in FAMILIES {
        let before = count(&bpf, "probes_full");
        let first = dial(&world.n, &at(own, 8080)).unwrap();
        let kept = accept(&app);
        let _second = dial(&world.n, &at(own, 8080)).unwrap();
        accept(&plaintext);
        nothing_waits(&app);
        assert_eq!(count(&bpf, "probes_full"), before + 1);
        drop((first, kept));
        eventually("room again", || entries(&bpf, "PROBES") == 0);
    }
}

#[test]
fn a_pod_that_finds_no_room_is_not_captured_by_halves() {
    let Some(world) = world("full PODS") else { return };
    let outside = listen(&world.n, 0);
    let port = outside.local_addr().unwrap().port();
    for (table, capacity) in [("PODS", 1), ("POD_IPS", 3)] {
        let bpf = world.load(true, &[(table, capacity)]);
        bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
        let other = Pod {
            netns: netns::cookie(&world.b).unwrap(),
            v4: "10.77.2.2".parse().ok(),
            v6: "fd77:2::2".parse().ok(),
            state: PodState::Blocked,
            epoch: 1,
        };
        assert_eq!(full(bpf.maps.set_pod(&other)), table);
        assert_eq!((entries(&bpf, "PODS"), entries(&bpf, "POD_IPS")), (1, 2), "{table}");
        let _untouched = dial(&world.b, &at("10.77.2.1", port)).unwrap();
        accept(&outside);
        bpf.maps.set_pod(&world.pod_a(PodState::Blocked)).unwrap();
        bpf.maps.remove_pod(&world.pod_a(PodState::Blocked)).unwrap();
        bpf.maps.set_pod(&other).unwrap();
        assert!(dial(&world.b, &at("10.77.2.1", port)).is_err(), "there is room again");
        nothing_waits(&outside);
        bpf.remove_all().unwrap();
    }
}

#[test]
fn a_pod_whose_listeners_find_no_room_refuses_what_comes_in() {
    let Some(world) = world("full LISTENERS") else { return };
    let bpf = world.load(false, &[("LISTENERS", 1)]);
    let pod = world.pod_a(PodState::Active);
    let (hbone, plaintext) = (listen(&world.a, 15008), listen(&world.a, 15006));
    let app = listen(&world.a, 8080);
    assert_eq!(full(bpf.maps.set_listeners(pod.netns, &hbone, &plaintext)), "LISTENERS");
    bpf.attach_pod(pod.netns, &world.a).unwrap();
    bpf.maps.set_pod(&pod).unwrap();
    for (own, _) in FAMILIES {
        let before = count(&bpf, "inbound_dropped");
        assert!(dial(&world.b, &at(own, 8080)).is_err());
        assert!(count(&bpf, "inbound_dropped") > before);
    }
    nothing_waits(&app);
    nothing_waits(&plaintext);
}

#[test]
fn mesh_ranges_that_find_no_room_turn_bypass_off_and_fewer_turn_it_on_again() {
    let Some(world) = world("full MESH") else { return };
    let bpf = world.load(false, &[("MESH", 1)]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    let (agent, outside) = (listen(&world.a, 15001), listen(&world.n, 0));
    let to = at(N4, outside.local_addr().unwrap().port());
    let wanted = |ranges: &[&str]| MeshRanges {
        ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        complete: true,
        epoch: 1,
    };
    let mut table = Table::default();
    table.make(&bpf, wanted(&["10.98.0.0/16"])).unwrap();
    let _bypassed = dial(&world.a, &to).unwrap();
    accept(&outside);
    assert_eq!(full(table.make(&bpf, wanted(&["10.98.0.0/16", "10.99.0.0/16"]))), "MESH");
    assert!(!bpf.maps.bypasses().unwrap());
    let _captured = dial(&world.a, &to).unwrap();
    accept(&agent);
    nothing_waits(&outside);
    table.make(&bpf, wanted(&["10.99.0.0/16"])).unwrap();
    assert_eq!(bpf.maps.mesh().unwrap(), [("10.99.0.0".parse().unwrap(), 16)]);
    let _bypassed = dial(&world.a, &to).unwrap();
    accept(&outside);
}

#[test]
fn full_tables_of_statistics_cost_only_those_and_are_counted() {
    let Some(world) = world("full SOCKS and EVENTS") else { return };
    let bpf = world.load(false, &[("SOCKS", 1), ("EVENTS", 4096)]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    bpf.maps.sync_mesh(&[], &[], true, 1).unwrap();
    let outside = listen(&world.n, 0);
    let port = outside.local_addr().unwrap().port();
    let pass = |node: &str| {
        let client = dial(&world.a, &at(node, port)).unwrap();
        let (server, _) = accept(&outside);
        says(server, "through");
        assert_eq!(hears(client), "through");
    };
    for (_, node) in FAMILIES {
        let held = (dial(&world.a, &at(node, port)).unwrap(), accept(&outside));
        let before = count(&bpf, "socks_full");
        pass(node);
        assert_eq!(count(&bpf, "socks_full"), before + 1);
        drop(held);
        eventually("room again", || entries(&bpf, "SOCKS") == 0);
        pass(node);
        assert_eq!(count(&bpf, "socks_full"), before + 1);
    }
    // A page holds 46 events.
    for _ in 0..64 {
        pass(N4);
        eventually("its end", || entries(&bpf, "SOCKS") == 0);
    }
    assert!(count(&bpf, "event_lost") > 0);
    assert!(!bpf.maps.take_events().unwrap().is_empty());
    pass(N6);
    events_until(&bpf, |event| event.leg == LEG_BYPASS);
}

#[test]
fn a_connect_that_fails_before_its_first_packet_leaves_nothing_behind() {
    let Some(world) = world("failed connects") else { return };
    let bpf = world.load(false, &[]);
    bpf.maps.set_pod(&world.pod_a(PodState::Active)).unwrap();
    bpf.maps.sync_mesh(&[], &[], true, 1).unwrap();
    let outside = listen(&world.n, 0);
    let to = at(N4, outside.local_addr().unwrap().port());
    ip(&format!("-n {}a -6 route del default", world.id));
    for _ in 0..16 {
        let failed = dial(&world.a, "[2001:db8::1]:80").unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::ENETUNREACH));
    }
    netns::within(&world.a, || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000")).unwrap();
    let held = (dial(&world.a, &to).unwrap(), accept(&outside));
    for _ in 0..16 {
        let failed = dial(&world.a, &to).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    }
    assert_eq!(count(&bpf, "bypass"), 33);
    eventually("only the open one is known", || bpf.maps.socket_entries().unwrap() == 1);
    drop(held);
    eventually("no entry stays behind", || bpf.maps.socket_entries().unwrap() == 0);
}
