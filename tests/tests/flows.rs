//! How bytes move: many flows, slow readers, half-close, resets and bulk, through tunnels between two
//! nodes and in plaintext from outside.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use harness::{
    echo::{Echo, say},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Family, Peer},
    require, wait,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;

struct Stage {
    mesh: Mesh,
    client: Peer,
    stranger: Peer,
    web: Peer,
}

fn stage(name: &str) -> Option<Stage> {
    if !require::root(name) {
        return None;
    }
    let mut mesh = Mesh::start().unwrap();
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    mesh.enrolled(&[&client, &web]).unwrap();
    Some(Stage { mesh, client, stranger, web })
}

/// Both ends of a connection from `client` to `listener`; a byte has gone each way.
fn pair(client: &Peer, web: &Peer, family: Family, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut near = client.connect(web.at(family, listener.local_addr().unwrap().port())).unwrap();
    near.write_all(b"a").unwrap();
    let (mut far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(LIMIT)).unwrap();
    far.write_all(b"b").unwrap();
    let mut byte = [0];
    near.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"b");
    far.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"a");
    (near, far)
}

impl Stage {
    /// Every way from a client to the server: tunnel and plaintext, both families.
    fn ways(&self) -> impl Iterator<Item = (&Peer, Family)> {
        let clients = [&self.client, &self.stranger];
        clients.into_iter().flat_map(|client| FAMILIES.map(|family| (client, family)))
    }
}

#[test]
fn connections_of_one_client_in_plaintext_never_get_in_each_others_way() {
    let name = "connections_of_one_client_in_plaintext_never_get_in_each_others_way";
    let Some(stage) = stage(name) else { return };
    let listener = stage.web.listen(80).unwrap();
    for family in FAMILIES {
        for _ in 0..400 {
            let start = Instant::now();
            let near = stage.stranger.connect(stage.web.at(family, 80)).unwrap();
            let (far, client) = listener.accept().unwrap();
            // A first packet that is lost is sent again after a second.
            assert!(start.elapsed() < Duration::from_millis(900), "{family:?} from {client}");
            assert_eq!(client.ip().to_canonical(), stage.stranger.ip(family));
            assert!(client.port() >= 61_000, "{client} is a port that clients take themselves");
            drop((near, far));
        }
    }
}

#[test]
fn half_a_connection_is_closed_by_either_side_and_the_other_half_goes_on_to_its_end() {
    let name = "half_a_connection_is_closed_by_either_side_and_the_other_half_goes_on_to_its_end";
    let Some(stage) = stage(name) else { return };
    let listener = stage.web.listen(80).unwrap();
    for (client, family) in stage.ways() {
        for client_first in [true, false] {
            let (near, far) = pair(client, &stage.web, family, &listener);
            let (mut first, mut second) = if client_first { (near, far) } else { (far, near) };
            first.write_all(b"the last words").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            let mut heard = String::new();
            second.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "the last words");
            second.write_all(b"the answer to them").unwrap();
            drop(second);
            let mut heard = String::new();
            first.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "the answer to them");
        }
    }
}

#[test]
fn a_reset_by_either_side_is_a_reset_at_the_other_and_is_logged_as_such() {
    let name = "a_reset_by_either_side_is_a_reset_at_the_other_and_is_logged_as_such";
    let Some(stage) = stage(name) else { return };
    let listener = stage.web.listen(80).unwrap();
    for (client, family) in stage.ways() {
        for (by_client, reason) in [(true, "client_reset"), (false, "upstream_reset")] {
            let mark = stage.mesh.mark(agent(1));
            let (near, far) = pair(client, &stage.web, family, &listener);
            let (first, mut second) = if by_client { (near, far) } else { (far, near) };
            SockRef::from(&first).set_linger(Some(Duration::ZERO)).unwrap();
            drop(first);
            let error = second.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{} {family:?} {reason}", client.pod.name);
            stage.mesh.logged(&mark, &[&format!("reason=\"{reason}\"")]).unwrap();
        }
    }
}

