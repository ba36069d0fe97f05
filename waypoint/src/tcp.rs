//! Connections that are not HTTP: authorised, routed and relayed as bytes.

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use mesh_core::{
    entropy::Entropy,
    http::{NoHeaders, RequestFacts, authorise, choose, tcp_route},
    model::{Tunnel, l7::WeightedDestination},
    outcome::{Path, Reason, Refusal},
    snapshot::Snapshot,
};
use mesh_net::telemetry::tcp::{Ends, Handle};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    sync::watch,
};

use crate::{
    endpoints::EndpointSet,
    flow::Flow,
    io::{BoxIo, Prefixed},
    telemetry::destination_identity,
    upstream::To,
    worker::Worker,
    world::World,
};

/// Bytes of each direction that a flow may hold.
const BUFFER: usize = 64 * 1024;

/// Relays a connection to its end and records it once (invariant I-4).
pub async fn relay(worker: Rc<Worker>, flow: Rc<Flow>, io: Prefixed) {
    let begun = Instant::now();
    // Before the world is taken, so that no change between decision and relay is missed.
    let changes = worker.changes();
    let world = worker.world();
    let mut entropy = worker.entropy();
    let chosen = choose_endpoint(&world, &flow, &mut entropy);
    let at = chosen.as_ref().ok().map(|(set, index)| &set.endpoints[*index].workload);
    let path = match at.map(|w| w.tunnel) {
        Some(Tunnel::None) => Path::Passthrough,
        _ => Path::Tunnel,
    };
    let handle = worker.telemetry.tcp.of(&Ends {
        reporter: "waypoint",
        source: flow.peer.workload.as_ref(),
        destination: at,
        service: flow.service.as_ref(),
        source_identity: Some(&flow.peer.identity),
        mutual_tls: true,
        path: path.as_str(),
    });
    handle.open();
    let mut client = Counted::new(io, Some(handle.clone()));
    let ended = match &chosen {
        Ok(chosen) => carry(&worker, &flow, chosen, changes, &mut client).await,
        Err(refusal) => Err(refusal.clone()),
    };
    let refusal = ended.err();
    handle.close(refusal.as_ref().map(|r| r.reason));
    if let Some(refusal) = &refusal {
        worker.telemetry.families.refused(refusal.reason);
    }
    tracing::event!(
        target: "access",
        tracing::Level::INFO,
        src.addr = %flow.peer.address,
        src.identity = %flow.peer.identity,
        dst.service = flow.service.as_deref().map_or("-", |s| &*s.key.hostname),
        dst.workload = at.map_or("-", |w| &*w.name),
        dst.identity = destination_identity(at.map(|w| &**w)),
        path = path.as_str(),
        bytes_recv = client.received,
        bytes_sent = client.sent,
        duration_ms = begun.elapsed().as_secs_f64() * 1000.0,
        reason = refusal.as_ref().map_or("-", |r| r.reason.as_str()),
        detail = refusal.as_ref().map_or("", |r| r.detail.as_str()),
        snapshot = world.snapshot.version(),
        "connection complete"
    );
}

/// Whether policy allows a connection. What a policy asks of HTTP fails closed: not looking like HTTP
/// is no way around it.
fn authorised(world: &World, flow: &Flow) -> Result<(), Refusal> {
    let service = flow.service.as_ref().map(|s| &s.key);
    let facts = RequestFacts {
        client: flow.peer.facts(),
        method: "",
        scheme: "",
        authority: "",
        path: "",
        query: "",
        headers: &NoHeaders,
        destination_ip: flow.ip,
        port: flow.port,
    };
    authorise(world.policies(service).iter().map(|p| &**p), &facts).map(drop)
}

/// Policy first, then the TCP route, then an endpoint. Fails closed.
fn choose_endpoint(
    world: &World,
    flow: &Flow,
    entropy: &mut impl Entropy,
) -> Result<(Rc<EndpointSet>, usize), Refusal> {
    let service = flow.service.as_ref().map(|s| &s.key);
    authorised(world, flow)?;
    let set = match (service, &flow.workload) {
        (Some(service), _) => {
            let routes = world.routes(service);
            let route = tcp_route(&routes.source, flow.port);
            match route.and_then(|r| choose(&r.destinations, entropy)) {
                Some(WeightedDestination { service, subset, port, .. }) => {
                    world.endpoints(service, subset.as_ref(), port.unwrap_or(flow.port))?
                }
                None => world.endpoints(service, None, flow.port)?,
            }
        }
        (None, Some(workload)) => world.only(workload, flow.port),
        (None, None) => return Err(Refusal::new(Reason::WrongDestination, "nothing to relay to")),
    };
    let index = set.pick(None, entropy);
    let index = index.ok_or_else(|| Refusal::new(Reason::NoHealthyEndpoint, "no endpoint"))?;
    Ok((set, index))
}

async fn carry(
    worker: &Worker,
    flow: &Flow,
    (set, index): &(Rc<EndpointSet>, usize),
    changes: watch::Receiver<Arc<Snapshot>>,
    client: &mut Counted,
) -> Result<(), Refusal> {
    let index = *index;
    let _active = set.targets[index].enter();
    let (mut upstream, _permit) = worker.upstreams.open(To { set, index, client: &flow.peer }).await?;
    copy(worker, client, &mut upstream, changes, |world| authorised(world, flow)).await
}

/// Copies both ways until both have ended, policy comes to forbid it, or a drain has taken too long.
///
/// # Errors
/// What ended it early.
pub(crate) async fn copy(
    worker: &Worker,
    client: &mut Counted,
    upstream: &mut BoxIo,
    mut changes: watch::Receiver<Arc<Snapshot>>,
    authorised: impl Fn(&World) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let broken = client.broken.clone();
    let mut copy = pin!(copy_bidirectional_with_sizes(client, upstream, BUFFER, BUFFER));
    let moved = loop {
        tokio::select! {
            moved = &mut copy => break moved,
            Ok(()) = changes.changed() => authorised(&worker.world())
                .map_err(|refusal| Refusal::new(Reason::PolicyChanged, refusal.detail))?,
            () = worker.expired.cancelled() => {
                return Err(Refusal::new(Reason::DrainDeadline, "the waypoint stops"));
            }
        }
    };
    let reason = if broken.get() { Reason::ClientReset } else { Reason::UpstreamReset };
    moved.map(drop).map_err(|error| Refusal::new(reason, error.to_string()))
}

/// The client's stream, counting while it runs so that a scrape sees long flows grow.
pub(crate) struct Counted {
    io: Prefixed,
    handle: Option<Rc<Handle>>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Whether it was this side that failed.
    broken: Rc<Cell<bool>>,
}

impl Counted {
    pub(crate) fn new(io: Prefixed, handle: Option<Rc<Handle>>) -> Self {
        Self { io, handle, received: 0, sent: 0, broken: Rc::default() }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let count = (buf.filled().len() - before) as u64;
        self.received += count;
        if let Some(handle) = &self.handle {
            handle.received.inc_by(count);
        }
        if let Poll::Ready(Err(_)) = polled {
            self.broken.set(true);
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        match polled {
            Poll::Ready(Ok(count)) => {
                self.sent += count as u64;
                if let Some(handle) = &self.handle {
                    handle.sent.inc_by(count as u64);
                }
            }
            Poll::Ready(Err(_)) => self.broken.set(true),
            Poll::Pending => {}
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
