//! Accepting tunnels.

use std::{cell::RefCell, net::SocketAddr, pin::pin, rc::Rc, time::Duration};

use mesh_core::{
    hbone::status,
    outcome::{Reason, Refusal},
};
use mesh_net::{
    ca::CertState,
    dial,
    hbone::server::{self, Connect},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{interval, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{client::Current, stream::TunnelIo};
use crate::{flow::Flow, peer::Peer, serve::serve, worker::Worker};

/// How long a connection may take from TCP to its first request; it holds a task and buffers.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How often upstream connections that nobody uses are closed.
const SWEEP: Duration = Duration::from_secs(60);

/// Accepts connections until the worker drains. Must run on a `LocalSet`.
pub async fn listen(worker: Rc<Worker>, listener: TcpListener, certificate: watch::Receiver<CertState>) {
    let current = Current::new(certificate);
    let mut sweep = interval(SWEEP);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweep.tick() => {
                worker.sweep();
                continue;
            }
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
        match current.tls() {
            Ok(tls) => {
                tokio::task::spawn_local(connection(worker.clone(), socket, address, tls.acceptor()));
            }
            Err(refusal) => refused(&worker, address, &refusal),
        }
    }
}

fn refused(worker: &Worker, address: SocketAddr, refusal: &Refusal) {
    worker.telemetry.families.refused(refusal.reason);
    let (reason, detail) = (refusal.reason.as_str(), &refusal.detail);
    tracing::info!(src.addr = %address, reason, detail, "connection refused");
}

async fn connection(worker: Rc<Worker>, socket: TcpStream, address: SocketAddr, acceptor: TlsAcceptor) {
    if let Err(error) = dial::prepare(&socket) {
        tracing::debug!(src.addr = %address, %error, "socket options refused");
    }
    let client = Rc::new(Client { address, peer: RefCell::default() });
    let (known, serving) = (client.clone(), worker.clone());
    let handle = move |connect| open(serving.clone(), known.clone(), connect);
    let mut served = pin!(server::serve(socket, address, &acceptor, worker.drain.clone(), handle));
    let ended = match timeout(FIRST_REQUEST, &mut served).await {
        Ok(ended) => ended,
        Err(_) if client.peer.borrow().is_none() => {
            let detail = format!("no request within {FIRST_REQUEST:?}");
            return refused(&worker, address, &Refusal::new(Reason::TlsFailed, detail));
        }
        Err(_) => served.await,
    };
    if let Err(error) = ended {
        refused(&worker, address, &Refusal::new(error.reason(), error.to_string()));
    }
}

/// One connection's client.
struct Client {
    address: SocketAddr,
    peer: RefCell<Option<Rc<Peer>>>,
}

impl Client {
    /// What is known of it now. The same value as before unless its workload has changed: metrics
    /// handles are kept per value.
    fn peer(&self, worker: &Worker, connect: &Connect) -> Rc<Peer> {
        let fresh = Peer::new(self.address, (*connect.identity).clone(), &worker.world().snapshot);
        let mut peer = self.peer.borrow_mut();
        match peer.as_ref().filter(|known| known.is_same(&fresh)) {
            Some(known) => known.clone(),
            None => peer.insert(Rc::new(fresh)).clone(),
        }
    }
}

/// Answers one request; a future because `mesh_net` runs it as a task.
async fn open(worker: Rc<Worker>, client: Rc<Client>, connect: Connect) {
    let peer = client.peer(&worker, &connect);
    let flow = match Flow::resolve(&worker.world(), peer, &connect.authority) {
        Ok(flow) => flow,
        Err(refusal) => {
            refused(&worker, client.address, &refusal);
            return connect.refuse(status(refusal.reason));
        }
    };
    match connect.accept(None) {
        Ok(stream) => serve(worker, flow, Box::new(TunnelIo::new(stream))).await,
        Err(error) => tracing::debug!(src.addr = %client.address, %error, "client left before the answer"),
    }
}
