//! The kernel's verdict on random connects is that of the reference in `mesh-core`.

use std::{net::Ipv4Addr, sync::Arc};

use agent::mesh_sync::Table;
use mesh_core::{
    delta::Change,
    fixtures::{pod, service},
    projection::{Capture, ConnectFacts, ConnectVerdict, MeshRanges, connect, mesh_ranges},
    snapshot::Snapshot,
};

use super::*;

/// Xorshift with a fixed seed: a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn yes(&mut self) -> bool {
        self.next() >> 20 & 1 == 1
    }

    fn of(&mut self, count: u64) -> u64 {
        (self.next() >> 24) % count
    }

    /// Addresses in and around the mesh, in few enough numbers that some meet.
    fn v4(&mut self) -> Ipv4Addr {
        match self.of(5) {
            0 => [10, 99, self.of(4) as u8, self.of(8) as u8].into(),
            1 => [10, 96, 0, self.of(12) as u8].into(),
            2 => [127, 0, 0, self.of(255) as u8].into(),
            3 => [0, 0, 0, 0].into(),
            _ => [10, 77, self.of(3) as u8, 2].into(),
        }
    }

    fn v6(&mut self) -> Ipv6Addr {
        match self.of(6) {
            0 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, self.of(4) as u16, self.of(8) as u16),
            1 => Ipv6Addr::LOCALHOST,
            2 => Ipv6Addr::UNSPECIFIED,
            3 => A6.parse().unwrap(),
            4 => Ipv6Addr::from(u128::from(self.next()) << 64 | u128::from(self.next())),
            _ => self.v4().to_ipv6_mapped(),
        }
    }

    fn address(&mut self) -> IpAddr {
        if self.yes() { self.v4().into() } else { self.v6().into() }
    }

    /// What a snapshot with a few workloads and services, and configured ranges or none, come to.
    fn ranges(&mut self) -> MeshRanges {
        let mut changes = Vec::new();
        for index in 0..self.of(5) {
            let mut workload = pod(&format!("p{index}"), [10, 99, self.of(4) as u8, self.of(8) as u8]);
            let last = (self.of(4) as u16, self.of(8) as u16);
            workload.addresses.push(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, last.0, last.1).into());
            changes.push(Change::Workload(Arc::new(workload)));
        }
        for index in 0..self.of(4) {
            let vip = [10, 96, 0, self.of(12) as u8];
            changes.push(Change::Service(Arc::new(service(&format!("s{index}"), vip, &[]))));
        }
        let snapshot = if self.of(4) == 0 { Snapshot::new() } else { Snapshot::of(changes) };
        let configured = match self.of(3) {
            0 => vec![],
            1 => vec!["10.99.0.0/22".parse().unwrap()],
            _ => vec!["10.99.2.0/23".parse().unwrap(), "fd99::2:0/112".parse().unwrap()],
        };
        mesh_ranges(&snapshot, &configured)
    }
}

/// Makes a connect in pod a, non-blocking because most destinations do not answer, and says which counter
/// it moved.
fn kernel_verdict(world: &World, bpf: &Bpf, to: IpAddr, by_agent: bool) -> ConnectVerdict {
    const SITES: [(&str, ConnectVerdict); 4] = [
        ("captured", ConnectVerdict::ToAgent),
        ("bypass", ConnectVerdict::Bypass),
        ("blocked", ConnectVerdict::Blocked),
        ("no_family", ConnectVerdict::NoFamily),
    ];
    let read = || SITES.map(|(site, _)| count(bpf, site));
    let before = read();
    let to = SocketAddr::new(to, 9);
    let socket =
        netns::within(&world.a, || Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap();
    socket.set_nonblocking(true).unwrap();
    if by_agent {
        bpf.maps.own_socket(netns::socket_cookie(&socket).unwrap()).unwrap();
    }
    socket.connect(&to.into()).ok();
    let after = read();
    let moved = (0..SITES.len()).find(|index| before[*index] != after[*index]);
    moved.map_or(ConnectVerdict::Untouched, |index| SITES[index].1)
}

#[test]
fn the_kernel_decides_as_the_reference_on_random_input() {
    let Some(world) = world("oracle") else { return };
    let bpf = world.load(false, &[]);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut table = Table::default();
    let mut seen = HashMap::new();
    for _ in 0..48 {
        let ranges = random.ranges();
        table.make(&bpf, ranges.clone()).unwrap();
        let mut entry = world.pod_a(if random.yes() { PodState::Active } else { PodState::Blocked });
        if random.of(3) == 0 {
            entry.v6 = None;
        }
        let capture = match entry.state {
            _ if random.of(8) == 0 => Capture::None,
            PodState::Active => Capture::Active,
            PodState::Blocked => Capture::Blocked,
        };
        bpf.maps.set_pod(&entry).unwrap();
        if capture == Capture::None {
            bpf.maps.remove_pod(&entry).unwrap();
        }
        let own: Vec<IpAddr> = entry.v4.map(IpAddr::V4).into_iter().chain(entry.v6.map(IpAddr::V6)).collect();
        for _ in 0..24 {
            let (destination, by_agent) = (random.address(), random.of(6) == 0);
            let expected = connect(&ConnectFacts { capture, own: &own, by_agent, destination }, &ranges);
            let verdict = kernel_verdict(&world, &bpf, destination, by_agent);
            assert_eq!(verdict, expected, "{destination}, {capture:?}, own {own:?}, {by_agent}, {ranges:?}");
            *seen.entry((format!("{verdict:?}"), destination.is_ipv4())).or_insert(0) += 1;
        }
    }
    println!("{seen:?}");
    assert_eq!(seen.len(), 9, "every verdict with both families, but the pod always has an IPv4 address");
}
