//! The client side: one TLS and HTTP/2 connection that carries many streams.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, Method, Request, Uri, Version};
use mesh_core::{
    hbone::Authority,
    identity::Identity,
    outcome::{Reason, Refusal},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{CONNECTION_WINDOW, FRAME_SIZE, HboneStream, STREAM_WINDOW, Share, Usage, ping_until_silent};
use crate::tls;

/// Streams per connection: what ztunnel assumes of a peer.
pub const MAX_STREAMS: u32 = 100;

/// What describes the source in a CONNECT request.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// `baggage`.
    pub baggage: Option<String>,
    /// `forwarded`.
    pub forwarded: Option<String>,
    /// `traceparent`.
    pub traceparent: Option<String>,
}

impl Head {
    fn write(self, headers: &mut HeaderMap) {
        let fields =
            [("baggage", self.baggage), ("forwarded", self.forwarded), ("traceparent", self.traceparent)];
        for (name, text) in fields {
            if let Some(Ok(value)) = text.map(http::HeaderValue::try_from) {
                headers.insert(name, value);
            }
        }
    }
}

/// A connection. Its driver runs on the same thread; dropping the last handle closes it.
#[derive(Debug)]
pub struct Client {
    send: SendRequest<Bytes>,
    /// Who is at the other end.
    pub peer: Identity,
    /// Its address, for logs.
    pub address: SocketAddr,
    pub(crate) usage: Rc<Usage>,
    closed: Rc<Cell<bool>>,
}

impl Client {
    /// Runs the handshakes over `io`. Must be called within a `LocalSet`.
    ///
    /// # Errors
    /// `PeerIdentityRejected`, `TlsFailed`, `TunnelBroken`.
    pub async fn handshake<T>(io: T, address: SocketAddr, tls: &TlsConnector) -> Result<Self, Refusal>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let tls = tls
            .connect(tls::no_name(), io)
            .await
            .map_err(|error| Refusal::new(tls::handshake_reason(&error), format!("{address}: {error}")))?;
        let peer = tls::peer_identity(tls.get_ref().1).ok_or_else(|| {
            Refusal::new(Reason::PeerIdentityRejected, format!("{address} presents no identity"))
        })?;
        let (send, mut connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_header_list_size(16 << 10)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_send_buffer_size(super::SEND_BUFFER)
            .enable_push(false)
            .handshake(tls)
            .await
            .map_err(|error| broken(address, &error))?;
        let closed = Rc::new(Cell::new(false));
        let flag = closed.clone();
        let ping = connection.ping_pong();
        tokio::task::spawn_local(async move {
            let silent = async {
                match ping {
                    Some(ping) => ping_until_silent(ping).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%address, %error, "hbone connection ended");
                },
                () = silent => tracing::debug!(%address, "hbone peer does not answer"),
            }
            flag.set(true);
        });
        Ok(Self { send, peer, address, usage: Rc::default(), closed })
    }

    /// Whether no stream can be opened any more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Closes it for new streams; those that exist go on.
    pub(crate) fn retire(&self) {
        self.closed.set(true);
    }

    /// Streams that are open or being opened.
    pub fn streams(&self) -> u32 {
        self.usage.streams.get()
    }

    /// Streams that the peer allows, at most [`MAX_STREAMS`].
    pub fn max_streams(&self) -> u32 {
        u32::try_from(self.send.current_max_send_streams()).unwrap_or(MAX_STREAMS).min(MAX_STREAMS)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// `TunnelRefused` with the peer's status, `TunnelBroken`.
    pub async fn open(&self, authority: &Authority, head: Head) -> Result<HboneStream, Refusal> {
        let share = Share::new(&self.usage);
        let failed = |error: &h2::Error| broken(self.address, error);
        let uri = Uri::try_from(authority.to_string())
            .map_err(|error| Refusal::new(Reason::Internal, format!("authority {authority}: {error}")))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        head.write(request.headers_mut());
        let mut send = self.send.clone().ready().await.map_err(|error| self.note(failed(&error)))?;
        let (response, body) =
            send.send_request(request, false).map_err(|error| self.note(failed(&error)))?;
        // A reset concerns one stream; anything else, the connection.
        let response = response.await.map_err(|error| match error.is_reset() {
            true => failed(&error),
            false => self.note(failed(&error)),
        })?;
        let (parts, recv) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            let detail = format!("{} answered CONNECT {authority} with {}", self.address, parts.status);
            return Err(Refusal::new(Reason::TunnelRefused, detail));
        }
        let mut stream = HboneStream::new(body, recv, Some(share));
        stream.baggage =
            parts.headers.get("baggage").and_then(|value| value.to_str().ok()).map(str::to_string);
        Ok(stream)
    }

    fn note(&self, refusal: Refusal) -> Refusal {
        self.closed.set(true);
        refusal
    }
}

fn broken(address: SocketAddr, error: &h2::Error) -> Refusal {
    Refusal::new(Reason::TunnelBroken, format!("{address}: {error}"))
}
