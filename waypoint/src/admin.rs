//! `/metrics`, `/healthz` and `/readyz` for Prometheus and the kubelet.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_net::task::Ready;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections served at a time.
const CONNECTIONS: usize = 64;

/// What the endpoints show.
#[derive(Clone)]
pub struct Admin {
    /// Metrics.
    pub registry: Registry,
    /// What is awaited.
    pub ready: Ready,
    /// Cancelled when the waypoint drains: not ready any more.
    pub drain: CancellationToken,
}

/// Serves until cancelled from outside.
pub async fn listen(admin: Admin, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((socket, _)) = listener.accept().await else { continue };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&admin, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(socket), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "admin connection ended");
            }
            drop(slot);
        });
    }
}

fn answer(admin: &Admin, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/metrics" | "/stats/prometheus" => metrics(&admin.registry),
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" | "/healthz/ready" => match admin.ready.pending() {
            _ if admin.drain.is_cancelled() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
            list if list.is_empty() => text(StatusCode::OK, "ready\n".to_owned()),
            list => text(StatusCode::SERVICE_UNAVAILABLE, format!("awaiting {}\n", list.join(", "))),
        },
        _ => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut body) {
        Ok(()) => {
            let mut response = Response::new(Full::new(Bytes::from(body)));
            let kind = http::HeaderValue::from_static("text/plain; version=0.0.4");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
