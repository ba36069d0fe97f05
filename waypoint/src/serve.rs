//! Serving one tunnelled connection: protocol, then HTTP engine or TCP relay.

use std::{convert::Infallible, rc::Rc};

use bytes::Bytes;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{
    http::{NoHeaders, RequestFacts, authorise, choose, tcp_route},
    model::{AppProtocol, l7::WeightedDestination},
    outcome::{Reason, Refusal},
};
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};

use crate::{
    engine::handle,
    flow::Flow,
    io::{BoxIo, LocalExecutor, Prefixed},
    sniff::{Protocol, sniff},
    upstream::SwitchSlot,
    worker::Worker,
};

const RELAY_BUFFER: usize = 64 * 1024;

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, flow: Flow, mut io: BoxIo) {
    let declared = flow.protocol(&worker.world());
    let (protocol, seen) = match sniff(&mut io, declared).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "connection ended before its first byte");
            return;
        }
    };
    if protocol == Protocol::Tcp && seen.is_empty() && declared == AppProtocol::Unknown {
        worker.telemetry.families.silent.inc();
    }
    let io = Prefixed::new(seen, io);
    let flow = Rc::new(flow);
    match protocol {
        Protocol::Http1 => serve_http1(worker, flow, io).await,
        Protocol::Http2 => serve_http2(worker, flow, io).await,
        Protocol::Tcp => serve_tcp(worker, flow, io).await,
    }
}

async fn serve_http1(worker: Rc<Worker>, flow: Rc<Flow>, io: Prefixed) {
    let slot = SwitchSlot::default();
    let drain = worker.drain.clone();
    let service = service_fn(|request| {
        let answer = handle(worker.clone(), flow.clone(), slot.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(io), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "client connection ended");
    }
    let Some(switched) = slot.take() else { return };
    let parts = connection.into_parts();
    let Ok((mut upstream, beyond)) = switched.await else { return };
    let mut client = Prefixed::new(parts.read_buf, Box::new(parts.io.into_inner()));
    if relay_rest(&mut client, &mut upstream, &beyond).await.is_err() {
        tracing::debug!("switched connection ended early");
    }
}

async fn relay_rest(client: &mut Prefixed, upstream: &mut BoxIo, beyond: &Bytes) -> std::io::Result<()> {
    client.write_all(beyond).await?;
    copy_bidirectional_with_sizes(client, upstream, RELAY_BUFFER, RELAY_BUFFER).await?;
    Ok(())
}

async fn serve_http2(worker: Rc<Worker>, flow: Rc<Flow>, io: Prefixed) {
    let drain = worker.drain.clone();
    let service = service_fn(|request| {
        let answer = handle(worker.clone(), flow.clone(), SwitchSlot::default(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(200)
        .max_header_list_size(64 * 1024);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "client connection ended");
    }
}

async fn serve_tcp(worker: Rc<Worker>, flow: Rc<Flow>, mut io: Prefixed) {
    if let Err(refusal) = relay_tcp(&worker, &flow, &mut io).await {
        worker.telemetry.families.refused(refusal.reason);
        tracing::event!(
            target: "access",
            tracing::Level::INFO,
            src.addr = %flow.peer.address,
            src.identity = %flow.peer.identity,
            dst.service = flow.service.as_deref().map_or("-", |s| &*s.key.hostname),
            reason = refusal.reason.as_str(),
            detail = refusal.detail,
            "connection refused"
        );
    }
}

async fn relay_tcp(worker: &Rc<Worker>, flow: &Flow, io: &mut Prefixed) -> Result<(), Refusal> {
    let world = worker.world();
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
    authorise(world.policies(service).iter().map(|p| &**p), &facts)?;
    let mut entropy = worker.entropy();
    let set = match (service, &flow.workload) {
        (Some(service), _) => {
            let routes = world.routes(service);
            let chosen =
                tcp_route(&routes.source, flow.port).and_then(|r| choose(&r.destinations, &mut entropy));
            match chosen {
                Some(WeightedDestination { service, subset, port, .. }) => {
                    world.endpoints(service, subset.as_ref(), port.unwrap_or(flow.port))?
                }
                None => world.endpoints(service, None, flow.port)?,
            }
        }
        (None, Some(workload)) => world.only(workload, flow.port),
        (None, None) => return Err(Refusal::new(Reason::WrongDestination, "nothing to relay to")),
    };
    let (_, endpoint) = set
        .pick(None, &mut entropy, &*worker.load)
        .ok_or_else(|| Refusal::new(Reason::NoHealthyEndpoint, "no endpoint"))?;
    let _load = worker.load.enter(&endpoint.workload.uid);
    let (mut upstream, _permit) = worker.upstreams.open(&set, endpoint, &flow.peer).await?;
    worker.telemetry.families.tcp();
    let moved = copy_bidirectional_with_sizes(io, &mut upstream, RELAY_BUFFER, RELAY_BUFFER).await;
    moved.map(drop).map_err(|e| Refusal::new(Reason::UpstreamReset, e.to_string()))
}
