//! Serving one tunnelled connection: protocol, then HTTP engine or TCP relay.

use std::{convert::Infallible, rc::Rc, time::Duration};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::model::AppProtocol;

use crate::{
    engine::handle,
    flow::Flow,
    io::{BoxIo, LocalExecutor, Prefixed},
    sniff::{Protocol, sniff},
    tcp,
    telemetry::Record,
    websocket::SwitchSlot,
    worker::Worker,
};

/// How long a client may keep a connection without a request (Istio's `idleTimeout`).
const IDLE: Duration = Duration::from_secs(3600);

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
        Protocol::Tcp => tcp::relay(worker, flow, io).await,
    }
}

async fn serve_http1(worker: Rc<Worker>, flow: Rc<Flow>, io: Prefixed) {
    let slot = SwitchSlot::default();
    let drain = worker.drain.clone();
    let service = service_fn(|request| {
        let answer = handle(worker.clone(), flow.clone(), slot.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(io), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = ended {
        if error.is_parse() {
            // It was answered without the engine.
            let mut record = Record::malformed(&worker.telemetry, &flow.peer, error.to_string());
            record.service = flow.service.clone();
        }
        tracing::debug!(%error, "client connection ended");
    }
    let Some(switched) = slot.take() else { return };
    let parts = connection.into_parts();
    let client = Prefixed::new(parts.read_buf, Box::new(parts.io.into_inner()));
    switched.relay(&worker, &flow, client).await;
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
