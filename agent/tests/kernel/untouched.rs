//! What is never touched: datagrams.

use std::net::UdpSocket;

use super::*;

/// Sends a datagram from pod a and returns the answer; `connected` by `connect` and `send`.
fn ask(world: &World, to: &str, connected: bool) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = netns::within(&world.a, || UdpSocket::bind((any, 0))).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    if connected {
        client.connect(to).unwrap();
        assert_eq!(client.peer_addr().unwrap(), to);
        client.send(b"ping").unwrap();
    } else {
        client.send_to(b"ping", to).unwrap();
    }
    let mut answer = [0; 16];
    let (length, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(from, to);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn datagrams_of_enrolled_and_of_blocked_pods_are_not_touched() {
    let Some(world) = world("datagrams") else { return };
    let bpf = world.load(true, &[]);
    bpf.attach_pod(world.pod_a(PodState::Active).netns, &world.a).unwrap();
    let servers = [N4, N6].map(|node| {
        netns::within(&world.n, || UdpSocket::bind((node.parse::<IpAddr>().unwrap(), 0))).unwrap()
    });
    std::thread::scope(|scope| {
        for server in &servers {
            scope.spawn(move || {
                let mut data = [0; 16];
                server.set_read_timeout(Some(TIMEOUT)).unwrap();
                // Two states, connected and not.
                for _ in 0..4 {
                    let (_, from) = server.recv_from(&mut data).unwrap();
                    server.send_to(b"pong", from).unwrap();
                }
            });
        }
        for state in [PodState::Active, PodState::Blocked] {
            bpf.maps.set_pod(&world.pod_a(state)).unwrap();
            for server in &servers {
                for connected in [true, false] {
                    let to = server.local_addr().unwrap().to_string();
                    assert_eq!(ask(&world, &to, connected), "pong", "{state:?}, {to}, connected {connected}");
                }
            }
        }
    });
    let touched: Vec<_> = bpf.maps.counters().unwrap().into_iter().filter(|(_, count)| *count > 0).collect();
    assert!(touched.is_empty(), "{touched:?}");
    assert_eq!(bpf.maps.socket_entries().unwrap(), 0);
}
