//! Bounded serving: so many connections, so long a head, so much time for it.

use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Admin, Answer, Origin};

/// Connections of one listener that are served at a time; more wait in its backlog.
const CONNECTIONS: usize = 64;
/// Largest request head, bytes.
const HEAD: usize = 16 << 10;
/// Time for a request's head, also after the one before it.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// How long accepting pauses when the process has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Serves until cancelled; then open connections are dropped.
pub async fn serve_tcp(admin: Admin, listener: TcpListener, cancel: CancellationToken) {
    let accept = || async { listener.accept().await.map(|(socket, _)| socket) };
    cancel.run_until_cancelled(serve(admin, Origin::Tcp, accept)).await;
}

/// As [`serve_tcp`], for a socket of [`super::bind_unix`].
pub async fn serve_unix(admin: Admin, listener: UnixListener, cancel: CancellationToken) {
    let accept = || async { listener.accept().await.map(|(socket, _)| socket) };
    cancel.run_until_cancelled(serve(admin, Origin::Unix, accept)).await;
}

async fn serve<F, Fut, S>(admin: Admin, origin: Origin, accept: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (slots, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match accept().await {
            Ok(socket) => {
                let connection = one(admin.clone(), origin, socket);
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin endpoint cannot accept");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn one<S: AsyncRead + AsyncWrite + Unpin>(admin: Admin, origin: Origin, socket: S) {
    let service = service_fn(|request: Request<Incoming>| {
        let admin = admin.clone();
        async move {
            let (method, uri) = (request.method(), request.uri());
            let answer = admin.answer(origin, method, uri.path(), uri.query()).await;
            Ok::<_, Infallible>(response(answer))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "admin connection ended");
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}
