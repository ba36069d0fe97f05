//! What a pod opens: original destination → facts → plan → tunnel or plain TCP → relay → outcome.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use mesh_core::{
    hbone,
    outbound::{self, Hop, OutboundFacts, OutboundPlan, Transport, TunnelPlan},
    outcome::{Reason, Refusal, Stage},
};
use mesh_net::{
    hbone::{
        HboneStream,
        client::{Client, Head},
        pool::Key,
    },
    relay,
};
use tokio::net::TcpStream;

use crate::{
    flow::{Direction, Failure, FlowGuard, at},
    member::Member,
    worker::{Worker, reset},
};

/// So often a connection is planned when its way changes while it is dialled.
const PLANS: usize = 4;

/// Carries one captured connection to its end.
pub async fn carry(worker: &Rc<Worker>, member: &Arc<Member>, tcp: TcpStream, client: SocketAddr) {
    let flow = worker.flows.begin(Direction::Outbound, member.clone(), client);
    let outcome = run(worker, &flow, tcp).await;
    flow.end(outcome);
}

async fn run(worker: &Rc<Worker>, flow: &FlowGuard, tcp: TcpStream) -> Result<(), Failure> {
    let opened = tokio::select! {
        biased;
        opened = open(worker, flow, &tcp) => opened,
        refusal = flow.closed() => Err(at(Stage::Dial)(refusal)),
    };
    let upstream = opened.inspect_err(|_| reset(&tcp))?;
    flow.carried();
    let (near, far) = (Reason::ClientReset, Reason::UpstreamReset);
    let moved = async {
        match upstream {
            Upstream::Tunnel(stream) => relay::tunnel(tcp, stream, &flow.counters, near, far).await,
            Upstream::Plain(stream) => relay::plain(tcp, stream, &flow.counters).await,
        }
    };
    tokio::select! {
        biased;
        result = moved => result.map_err(|broken| {
            at(Stage::Relay)(Refusal::new(broken.reason, broken.source.to_string()))
        }),
        refusal = flow.closed() => Err(at(Stage::Relay)(refusal)),
    }
}

enum Upstream {
    Tunnel(HboneStream),
    Plain(TcpStream),
}

async fn open(worker: &Rc<Worker>, flow: &FlowGuard, tcp: &TcpStream) -> Result<Upstream, Failure> {
    worker.flows.room().map_err(at(Stage::Accept))?;
    let facts = facts(worker, flow, tcp).map_err(at(Stage::Accept))?;
    flow.ends.borrow_mut().original = Some(facts.destination);
    let decision = |snapshot: &_| outbound::plan(snapshot, &facts, &mut worker.entropy(), &*worker.load);
    let mut plan = worker.decide(decision).await.map_err(at(Stage::Plan))?;
    for _ in 0..PLANS {
        note(flow, &plan);
        if let Some(endpoint) = &plan.destination {
            flow.load.replace(Some(worker.load.enter(&endpoint.uid)));
        }
        let hop = match &plan.transport {
            Transport::Plain(hop) => hop,
            Transport::Tunnel(tunnel) => {
                let stream = through(worker, flow, &plan, tunnel).await;
                return stream.map(Upstream::Tunnel).map_err(at(Stage::Dial));
            }
        };
        let stream = plain(worker, flow, hop).await.map_err(at(Stage::Dial))?;
        if worker.snapshot().version() == plan.snapshot {
            return Ok(Upstream::Plain(stream));
        }
        // Dialling took its time and the world has changed: the peer may be in the mesh by now, and
        // nothing has been sent yet.
        let again = worker.decide(decision).await.map_err(at(Stage::Plan))?;
        if matches!(again.transport, Transport::Plain(_)) {
            return Ok(Upstream::Plain(stream));
        }
        plan = again;
    }
    let detail = "the way to the destination changed with each attempt";
    Err(at(Stage::Plan)(Refusal::new(Reason::ConnectFailed, detail)))
}

fn facts(worker: &Worker, flow: &FlowGuard, tcp: &TcpStream) -> Result<OutboundFacts, Refusal> {
    let member = &flow.member;
    let lost = |why: String| Refusal::new(Reason::NoOriginalDestination, why);
    let destination = worker
        .redirector
        .original(member.target.cookie, flow.client)
        .map_err(|error| lost(error.to_string()))?
        .ok_or_else(|| match tcp.peer_addr() {
            Ok(client) => lost(format!("nothing is known of the connection from {client}")),
            // The kernel forgets a connection together with its last end.
            Err(_) => Refusal::new(Reason::ClientReset, "the client was gone before it was accepted"),
        })?;
    // Capture rewrites a destination to the pod's own address of the same family.
    let own = member
        .own(flow.client.is_ipv4())
        .ok_or_else(|| lost("of a family that the pod does not have".into()))?;
    let source = SocketAddr::new(own, flow.client.port());
    Ok(OutboundFacts { pod: member.info.pod.clone(), source, destination })
}

fn note(flow: &FlowGuard, plan: &OutboundPlan) {
    let mut ends = flow.ends.borrow_mut();
    ends.source = Some(plan.source.clone());
    ends.destination.clone_from(&plan.destination);
    ends.service.clone_from(&plan.service);
    ends.path = Some(plan.path);
    ends.snapshot = Some(plan.snapshot);
    if let Transport::Tunnel(tunnel) = &plan.transport {
        ends.authority = Some(tunnel.authority.clone());
    }
}

async fn plain(worker: &Worker, flow: &FlowGuard, hop: &Hop) -> Result<TcpStream, Refusal> {
    let address = resolve(hop).await?;
    flow.ends.borrow_mut().upstream = Some(address);
    worker.connect(&flow.member, address).await
}

async fn through(
    worker: &Rc<Worker>,
    flow: &FlowGuard,
    plan: &OutboundPlan,
    tunnel: &TunnelPlan,
) -> Result<HboneStream, Refusal> {
    let member = &flow.member;
    let tls = worker.tls(member)?;
    let address = resolve(&tunnel.hop).await?;
    {
        let mut ends = flow.ends.borrow_mut();
        ends.upstream = Some(address);
        ends.source_identity = Some(member.identity.clone());
    }
    let key = Key {
        source: member.identity.clone(),
        from: member.own(address.is_ipv4()).unwrap_or(flow.client.ip()),
        peer: tunnel.peer.clone(),
        expected: tunnel.expected.clone(),
        address,
    };
    let head = Head {
        baggage: Some(hbone::baggage(&plan.source)),
        forwarded: Some(hbone::forwarded(flow.client, plan.service_host())),
        traceparent: Some(hbone::TraceParent::random(&mut worker.entropy()).to_string()),
    };
    let dial = || async {
        let connector = tls
            .connector(&tunnel.expected)
            .map_err(|error| Refusal::new(Reason::CertificateUnavailable, error.to_string()))?;
        let tcp = worker.connect(member, address).await?;
        Client::handshake(tcp, address, &connector).await
    };
    let stream = worker.pool.open(key, &tunnel.authority, head, dial).await?;
    flow.ends.borrow_mut().destination_identity.clone_from(&stream.peer);
    Ok(stream)
}

async fn resolve(hop: &Hop) -> Result<SocketAddr, Refusal> {
    match hop {
        Hop::Address(address) => Ok(*address),
        Hop::Name { host, port, prefer_v4 } => mesh_net::resolve::resolve(host, *port, *prefer_v4).await,
    }
}
