//! The verdict that the kernel runs and the reference of `mesh-core` are the same function.
#![allow(clippy::unwrap_used, reason = "a test panics, so that the line number survives")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent::bpf::{Pod, PodState, key_of};
use agent_common::verdict::{self, Verdict};
use ipnet::IpNet;
use mesh_core::projection::{Capture, ConnectFacts, ConnectVerdict, MeshRanges, connect};
use proptest::prelude::*;

/// What of each family is interesting: inside a range and beside it, the pod itself, loopback, nothing.
fn destination() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![
        any::<[u8; 4]>(),
        any::<[u8; 2]>().prop_map(|[a, b]| [10, 99, a, b]),
        any::<u8>().prop_map(|a| [127, 0, 0, a]),
        Just([0, 0, 0, 0]),
        Just([10, 77, 1, 2]),
    ]
    .prop_map(Ipv4Addr::from);
    let v6 = prop_oneof![
        any::<[u8; 16]>().prop_map(Ipv6Addr::from),
        any::<u16>().prop_map(|last| Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last)),
        Just(Ipv6Addr::UNSPECIFIED),
        Just(Ipv6Addr::LOCALHOST),
        Just("fd77:1::2".parse().unwrap()),
        v4.clone().prop_map(|v4| v4.to_ipv6_mapped()),
    ];
    prop_oneof![v4.prop_map(IpAddr::V4), v6.prop_map(IpAddr::V6)]
}

fn ranges() -> impl Strategy<Value = MeshRanges> {
    let v4 = (any::<[u8; 2]>(), 8_u8..=32)
        .prop_map(|([a, b], length)| IpNet::new([10, 99, a, b].into(), length).unwrap().trunc());
    let v6 = (any::<u16>(), 16_u8..=128).prop_map(|(last, length)| {
        IpNet::new(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last).into(), length).unwrap().trunc()
    });
    let ranges = prop::collection::vec(prop_oneof![v4, v6], 0..4);
    (ranges, any::<bool>()).prop_map(|(ranges, complete)| MeshRanges { ranges, complete, epoch: 1 })
}

fn pod() -> impl Strategy<Value = Pod> {
    let v4 = prop::option::of(Just("10.77.1.2".parse().unwrap()));
    let v6 = prop::option::of(Just("fd77:1::2".parse().unwrap()));
    let state = prop_oneof![Just(PodState::Active), Just(PodState::Blocked)];
    (v4, v6, state).prop_map(|(v4, v6, state)| Pod { netns: 1, v4, v6, state, epoch: 1 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn the_kernels_verdict_is_that_of_the_reference(
        pod in pod(), ranges in ranges(), destination in destination(), by_agent: bool,
    ) {
        let own: Vec<IpAddr> =
            pod.v4.map(IpAddr::V4).into_iter().chain(pod.v6.map(IpAddr::V6)).collect();
        let capture = match pod.state {
            PodState::Active => Capture::Active,
            PodState::Blocked => Capture::Blocked,
        };
        let reference = connect(&ConnectFacts { capture, own: &own, by_agent, destination }, &ranges);
        let in_mesh = ranges.contains(destination);
        let verdict = verdict::connect(&pod.entry(), key_of(destination), by_agent, ranges.complete, in_mesh);
        let own_of_family = |is_v4: bool| own.iter().find(|ip| ip.is_ipv4() == is_v4).copied().map(key_of);
        let target = own_of_family(destination.to_canonical().is_ipv4());
        prop_assert!(match (reference, verdict) {
            (ConnectVerdict::Untouched, Verdict::Leave) => true,
            (ConnectVerdict::Bypass, Verdict::Bypass) => true,
            (ConnectVerdict::NoFamily, Verdict::NoFamily) => target.is_none(),
            (ConnectVerdict::ToAgent, Verdict::Capture(to))
            | (ConnectVerdict::Blocked, Verdict::Blocked(to)) => Some(to) == target,
            _ => false,
        }, "{reference:?} is not {verdict:?}");
    }
}
