//! Opening tunnels to endpoints, with the waypoint's own identity.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures_util::future::LocalBoxFuture;
use mesh_core::{
    balance::Endpoint,
    entropy::SplitMix64,
    hbone::{Authority, TraceParent, baggage, forwarded},
    identity::Identity,
    model::{Tunnel, Workload, WorkloadUid},
    outbound::HBONE_PORT,
    outcome::{Reason, Refusal},
};
use mesh_net::{
    ca::{CertState, Issued},
    dial,
    hbone::{
        client::{Client, Head},
        pool::{Key, Pool},
    },
    resolve::resolve,
    tls::WorkloadTls,
};
use tokio::{net::TcpStream, sync::watch};

use super::stream::TunnelIo;
use crate::{
    io::BoxIo,
    upstream::{Dial, Hop},
};

/// The certificate that is valid now, prepared once after each rotation.
pub(super) struct Current {
    certificate: watch::Receiver<CertState>,
    prepared: RefCell<Option<(Arc<Issued>, WorkloadTls)>>,
}

impl Current {
    pub(super) fn new(certificate: watch::Receiver<CertState>) -> Self {
        Self { certificate, prepared: RefCell::default() }
    }

    /// # Errors
    /// `CertificateUnavailable`: there is none yet, it has expired, or it cannot be used.
    pub(super) fn tls(&self) -> Result<WorkloadTls, Refusal> {
        let CertState::Ready(issued) = self.certificate.borrow().clone() else {
            return Err(Refusal::new(Reason::CertificateUnavailable, "the waypoint has no certificate"));
        };
        let mut prepared = self.prepared.borrow_mut();
        if let Some((_, tls)) = prepared.as_ref().filter(|(known, _)| Arc::ptr_eq(known, &issued)) {
            return Ok(tls.clone());
        }
        let unusable = |error| Refusal::new(Reason::CertificateUnavailable, format!("{error}"));
        let tls = WorkloadTls::new(&issued).map_err(unusable)?;
        *prepared = Some((issued, tls.clone()));
        Ok(tls)
    }
}

/// The tunnels of one worker.
pub struct Tunnels {
    current: Current,
    identity: Identity,
    from: IpAddr,
    baggage: String,
    port: u16,
    pool: Pool,
}

impl Tunnels {
    /// No tunnels yet; `own` describes the waypoint to its peers.
    pub fn new(certificate: watch::Receiver<CertState>, own: &Workload) -> Self {
        Self {
            current: Current::new(certificate),
            identity: own.identity(),
            from: own.addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0])),
            baggage: baggage(own),
            port: HBONE_PORT,
            pool: Pool::default(),
        }
    }

    /// Uses another port than 15008, for tests.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    async fn tunnel(&self, hop: Hop<'_>) -> Result<BoxIo, Refusal> {
        let (target, authority) = target(hop.endpoint).await?;
        let there = SocketAddr::new(target.ip(), self.port);
        // As agents do: its own identity, or one that the service names for its endpoints.
        let mut expected = vec![hop.endpoint.workload.identity()];
        expected.extend(hop.service.into_iter().flat_map(|s| s.subject_alt_names.iter().cloned()));
        let key = Key {
            source: self.identity.clone(),
            from: self.from,
            peer: hop.endpoint.workload.uid.clone(),
            expected: expected.clone(),
            address: there,
        };
        let head = Head {
            baggage: Some(self.baggage.clone()),
            forwarded: Some(forwarded(hop.client.address, hop.service.map(|s| &*s.key.hostname))),
            traceparent: Some(TraceParent::random(&mut SplitMix64::new(rand::random())).to_string()),
        };
        let stream = self.pool.open(key, &authority, head, || self.connect(there, &expected)).await?;
        Ok(Box::new(TunnelIo::new(stream)))
    }

    async fn connect(&self, there: SocketAddr, expected: &[Identity]) -> Result<Client, Refusal> {
        let tls = self.current.tls()?;
        let connector = tls
            .connector(expected)
            .map_err(|error| Refusal::new(Reason::Internal, format!("{there}: {error}")))?;
        Client::handshake(tcp(there).await?, there, &connector).await
    }
}

impl Dial for Tunnels {
    fn dial<'a>(&'a self, hop: Hop<'a>) -> LocalBoxFuture<'a, Result<BoxIo, Refusal>> {
        Box::pin(async move {
            match hop.endpoint.workload.tunnel {
                Tunnel::Hbone => self.tunnel(hop).await,
                Tunnel::None => Ok(Box::new(tcp(target(hop.endpoint).await?.0).await?) as BoxIo),
            }
        })
    }

    fn retain(&self, known: &dyn Fn(&WorkloadUid) -> bool) {
        self.pool.retain(|key| known(&key.peer));
    }

    fn release_idle(&self) {
        self.pool.release_idle();
    }
}

/// Where an endpoint is and how it is called: by its address, or by its name if it has none.
async fn target(endpoint: &Endpoint) -> Result<(SocketAddr, Authority), Refusal> {
    let Endpoint { workload, port } = endpoint;
    if let Some(ip) = workload.addresses.first() {
        let address = SocketAddr::new(*ip, *port);
        return Ok((address, Authority::Address(address)));
    }
    if workload.hostname.is_empty() {
        let detail = format!("workload {} has neither address nor name", workload.uid);
        return Err(Refusal::new(Reason::NoHealthyEndpoint, detail));
    }
    let address = resolve(&workload.hostname, *port, true).await?;
    Ok((address, Authority::Host(workload.hostname.clone(), *port)))
}

async fn tcp(to: SocketAddr) -> Result<TcpStream, Refusal> {
    let failed = |error| Refusal::new(Reason::ConnectFailed, format!("{to}: {error}"));
    dial::connect(dial::socket(to, None).map_err(failed)?, to).await
}