#[test]
fn two_thousand_flows_are_open_at_once_and_each_answers() {
    let Some(stage) = stage("two_thousand_flows_are_open_at_once_and_each_answers") else { return };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(20_000), most).unwrap();
    let _server = Echo::serve(&stage.web, 80, "web").unwrap();
    let (before, start) = ([0, 1].map(|node| stage.mesh.agent_memory(node)), Instant::now());
    let flows: Vec<TcpStream> =
        (0..2000).map(|n| stage.client.connect(stage.web.at(FAMILIES[n % 2], 80)).unwrap()).collect();
    for round in 0..2 {
        thread::scope(|scope| {
            for part in flows.chunks(250) {
                scope.spawn(move || part.iter().for_each(|flow| drop(say(flow).unwrap())));
            }
        });
        println!("round {round} done after {:.1?}", start.elapsed());
    }
    for node in [0, 1] {
        let text = stage.mesh.world.agent_get(node, "/debug/connections").unwrap();
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["open"], 2000, "flows of node {node}");
        let grown = stage.mesh.agent_memory(node).saturating_sub(before[usize::from(node)]);
        println!("node {node}: {} tunnels, {} KiB per idle flow", shown["tunnels"], grown / 2000 / 1024);
    }
    drop(flows);
    wait::until(LIMIT, "all flows to end", || {
        let open = [0, 1].map(|node| stage.mesh.metric(node, &["culvert_connections_open{"]));
        open.iter().all(|count| *count < 0.5).then_some(())
    })
    .unwrap();
}

/// Writes until nobody takes more for a while; returns how many bytes went in.
fn fill(mut stream: &TcpStream) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(700))).unwrap();
    let (block, mut count) = (vec![7; 1 << 16], 0);
    loop {
        match stream.write(&block) {
            Ok(written) => count += u64::try_from(written).unwrap(),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                return count;
            }
        }
        assert!(count < 256 << 20, "nothing holds the writer back");
    }
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_and_costs_bounded_memory_and_loses_nothing() {
    let name = "a_reader_that_does_not_read_stops_the_writer_and_costs_bounded_memory_and_loses_nothing";
    let Some(stage) = stage(name) else { return };
    let listener = stage.web.listen(80).unwrap();
    let quick = stage.web.listen(81).unwrap();
    let before = [0, 1].map(|node| stage.mesh.agent_memory(node));
    // One after the other: a tunnel that is known to carry bulk gets no more than its window can hold.
    let (flows, counts): (Vec<_>, Vec<u64>) = (0..8)
        .map(|n| {
            let flow = pair(&stage.client, &stage.web, FAMILIES[n % 2], &listener);
            let count = fill(&flow.0);
            (flow, count)
        })
        .unzip();
    for node in [0, 1] {
        let grown = stage.mesh.agent_memory(node).saturating_sub(before[usize::from(node)]);
        println!("node {node}: {} KiB per stalled flow", grown / 8 / 1024);
        assert!(grown < 8 * (6 << 20), "8 stalled flows cost node {node} {grown} bytes");
    }
    // Others of the same pods are not held up.
    let (mut near, mut far) = pair(&stage.client, &stage.web, Family::V4, &quick);
    near.write_all(b"quick").unwrap();
    let mut heard = [0; 5];
    far.read_exact(&mut heard).unwrap();
    for ((near, mut far), sent) in flows.into_iter().zip(counts) {
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(std::io::copy(&mut far, &mut std::io::sink()).unwrap(), sent);
    }
}

/// Bytes of each direction.
const BULK: u64 = 1 << 30;
const BLOCK: usize = 1 << 18;

/// Block `index` of a stream that never repeats: noise with the index and a salt woven in.
fn block(noise: &mut [u8], salt: u64, index: u64) {
    noise[..8].copy_from_slice(&(index ^ salt).to_le_bytes());
    noise[BLOCK / 2..BLOCK / 2 + 8].copy_from_slice(&(index * 31 + salt).to_le_bytes());
}

fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..BLOCK).map(|_| next()).collect()
}

/// Sends one stream and checks every byte of the other, at the same time.
fn exchange(stream: &TcpStream, own: u64, other: u64) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut out, mut bytes) = (stream, noise());
            for index in 0..BULK / BLOCK as u64 {
                block(&mut bytes, own, index);
                out.write_all(&bytes).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (mut input, mut wanted, mut got) = (stream, noise(), vec![0; BLOCK]);
        for index in 0..BULK / BLOCK as u64 {
            block(&mut wanted, other, index);
            input.read_exact(&mut got).unwrap();
            assert!(got == wanted, "block {index} differs");
        }
        assert_eq!(input.read(&mut got).unwrap(), 0, "nothing comes after the end");
    });
}

#[test]
fn a_gibibyte_in_each_direction_at_once_arrives_byte_for_byte() {
    let Some(stage) = stage("a_gibibyte_in_each_direction_at_once_arrives_byte_for_byte") else { return };
    let listener = stage.web.listen(80).unwrap();
    for (client, family) in stage.ways() {
        let (near, far) = pair(client, &stage.web, family, &listener);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| exchange(&far, 2, 1));
            exchange(&near, 1, 2);
        });
        let way = format!("{} over {family:?}", client.pod.name);
        println!("{way}: 2 × {} MiB in {:.1?}", BULK >> 20, start.elapsed());
    }
}
