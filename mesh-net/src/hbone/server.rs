//! The server side: authenticated connections that yield CONNECT requests.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use mesh_core::{
    hbone::{Authority, Baggage, forwarded_host},
    identity::Identity,
    outcome::Reason,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    CONNECTION_WINDOW, FRAME_SIZE, HANDSHAKE_LIMIT, HboneStream, SEND_BUFFER, STREAM_WINDOW, keepalive,
    linger::Shared,
};
use crate::tls;

/// Streams of one connection that are open at a time (Istio's); more are refused by HTTP/2.
const STREAMS: u32 = 200;
/// Largest head of a request, bytes (Istio's); a larger one is answered with 431.
const HEADERS: u32 = 64 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS handshake failed.
    #[error("tls handshake: {0}")]
    Tls(#[source] io::Error),
    /// The handshakes took too long.
    #[error("no handshake within {HANDSHAKE_LIMIT:?}")]
    Slow,
    /// The peer's certificate has no identity.
    #[error("the peer presents no identity")]
    NoIdentity,
    /// HTTP/2 broke.
    #[error("http/2: {0}")]
    Http2(#[from] h2::Error),
    /// The peer stopped answering pings.
    #[error("the peer does not answer")]
    Silent,
}

impl ServeError {
    /// The reason for logs and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls(error) => tls::handshake_reason(error),
            Self::Slow => Reason::TlsFailed,
            Self::NoIdentity => Reason::PeerIdentityRejected,
            Self::Http2(_) | Self::Silent => Reason::TunnelBroken,
        }
    }
}

/// A well-formed CONNECT request that waits for an answer; dropping it resets the stream.
pub struct Connect {
    /// Identity of the TLS peer.
    pub identity: Rc<Identity>,
    /// Target.
    pub authority: Authority,
    /// What the client says about itself: metrics only.
    pub baggage: Baggage,
    /// The service that it says it meant: metrics only.
    pub forwarded_host: Option<Arc<str>>,
    /// The whole `forwarded` value; to be trusted only from a trusted peer.
    pub forwarded: Option<String>,
    /// `x-forwarded-network`.
    pub forwarded_network: Option<Arc<str>>,
    /// `traceparent`.
    pub traceparent: Option<String>,
    respond: SendResponse<Bytes>,
    body: RecvStream,
}

impl Connect {
    /// Answers 200, with the destination's `baggage` when given.
    ///
    /// # Errors
    /// The stream or the connection is gone.
    pub fn accept(mut self, baggage: Option<&str>) -> Result<HboneStream, h2::Error> {
        let mut response = Response::new(());
        if let Some(Ok(value)) = baggage.map(HeaderValue::from_str) {
            response.headers_mut().insert("baggage", value);
        }
        let send = self.respond.send_response(response, false)?;
        Ok(HboneStream::new(send, self.body, None))
    }

    /// Answers with an error status (see [`mesh_core::hbone::status`]).
    pub fn refuse(mut self, status: u16) {
        refuse(&mut self.respond, StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
    }
}

/// Serves one connection until it ends; `handle` runs as a task on this thread for each request. When
/// `drain` is cancelled the peer is told (GOAWAY) and streams that exist go on. Must be called within
/// a `LocalSet`.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<T, F, Fut>(
    io: T,
    peer: SocketAddr,
    tls: &TlsAcceptor,
    drain: CancellationToken,
    handle: F,
) -> Result<(), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Connect) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    let (io, kept) = Shared::pair(io);
    let (identity, mut connection) =
        timeout(HANDSHAKE_LIMIT, handshakes(io, tls)).await.map_err(|_| ServeError::Slow)??;
    let silent = keepalive::until_silent(connection.ping_pong(), || false);
    tokio::pin!(silent);
    let mut draining = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
            () = &mut silent => return Err(ServeError::Silent),
        };
        let Some(accepted) = accepted else { break };
        let (request, respond) = match accepted {
            // A client that was told to go closes when it likes: what we still had to say is lost.
            Err(error) if draining && error.is_io() => break,
            accepted => accepted?,
        };
        match connect(request, respond, &identity) {
            Ok(connect) => drop(tokio::task::spawn_local(handle(connect))),
            Err(mut respond) => {
                tracing::debug!(%peer, %identity, "hbone request is not a connect with an address");
                refuse(&mut respond, StatusCode::BAD_REQUEST);
            }
        }
    }
    drop(connection);
    kept.linger().await;
    Ok(())
}

async fn handshakes<T>(
    io: T,
    tls: &TlsAcceptor,
) -> Result<(Rc<Identity>, h2::server::Connection<TlsStream<T>, Bytes>), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let io = tls.accept(io).await.map_err(ServeError::Tls)?;
    let identity = Rc::new(tls::peer_identity(io.get_ref().1).ok_or(ServeError::NoIdentity)?);
    let connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS)
        // A client whose applications all give up at once is no attack: peers are authenticated.
        .max_pending_accept_reset_streams(STREAMS as usize)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(io)
        .await?;
    Ok((identity, connection))
}

/// The request, if it is one that can be answered with anything but 400.
fn connect(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    identity: &Rc<Identity>,
) -> Result<Connect, SendResponse<Bytes>> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.authority().and_then(|a| a.as_str().parse::<Authority>().ok());
    let Some(authority) = target.filter(|_| parts.method == Method::CONNECT) else { return Err(respond) };
    let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
    Ok(Connect {
        identity: identity.clone(),
        authority,
        baggage: text("baggage").map(Baggage::parse).unwrap_or_default(),
        forwarded_host: text("forwarded").and_then(forwarded_host).map(Arc::from),
        forwarded: text("forwarded").map(str::to_string),
        forwarded_network: text("x-forwarded-network").map(Arc::from),
        traceparent: text("traceparent").map(str::to_string),
        respond,
        body,
    })
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, "hbone refusal was not sent");
    }
}
