//! Opening tunnels to endpoints, with the waypoint's own identity. One HTTP/2 connection per endpoint
//! and worker; concurrent first requests share its handshake.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use h2::client::SendRequest;
use http::{Method, Request};
use mesh_core::{
    balance::Endpoint,
    hbone,
    model::{Tunnel, Workload, WorkloadUid},
    outbound::HBONE_PORT,
    outcome::{Reason, Refusal},
};
use mesh_net::ca::CertState;
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
};
use tokio_rustls::TlsConnector;

use super::{TunnelIo, tls};
use crate::{
    io::BoxIo,
    peer::Peer,
    upstream::{Dial, address},
};

type Slot = Rc<Mutex<Option<SendRequest<Bytes>>>>;

/// The tunnels of one worker.
pub struct Tunnels {
    certificate: watch::Receiver<CertState>,
    own: Arc<Workload>,
    port: u16,
    slots: RefCell<HashMap<(WorkloadUid, IpAddr), Slot>>,
}

impl Tunnels {
    /// No tunnels yet; `own` describes the waypoint to its peers.
    pub fn new(certificate: watch::Receiver<CertState>, own: Arc<Workload>) -> Self {
        Self { certificate, own, port: HBONE_PORT, slots: RefCell::default() }
    }

    /// Uses another port than 15008, for tests.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    async fn tunnel(&self, endpoint: &Endpoint, client: &Peer) -> Result<BoxIo, Refusal> {
        let target = address(endpoint)?;
        let key = (endpoint.workload.uid.clone(), target.ip());
        let slot = self.slots.borrow_mut().entry(key).or_default().clone();
        let mut attempt = 0;
        loop {
            let sender = self.sender(&slot, endpoint, target).await?;
            match self.connect(sender, target, client).await {
                Ok(io) => return Ok(io),
                // A kept connection may have ended meanwhile: once more, on a new one.
                Err((_, true)) if attempt == 0 => {
                    attempt += 1;
                    slot.lock().await.take();
                }
                Err((refusal, _)) => return Err(refusal),
            }
        }
    }

    async fn sender(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
        target: SocketAddr,
    ) -> Result<SendRequest<Bytes>, Refusal> {
        let mut kept = slot.lock().await;
        if let Some(sender) = kept.as_ref() {
            return Ok(sender.clone());
        }
        let hop = SocketAddr::new(target.ip(), self.port);
        let socket = tcp(hop).await?;
        let CertState::Ready(own) = self.certificate.borrow().clone() else {
            return Err(Refusal::new(Reason::CertificateUnavailable, self.own.identity().to_string()));
        };
        let failed = |reason, error: &dyn std::fmt::Display| Refusal::new(reason, format!("{hop}: {error}"));
        let config = tls::client_config(&own, endpoint.workload.identity())
            .map_err(|e| failed(Reason::Internal, &e))?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(hop.ip().into(), socket).await.map_err(|e| {
            let detail = format!("{e} (expected {})", endpoint.workload.identity());
            failed(Reason::TlsFailed, &detail)
        })?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20).enable_push(false);
        let (sender, connection) =
            builder.handshake(stream).await.map_err(|e| failed(Reason::TunnelBroken, &e))?;
        let forget = Rc::downgrade(slot);
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "tunnel ended");
            }
            if let Some(slot) = forget.upgrade() {
                slot.lock().await.take();
            }
        });
        *kept = Some(sender.clone());
        Ok(sender)
    }

    /// The flag says whether nothing was sent, so that a new connection may help.
    async fn connect(
        &self,
        sender: SendRequest<Bytes>,
        target: SocketAddr,
        client: &Peer,
    ) -> Result<BoxIo, (Refusal, bool)> {
        let broken = |e: h2::Error| Refusal::new(Reason::TunnelBroken, format!("{target}: {e}"));
        let mut sender = sender.ready().await.map_err(|e| (broken(e), true))?;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(target.to_string())
            .header("baggage", hbone::baggage(&self.own))
            .header("forwarded", hbone::forwarded(client.address, None))
            .body(())
            .map_err(|e| (Refusal::new(Reason::Internal, e.to_string()), false))?;
        let (response, send) = sender.send_request(request, false).map_err(|e| (broken(e), true))?;
        let response = response.await.map_err(|e| {
            let fresh = e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM);
            (broken(e), fresh)
        })?;
        if response.status() != http::StatusCode::OK {
            let detail = format!("{target}: status {}", response.status());
            return Err((Refusal::new(Reason::TunnelRefused, detail), false));
        }
        Ok(Box::new(TunnelIo::new(send, response.into_body())))
    }
}

impl Dial for Tunnels {
    fn dial<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        client: &'a Peer,
    ) -> LocalBoxFuture<'a, Result<BoxIo, Refusal>> {
        Box::pin(async move {
            match endpoint.workload.tunnel {
                Tunnel::Hbone => self.tunnel(endpoint, client).await,
                Tunnel::None => Ok(Box::new(tcp(address(endpoint)?).await?) as BoxIo),
            }
        })
    }
}

async fn tcp(to: SocketAddr) -> Result<TcpStream, Refusal> {
    let failed = |e: std::io::Error| Refusal::new(Reason::ConnectFailed, format!("{to}: {e}"));
    let socket = TcpStream::connect(to).await.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    Ok(socket)
}
