//! What one data thread owns, and what its flows ask of it: a decision, a certificate, a socket.

mod hold;

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use mesh_core::{
    entropy::{Entropy, SplitMix64},
    identity::Identity,
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
};
use mesh_net::{
    ca::{CertState, Issued},
    dial,
    hbone::pool::Pool,
    load::Load,
    task::Drain,
    tls::WorkloadTls,
};
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch,
};

use crate::{
    flow::{Families, Flows, Recorder},
    member::Member,
    netns::Home,
    redirect::AnyRedirector,
    tunnels::Tunnels,
};

/// What every worker shares.
#[derive(Clone)]
pub struct Shared {
    /// Redirection.
    pub redirector: AnyRedirector,
    /// Snapshots.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Metrics.
    pub families: Families,
    /// Most flows per worker.
    pub max_flows: usize,
    /// Most connections to 15008 per worker.
    pub max_tunnels: usize,
    /// Counts the flows of the node.
    pub stop: Drain,
}

/// What one thread owns. No locks; nothing of it leaves the thread.
pub struct Worker {
    /// Redirection.
    pub redirector: AnyRedirector,
    /// Tunnels.
    pub pool: Pool,
    /// Flows per endpoint.
    pub load: Rc<Load>,
    /// Open flows.
    pub flows: Rc<Flows>,
    /// Tunnels that peers have opened.
    pub tunnels: Rc<Tunnels>,
    /// Snapshots.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    home: Home,
    certificates: RefCell<HashMap<Identity, (Weak<Issued>, WorkloadTls)>>,
    entropy: RefCell<SplitMix64>,
}

impl Worker {
    /// Starts with nothing open; `home` is the thread's own network namespace.
    pub fn new(shared: Shared, home: Home) -> Rc<Self> {
        Rc::new(Self {
            redirector: shared.redirector,
            pool: Pool::default(),
            load: Rc::default(),
            flows: Flows::new(Recorder::new(shared.families), shared.max_flows, shared.stop),
            tunnels: Tunnels::new(shared.max_tunnels),
            snapshots: shared.snapshots,
            home,
            certificates: RefCell::default(),
            entropy: RefCell::new(SplitMix64::new(rand::random())),
        })
    }

    /// The world of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Takes a decision; one that fails because something is not known yet is taken again with each new
    /// snapshot, for [`Reason::hold`].
    ///
    /// # Errors
    /// The decision's.
    pub async fn decide<T>(&self, decision: impl Fn(&Snapshot) -> Result<T, Refusal>) -> Result<T, Refusal> {
        hold::decide(&self.snapshots, decision).await
    }

    /// A fresh source of randomness for one decision.
    pub fn entropy(&self) -> SplitMix64 {
        SplitMix64::new(self.entropy.borrow_mut().next_u64())
    }

    /// The TLS of a pod, from its newest certificate.
    ///
    /// # Errors
    /// `CertificateUnavailable`.
    pub fn tls(&self, member: &Member) -> Result<WorkloadTls, Refusal> {
        let missing =
            |why: String| Refusal::new(Reason::CertificateUnavailable, format!("{}: {why}", member.identity));
        let issued = match &*member.certificate.borrow() {
            CertState::Ready(issued) => issued.clone(),
            CertState::Pending => return Err(missing("the certificate is being requested".into())),
            CertState::Unavailable(error) => return Err(missing(error.to_string())),
        };
        let mut kept = self.certificates.borrow_mut();
        if let Some((from, tls)) = kept.get(&member.identity)
            && from.as_ptr() == Arc::as_ptr(&issued)
        {
            return Ok(tls.clone());
        }
        let tls = WorkloadTls::new(&issued).map_err(|error| missing(error.to_string()))?;
        kept.insert(member.identity.clone(), (Arc::downgrade(&issued), tls.clone()));
        Ok(tls)
    }

    /// Forgets ended tunnels, and keys that nobody holds any more: replaced, or of pods that are gone.
    pub fn release(&self) {
        self.pool.release_idle();
        self.certificates.borrow_mut().retain(|_, (issued, _)| issued.strong_count() > 0);
    }

    /// Connects from inside a pod's namespace, not captured.
    ///
    /// # Errors
    /// `ConnectFailed`, `ConnectTimeout`, `Internal`.
    pub async fn connect(&self, member: &Member, to: SocketAddr) -> Result<TcpStream, Refusal> {
        let socket = self.socket(member, || dial::socket(to, None))?;
        dial::connect(socket, to).await
    }

    /// Connects to a pod's application, from the client's address.
    ///
    /// # Errors
    /// As [`Worker::connect`].
    pub async fn reach(
        &self,
        member: &Member,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<TcpStream, Refusal> {
        let socket = self.socket(member, || dial::local_socket(to, from))?;
        dial::connect(socket, to).await
    }

    /// As [`Worker::reach`], for a client whose own connections end in the pod's namespace.
    ///
    /// # Errors
    /// As [`Worker::connect`].
    pub async fn reach_beside(
        &self,
        member: &Member,
        to: SocketAddr,
        from: IpAddr,
    ) -> Result<TcpStream, Refusal> {
        for _ in 0..dial::BESIDE_TRIES {
            let random = self.entropy.borrow_mut().next_u64();
            let made = self.home.visit(&member.target.netns, || dial::beside_client(to, from, random));
            let connected = match made {
                Ok(socket) => dial::connect_io(self.exempt(socket)?, to).await,
                Err(error) => Err(error),
            };
            match connected {
                Err(error) if dial::is_taken(&error) => {}
                result => return result.map_err(|error| dial::refusal(to, &error)),
            }
        }
        // They are all in use: the kernel finds one.
        self.reach(member, to, Some(from)).await
    }

    fn socket(
        &self,
        member: &Member,
        make: impl FnOnce() -> io::Result<TcpSocket>,
    ) -> Result<TcpSocket, Refusal> {
        let socket = self.home.visit(&member.target.netns, make).map_err(|error| {
            Refusal::new(Reason::Internal, format!("no socket in pod {}: {error}", member.info.name()))
        })?;
        self.exempt(socket)
    }

    fn exempt(&self, socket: TcpSocket) -> Result<TcpSocket, Refusal> {
        self.redirector.exempt(&SockRef::from(&socket)).map_err(|error| {
            Refusal::new(Reason::LimitReached, format!("socket cannot be exempted: {error}"))
        })?;
        Ok(socket)
    }
}

/// Closes a connection with a reset, so that the client sees a failure and no end of data.
pub fn reset(tcp: &TcpStream) {
    if let Err(error) = SockRef::from(tcp).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "connection cannot be reset");
    }
}
