//! What arrives at a pod: TLS and CONNECT, or plaintext → facts → admission → the application → relay
//! → outcome.

use std::{net::SocketAddr, pin::pin, rc::Rc, sync::Arc};

use mesh_core::{
    hbone as head,
    inbound::{self, Admission, Arrival, InboundFacts},
    outcome::{Path, Reason, Refusal, Stage},
};
use mesh_net::{
    hbone::server::{self, Connect},
    relay,
};
use tokio::net::TcpStream;

use crate::{
    flow::{Direction, Failure, FlowGuard, at},
    member::Member,
    worker::{Worker, reset},
};

/// Serves one connection to 15008 until it ends.
pub async fn hbone(worker: &Rc<Worker>, member: &Arc<Member>, tcp: TcpStream, peer: SocketAddr) {
    let refused = |refusal: Refusal| {
        let flow = worker.flows.begin(Direction::Inbound, member.clone(), peer);
        flow.end(Err(Failure { stage: Stage::Accept, refusal }));
    };
    let room = worker.tunnels.enter().and_then(|tunnel| Ok((tunnel, worker.tls(member)?.acceptor())));
    let (tunnel, tls) = match room {
        Ok(room) => room,
        Err(refusal) => {
            reset(&tcp);
            return refused(refusal);
        }
    };
    let local = match tcp.local_addr() {
        Ok(local) => SocketAddr::new(local.ip().to_canonical(), local.port()),
        Err(error) => return refused(Refusal::new(Reason::ClientReset, error.to_string())),
    };
    let handle = |connect: Connect| {
        let (worker, member, stream) = (worker.clone(), member.clone(), tunnel.stream());
        async move {
            request(&worker, &member, connect, local, peer).await;
            drop(stream);
        }
    };
    let closing = member.drain.token().child_token();
    let mut serving = pin!(server::serve(tcp, peer, &tls, closing.clone(), handle));
    let served = loop {
        tokio::select! {
            served = &mut serving => break served,
            () = tunnel.unused(), if !closing.is_cancelled() => closing.cancel(),
            () = member.drain.forced() => return,
        }
    };
    if let Err(error) = served {
        let reason = error.reason();
        match reason {
            Reason::TunnelBroken => tracing::debug!(%peer, %error, "hbone connection ended"),
            _ => refused(Refusal::new(reason, error.to_string())),
        }
    }
}

async fn request(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    connect: Connect,
    local: SocketAddr,
    peer: SocketAddr,
) {
    let flow = worker.flows.begin(Direction::Inbound, member.clone(), peer);
    let facts = InboundFacts {
        pod: member.info.pod.clone(),
        local,
        peer,
        arrival: Arrival::Hbone {
            identity: (*connect.identity).clone(),
            authority: connect.authority.clone(),
            forwarded_host: connect.forwarded_host.clone(),
            forwarded_network: connect.forwarded_network.clone(),
        },
    };
    let outcome = match reach(worker, &flow, &facts).await {
        Ok((application, admission)) => {
            let answer = connect.accept(Some(&head::baggage(&admission.workload)));
            tunnel(&flow, application, answer).await
        }
        Err(failure) => {
            connect.refuse(head::status(failure.refusal.reason));
            Err(failure)
        }
    };
    flow.end(outcome);
}

async fn tunnel(
    flow: &FlowGuard,
    application: TcpStream,
    answer: Result<mesh_net::hbone::HboneStream, h2::Error>,
) -> Result<(), Failure> {
    let broken = |text: String| at(Stage::Relay)(Refusal::new(Reason::ClientReset, text));
    let stream = answer.map_err(|error| broken(error.to_string()))?;
    flow.carried();
    flow.reverse();
    let (near, far) = (Reason::UpstreamReset, Reason::ClientReset);
    let moved = relay::tunnel(application, stream, &flow.counters, near, far);
    tokio::select! {
        biased;
        result = moved => result.map_err(|broken| {
            at(Stage::Relay)(Refusal::new(broken.reason, broken.source.to_string()))
        }),
        refusal = flow.closed() => Err(at(Stage::Relay)(refusal)),
    }
}

