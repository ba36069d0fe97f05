//! `/metrics`, `/healthz`, `/readyz` and `/debug/config` for Prometheus, the kubelet and people.

pub mod socket;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_net::{store::SnapshotStore, task::Ready};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
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
    /// Configuration.
    pub store: Arc<SnapshotStore>,
}

type Socket = Box<dyn Stream>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where the endpoints are served.
#[derive(Debug)]
pub enum Door {
    /// A port.
    Tcp(TcpListener),
    /// A socket file.
    Unix(UnixListener),
}

impl Door {
    async fn accept(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves until cancelled from outside.
pub async fn listen(admin: Admin, door: Door) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let socket = match door.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "admin connection not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
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
        "/debug/config" => config(&admin.store),
        _ => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
    }
}

fn config(store: &SnapshotStore) -> Response<Full<Bytes>> {
    match serde_json::to_string(&store.current().dump()) {
        Ok(body) => {
            let mut response = text(StatusCode::OK, body);
            let kind = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
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
