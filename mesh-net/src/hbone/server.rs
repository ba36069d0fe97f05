//! The server side: authenticated connections that yield CONNECT requests.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, Method, Response, StatusCode};
use mesh_core::{
    hbone::{Authority, Baggage, forwarded_host},
    identity::Identity,
    outcome::Reason,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{CONNECTION_WINDOW, FRAME_SIZE, HboneStream, STREAM_WINDOW, ping_until_silent};
use crate::tls;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS handshake failed.
    #[error("tls handshake: {0}")]
    Tls(#[source] io::Error),
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
    let io = tls.accept(io).await.map_err(ServeError::Tls)?;
    let identity = Rc::new(tls::peer_identity(io.get_ref().1).ok_or(ServeError::NoIdentity)?);
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(64 << 10)
        .max_concurrent_streams(200)
        .max_send_buffer_size(super::SEND_BUFFER)
        .handshake(io)
        .await?;
    let ping = connection.ping_pong();
    let silent = async {
        match ping {
            Some(ping) => ping_until_silent(ping).await,
            None => std::future::pending().await,
        }
    };
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
        let Some(accepted) = accepted else { return Ok(()) };
        let (request, mut respond) = accepted?;
        let (parts, body) = request.into_parts();
        let target = parts.uri.authority().and_then(|a| a.as_str().parse::<Authority>().ok());
        let Some(authority) = target.filter(|_| parts.method == Method::CONNECT) else {
            tracing::debug!(%peer, %identity, "hbone request is not a connect with an address");
            refuse(&mut respond, StatusCode::BAD_REQUEST);
            continue;
        };
        let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
        let connect = Connect {
            identity: identity.clone(),
            authority,
            baggage: text("baggage").map(Baggage::parse).unwrap_or_default(),
            forwarded_host: text("forwarded").and_then(forwarded_host).map(Arc::from),
            forwarded: text("forwarded").map(str::to_string),
            forwarded_network: text("x-forwarded-network").map(Arc::from),
            traceparent: text("traceparent").map(str::to_string),
            respond,
            body,
        };
        tokio::task::spawn_local(handle(connect));
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, "hbone refusal was not sent");
    }
}
