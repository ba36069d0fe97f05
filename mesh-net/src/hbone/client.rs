//! The client side: one TLS and HTTP/2 connection that carries many streams.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{
    Reason as H2Reason,
    client::{Builder, Connection, SendRequest},
};
use http::{HeaderMap, Method, Request, Uri, Version};
use mesh_core::{
    hbone::Authority,
    identity::Identity,
    outcome::{Reason, Refusal},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    CONNECTION_WINDOW, FRAME_SIZE, HANDSHAKE_LIMIT, HboneStream, SEND_BUFFER, STREAM_WINDOW, keepalive,
    linger::Shared,
    usage::{Share, Usage},
};
use crate::tls;

/// Streams per connection: what ztunnel assumes of a peer.
pub const MAX_STREAMS: u32 = 100;
/// Time for the peer's answer to CONNECT: its own ten seconds for the application, and what it may hold
/// a flow for its configuration, fit in.
pub const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// A connection without streams is closed after this time (and up to ten seconds more).
pub const IDLE_LIMIT: Duration = Duration::from_secs(90);

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

/// A connection. Its driver runs on the same thread; dropping the last handle closes it, once its
/// streams have ended.
#[derive(Debug)]
pub struct Client {
    handle: Rc<Handle>,
    /// Who is at the other end.
    pub peer: Identity,
    /// Its address, for logs.
    pub address: SocketAddr,
    usage: Rc<Usage>,
}

/// What opens streams; none once no stream may be opened any more.
#[derive(Debug)]
struct Handle(RefCell<Option<SendRequest<Bytes>>>);

impl Handle {
    fn close(&self) {
        self.0.borrow_mut().take();
    }

    fn is_closed(&self) -> bool {
        self.0.borrow().is_none()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.retire();
    }
}

/// A stream that was not opened.
#[derive(Debug)]
pub(super) struct Unopened {
    pub(super) refusal: Refusal,
    /// The peer has certainly not acted on the request: it may be sent again.
    pub(super) unprocessed: bool,
}

