//! Accepting tunnels.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};
use mesh_core::{
    hbone::{Authority, status},
    identity::Identity,
    outcome::Reason,
};
use mesh_net::ca::{CertState, Issued};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{TunnelIo, tls};
use crate::{flow::Flow, peer::Peer, serve::serve, worker::Worker};

const HANDSHAKE: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const STREAMS: u32 = 200;

/// Accepts connections until the worker drains. Must run on a `LocalSet`.
pub async fn listen(worker: Rc<Worker>, listener: TcpListener, certificate: watch::Receiver<CertState>) {
    let mut current: Option<(Arc<Issued>, TlsAcceptor)> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.drain.cancelled() => return,
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(acceptor) = acceptor(&certificate, &mut current) else {
            worker.telemetry.families.refused(Reason::CertificateUnavailable);
            continue;
        };
        tokio::task::spawn_local(connection(worker.clone(), socket, address, acceptor));
    }
}

/// The acceptor for the certificate that is valid now; made anew after each rotation.
fn acceptor(
    certificate: &watch::Receiver<CertState>,
    current: &mut Option<(Arc<Issued>, TlsAcceptor)>,
) -> Option<TlsAcceptor> {
    let CertState::Ready(issued) = certificate.borrow().clone() else { return None };
    if let Some((_, acceptor)) = current.as_ref().filter(|(known, _)| Arc::ptr_eq(known, &issued)) {
        return Some(acceptor.clone());
    }
    let config = tls::server_config(&issued)
        .inspect_err(|error| tracing::error!(%error, "certificate refused"))
        .ok()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    *current = Some((issued, acceptor.clone()));
    Some(acceptor)
}

async fn connection(worker: Rc<Worker>, socket: TcpStream, address: SocketAddr, acceptor: TlsAcceptor) {
    let _ = socket.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            worker.telemetry.families.refused(Reason::TlsFailed);
            tracing::info!(src.addr = %address, %error, "tls handshake failed");
            return;
        }
        Err(_) => {
            worker.telemetry.families.refused(Reason::TlsFailed);
            return;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(identity) = certificate.and_then(tls::identity_of) else {
        worker.telemetry.families.refused(Reason::PeerIdentityRejected);
        return;
    };
    tunnels(worker, stream, address, identity).await;
}

/// Serves the CONNECT requests of one connection whose peer is known.
pub async fn tunnels<S>(worker: Rc<Worker>, io: S, address: SocketAddr, identity: Identity)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(64 * 1024);
    let Ok(Ok(mut connection)) = timeout(HANDSHAKE, builder.handshake::<_, Bytes>(io)).await else {
        worker.telemetry.families.refused(Reason::BadRequest);
        return;
    };
    let peer = Rc::new(Peer::new(address, identity, &worker.world().snapshot));
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            () = worker.drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match next {
            Some(Ok((request, respond))) => open(&worker, &peer, request, respond),
            Some(Err(error)) => {
                tracing::debug!(src.addr = %address, %error, "tunnel connection ended");
                return;
            }
            None => return,
        }
    }
}

fn open(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    match target(worker, peer, &request) {
        Ok(flow) => match respond.send_response(Response::new(()), false) {
            Ok(send) => {
                let io = TunnelIo::new(send, request.into_body());
                tokio::task::spawn_local(serve(worker.clone(), flow, Box::new(io)));
            }
            Err(error) => tracing::debug!(%error, "client left before the answer"),
        },
        Err((code, reason, detail)) => {
            worker.telemetry.families.refused(reason);
            tracing::info!(
                src.addr = %peer.address,
                src.identity = %peer.identity,
                reason = reason.as_str(),
                detail,
                "tunnel refused"
            );
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
            let _ = respond.send_response(response, true);
        }
    }
}

fn target(
    worker: &Worker,
    peer: &Rc<Peer>,
    request: &Request<RecvStream>,
) -> Result<Flow, (u16, Reason, String)> {
    let bad = |detail: &str| (400, Reason::BadRequest, detail.to_owned());
    if request.method() != Method::CONNECT {
        return Err((404, Reason::BadRequest, format!("method {}", request.method())));
    }
    let authority = request.uri().authority().ok_or_else(|| bad("no authority"))?;
    let authority: Authority = authority.as_str().parse().map_err(|_| bad("authority is malformed"))?;
    let flow = Flow::resolve(&worker.world(), peer.clone(), &authority);
    flow.map_err(|refusal| (status(refusal.reason), refusal.reason, refusal.detail))
}