/// Carries one connection that came in plaintext.
pub async fn plaintext(worker: &Rc<Worker>, member: &Arc<Member>, tcp: TcpStream, peer: SocketAddr) {
    let flow = worker.flows.begin(Direction::Inbound, member.clone(), peer);
    let outcome = plain(worker, &flow, tcp).await;
    flow.end(outcome);
}

async fn plain(worker: &Rc<Worker>, flow: &FlowGuard, tcp: TcpStream) -> Result<(), Failure> {
    let gone =
        |error: std::io::Error| at(Stage::Accept)(Refusal::new(Reason::ClientReset, error.to_string()));
    let local = tcp.local_addr().map_err(gone)?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let member = &flow.member;
    let facts =
        InboundFacts { pod: member.info.pod.clone(), local, peer: flow.client, arrival: Arrival::Plaintext };
    let (application, _) = reach(worker, flow, &facts).await.inspect_err(|_| reset(&tcp))?;
    flow.carried();
    tokio::select! {
        biased;
        result = relay::plain(tcp, application, &flow.counters) => result.map_err(|broken| {
            at(Stage::Relay)(Refusal::new(broken.reason, broken.source.to_string()))
        }),
        refusal = flow.closed() => Err(at(Stage::Relay)(refusal)),
    }
}

/// Admits a flow and connects to the application, unless the flow is asked to end meanwhile.
async fn reach(
    worker: &Rc<Worker>,
    flow: &FlowGuard,
    facts: &InboundFacts,
) -> Result<(TcpStream, Admission), Failure> {
    tokio::select! {
        biased;
        reached = admitted(worker, flow, facts) => reached,
        refusal = flow.closed() => Err(at(Stage::Dial)(refusal)),
    }
}

async fn admitted(
    worker: &Rc<Worker>,
    flow: &FlowGuard,
    facts: &InboundFacts,
) -> Result<(TcpStream, Admission), Failure> {
    note_arrival(flow, facts);
    worker.flows.room().map_err(at(Stage::Accept))?;
    let admission =
        worker.decide(|snapshot| inbound::admit(snapshot, facts)).await.map_err(at(Stage::Plan))?;
    note_admission(flow, &admission);
    // Before dialling: a policy that changes meanwhile must find the flow.
    flow.recheck_with(facts.clone());
    if admission.proxy_header.is_some() {
        let detail = "the workload asks for a PROXY header, which is not supported by this version";
        return Err(at(Stage::Plan)(Refusal::new(Reason::Internal, detail)));
    }
    let from = Some(facts.peer.ip()).filter(|ip| ip.is_ipv4() == admission.dial.is_ipv4());
    let application = match (&facts.arrival, from) {
        (Arrival::Plaintext, Some(from)) => worker.reach_beside(&flow.member, admission.dial, from).await,
        _ => worker.reach(&flow.member, admission.dial, from).await,
    };
    let application = application.map_err(at(Stage::Dial))?;
    Ok((application, admission))
}

fn note_arrival(flow: &FlowGuard, facts: &InboundFacts) {
    let mut ends = flow.ends.borrow_mut();
    match &facts.arrival {
        Arrival::Plaintext => {
            ends.path = Some(Path::Plaintext);
            ends.original = Some(facts.local);
        }
        Arrival::Hbone { identity, authority, .. } => {
            ends.path = Some(Path::Tunnel);
            ends.destination_identity = Some(flow.member.identity.clone());
            ends.source_identity = Some(identity.clone());
            ends.authority = Some(authority.clone());
            ends.original = match authority {
                head::Authority::Address(address) => Some(*address),
                head::Authority::Host(..) => None,
            };
        }
    }
}

fn note_admission(flow: &FlowGuard, admission: &Admission) {
    let mut ends = flow.ends.borrow_mut();
    ends.snapshot = Some(admission.snapshot);
    ends.source.clone_from(&admission.source);
    ends.destination = Some(admission.workload.clone());
    ends.service.clone_from(&admission.service);
    ends.upstream = Some(admission.dial);
}