impl Client {
    /// Runs the handshakes over `io`. Must be called within a `LocalSet`.
    ///
    /// # Errors
    /// `PeerIdentityRejected`, `TlsFailed` (also when the handshake takes longer than
    /// [`HANDSHAKE_LIMIT`]), `TunnelBroken`.
    pub async fn handshake<T>(io: T, address: SocketAddr, tls: &TlsConnector) -> Result<Self, Refusal>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match timeout(HANDSHAKE_LIMIT, Self::handshakes(io, address, tls)).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("{address}: no handshake within {HANDSHAKE_LIMIT:?}");
                Err(Refusal::new(Reason::TlsFailed, detail))
            }
        }
    }

    async fn handshakes<T>(io: T, address: SocketAddr, tls: &TlsConnector) -> Result<Self, Refusal>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (io, kept) = Shared::pair(io);
        let tls = tls
            .connect(tls::no_name(), io)
            .await
            .map_err(|error| Refusal::new(tls::handshake_reason(&error), format!("{address}: {error}")))?;
        let peer = tls::peer_identity(tls.get_ref().1).ok_or_else(|| {
            Refusal::new(Reason::PeerIdentityRejected, format!("{address} presents no identity"))
        })?;
        let (send, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_header_list_size(16 << 10)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake(tls)
            .await
            .map_err(|error| broken(address, &error))?;
        let (handle, usage) = (Rc::new(Handle(RefCell::new(Some(send)))), Usage::new());
        tokio::task::spawn_local(drive(connection, kept, address, handle.clone(), usage.clone()));
        Ok(Self { handle, peer, address, usage })
    }

    /// Whether no stream can be opened any more.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Closes it for new streams; those that exist go on, then the peer is told (GOAWAY).
    pub(super) fn retire(&self) {
        self.handle.close();
    }

    /// Streams that are open or being opened.
    pub fn streams(&self) -> u32 {
        self.usage.streams.get()
    }

    /// When its last stream ended.
    pub(super) fn idle_since(&self) -> Instant {
        self.usage.last.get()
    }

    /// Streams that proved to be bulk.
    pub(super) fn bulk(&self) -> u32 {
        self.usage.bulk.get()
    }

    /// Streams that the peer allows, at most [`MAX_STREAMS`].
    pub fn max_streams(&self) -> u32 {
        let allowed = self.handle.0.borrow().as_ref().map_or(0, SendRequest::current_max_send_streams);
        u32::try_from(allowed).unwrap_or(MAX_STREAMS).min(MAX_STREAMS)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// `TunnelRefused` with the peer's status, `TunnelBroken`, `ConnectTimeout` when there is no answer
    /// within [`OPEN_LIMIT`].
    pub async fn open(&self, authority: &Authority, head: Head) -> Result<HboneStream, Refusal> {
        self.try_open(authority, head).await.map_err(|unopened| unopened.refusal)
    }

    pub(super) async fn try_open(&self, authority: &Authority, head: Head) -> Result<HboneStream, Unopened> {
        // Before anything is awaited: who chooses next sees it.
        let share = Share::new(&self.usage);
        match timeout(OPEN_LIMIT, self.request(authority, head, share)).await {
            Ok(result) => result,
            Err(_) => {
                let detail =
                    format!("{}: no answer to CONNECT {authority} within {OPEN_LIMIT:?}", self.address);
                Err(Unopened { refusal: Refusal::new(Reason::ConnectTimeout, detail), unprocessed: false })
            }
        }
    }

    async fn request(
        &self,
        authority: &Authority,
        head: Head,
        share: Share,
    ) -> Result<HboneStream, Unopened> {
        let request = request(authority, head)?;
        let send = self.handle.0.borrow().clone();
        let unsent = |detail: String| Unopened {
            refusal: Refusal::new(Reason::TunnelBroken, format!("{}: {detail}", self.address)),
            unprocessed: true,
        };
        let send = send.ok_or_else(|| unsent("the connection is closing".into()))?;
        let close = |error: h2::Error| {
            self.retire();
            unsent(error.to_string())
        };
        let mut send = send.ready().await.map_err(close)?;
        let (response, body) = send.send_request(request, false).map_err(close)?;
        let response = response.await.map_err(|error| self.failed(&error))?;
        let (parts, recv) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            let detail = format!("{} answered CONNECT {authority} with {}", self.address, parts.status);
            return Err(Refusal::new(Reason::TunnelRefused, detail).into());
        }
        let mut stream = HboneStream::new(body, recv, Some(share));
        stream.peer = Some(self.peer.clone());
        stream.baggage =
            parts.headers.get("baggage").and_then(|value| value.to_str().ok()).map(str::to_string);
        Ok(stream)
    }

    /// A reset concerns one stream; anything else ends the connection for new ones. Only a refused
    /// stream, or one beyond the last that a graceful GOAWAY names, was certainly not looked at.
    fn failed(&self, error: &h2::Error) -> Unopened {
        let refused = error.is_reset() && error.reason() == Some(H2Reason::REFUSED_STREAM);
        let beyond = error.is_go_away() && error.is_remote() && error.reason() == Some(H2Reason::NO_ERROR);
        if refused || !error.is_reset() {
            self.retire();
        }
        Unopened { refusal: broken(self.address, error), unprocessed: refused || beyond }
    }
}

impl From<Refusal> for Unopened {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, unprocessed: false }
    }
}

fn request(authority: &Authority, head: Head) -> Result<Request<()>, Refusal> {
    let uri = Uri::try_from(authority.to_string())
        .map_err(|error| Refusal::new(Reason::Internal, format!("authority {authority}: {error}")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    head.write(request.headers_mut());
    Ok(request)
}

/// Moves frames until the connection ends, the peer falls silent, or nobody has used it for long and its
/// last stream has ended.
async fn drive<T>(
    mut connection: Connection<TlsStream<Shared<T>>, Bytes>,
    kept: Shared<T>,
    address: SocketAddr,
    handle: Rc<Handle>,
    usage: Rc<Usage>,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let ending = || {
        let unused = usage.streams.get() == 0;
        if unused && usage.last.get().elapsed() >= IDLE_LIMIT {
            handle.close();
        }
        unused && handle.is_closed()
    };
    let silent = keepalive::until_silent(connection.ping_pong(), ending);
    tokio::select! {
        result = connection => match result {
            Ok(()) => {
                handle.close();
                kept.linger().await;
            }
            Err(error) => tracing::debug!(%address, %error, "hbone connection ended"),
        },
        () = silent => tracing::debug!(%address, "hbone peer does not answer"),
    }
    handle.close();
}

fn broken(address: SocketAddr, error: &h2::Error) -> Refusal {
    Refusal::new(Reason::TunnelBroken, format!("{address}: {error}"))
}
