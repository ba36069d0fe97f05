//! Real sockets through the attached programs. The checks run in order: enrolment changes between them.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    agent::{
        bpf::{Bpf, PodState},
        netns,
    },
    net::{accept, canonical, dial, eventually, listen, nothing_waits},
    world::{A4, A6, B4, World},
};

/// A check and its name.
type Check = (&'static str, fn(&World, &Bpf) -> Result<Value>);

/// All of them.
pub const CHECKS: &[Check] = &[
    ("not_enrolled_is_untouched", not_enrolled_is_untouched),
    ("blocked_is_refused", blocked_is_refused),
    ("capture4", capture4),
    ("capture6", capture6),
    ("neighbour_is_untouched", neighbour_is_untouched),
    ("inbound", inbound),
    ("own_socket", own_socket),
    ("flow_events", flow_events),
    ("nothing_stays", nothing_stays),
];

/// Hooks are attached, but no pod is enrolled: both directions go straight through.
fn not_enrolled_is_untouched(world: &World, bpf: &Bpf) -> Result<Value> {
    let app = listen(&world.b, 8080)?;
    let client = dial(&world.a, addr(B4, 8080)?)?;
    let (_, peer) = accept(&app)?;
    ensure!(peer == client.local_addr()?, "the server sees {peer}");
    ensure!(count(bpf, "captured")? == 0, "something was captured");
    let app = listen(&world.a, 8080)?;
    let _inbound = dial(&world.b, addr(A4, 8080)?)?;
    accept(&app)?;
    Ok(json!({}))
}

/// Fail closed: a pod that is not ready reaches nobody.
fn blocked_is_refused(world: &World, bpf: &Bpf) -> Result<Value> {
    let outside = listen(&world.b, 8080)?;
    bpf.maps.set_pod(&world.pod(PodState::Blocked)?)?;
    let refused = dial(&world.a, addr(B4, 8080)?).err().context("a blocked pod connected")?;
    ensure!(refused.kind() == ErrorKind::ConnectionRefused, "not refused, but: {refused}");
    nothing_waits(&outside)?;
    ensure!(count(bpf, "blocked")? == 1, "the refusal is not counted");
    Ok(json!({}))
}

fn capture4(world: &World, bpf: &Bpf) -> Result<Value> {
    captured(world, bpf, addr("10.99.0.9", 80)?)
}

fn capture6(world: &World, bpf: &Bpf) -> Result<Value> {
    captured(world, bpf, addr("fd99::9", 81)?)
}

/// The agent's listener gets the connection with what it asked for, and the application sees the peer it asked for.
fn captured(world: &World, bpf: &Bpf, asked: SocketAddr) -> Result<Value> {
    let pod = world.pod(PodState::Active)?;
    bpf.maps.set_pod(&pod)?;
    let agent = listen(&world.a, agent_common::OUTBOUND_PORT)?;
    let client = dial(&world.a, asked)?;
    let (_server, peer) = accept(&agent)?;
    let seen = canonical(client.peer_addr()?);
    ensure!(seen == asked, "getpeername says {seen}");
    let original = bpf.maps.take_original(pod.netns, peer)?;
    ensure!(original == Some(asked), "the agent learns {original:?}");
    ensure!(bpf.maps.take_original(pod.netns, peer)?.is_none(), "a destination can be taken twice");
    Ok(json!({ "original": asked.to_string() }))
}

/// Pod b is on the same node and in the same cgroup, and not enrolled.
fn neighbour_is_untouched(world: &World, bpf: &Bpf) -> Result<Value> {
    let before = count(bpf, "captured")?;
    let app = listen(&world.n, 8081)?;
    let client = dial(&world.b, addr("10.77.2.1", 8081)?)?;
    let (_, peer) = accept(&app)?;
    ensure!(peer == client.local_addr()?, "the server sees {peer}");
    ensure!(count(bpf, "captured")? == before, "it was captured");
    Ok(json!({}))
}

/// Any port goes to the agent, the tunnel's to its own listener; the node's probe goes to the application.
fn inbound(world: &World, bpf: &Bpf) -> Result<Value> {
    let pod = world.pod(PodState::Active)?;
    let (hbone, plaintext) =
        (listen(&world.a, agent_common::HBONE_PORT)?, listen(&world.a, agent_common::PLAINTEXT_PORT)?);
    let app = listen(&world.a, 8080)?;
    bpf.maps.set_listeners(pod.netns, &hbone, &plaintext)?;
    for port in [8080, 31_999] {
        let _client = dial(&world.b, addr(A4, port)?)?;
        let (server, _) = accept(&plaintext)?;
        ensure!(server.local_addr()?.port() == port, "the original port is lost");
    }
    reaches(world, addr(A4, agent_common::HBONE_PORT)?, &hbone)?;
    reaches(world, addr(A6, 8080)?, &plaintext)?;
    nothing_waits(&app)?;
    let _probe = dial(&world.n, addr(A4, 8080)?)?;
    accept(&app).context("the node's probe does not reach the application")?;
    Ok(json!({ "given_to_the_agent": count(bpf, "inbound")? }))
}

fn reaches(world: &World, to: SocketAddr, listener: &TcpListener) -> Result<()> {
    let _client = dial(&world.b, to).with_context(|| format!("dial {to}"))?;
    accept(listener).with_context(|| format!("dial {to}"))?;
    Ok(())
}

/// The agent's own connections leave.
fn own_socket(world: &World, bpf: &Bpf) -> Result<Value> {
    let outside = listen(&world.b, 8080)?;
    let kind = (socket2::Domain::IPV4, socket2::Type::STREAM);
    let socket = netns::within(&world.a, || socket2::Socket::new(kind.0, kind.1, None))?;
    bpf.maps.own_socket(netns::socket_cookie(&socket)?)?;
    socket.connect(&addr(B4, 8080)?.into())?;
    accept(&outside)?;
    Ok(json!({}))
}

/// Closed flows are reported with what the kernel measured.
fn flow_events(_: &World, bpf: &Bpf) -> Result<Value> {
    let mut events = Vec::new();
    eventually("no closed flow is reported", || {
        events.extend(bpf.maps.take_events()?);
        Ok(!events.is_empty())
    })?;
    let lost = count(bpf, "event_lost")?;
    ensure!(lost == 0, "{lost} events were lost");
    Ok(json!({"events": events.len()}))
}

/// Every table of sockets is empty once they are closed.
fn nothing_stays(_: &World, bpf: &Bpf) -> Result<Value> {
    eventually("entries of closed sockets stay", || Ok(bpf.maps.socket_entries()? == 0))?;
    Ok(json!({}))
}

fn addr(ip: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse().with_context(|| format!("{ip} is no address"))?, port))
}

fn count(bpf: &Bpf, site: &str) -> Result<u64> {
    let counters = bpf.maps.counters()?;
    let found = counters.into_iter().find(|(label, _)| *label == site);
    found.map(|(_, value)| value).with_context(|| format!("no counter {site}"))
}
