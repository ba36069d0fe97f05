//! A data thread: one single-threaded runtime that owns its connections from accept to end.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    sync::Arc,
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
use serde_json::Value;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::{LocalSet, spawn_local},
};

use crate::{
    flow::Flows,
    inbound,
    listeners::Listeners,
    member::Member,
    netns::Home,
    outbound,
    record::{Families, Recorder},
    redirect::AnyRedirector,
};

/// Commands that may wait for a worker.
const COMMANDS: usize = 64;
/// How long accepting pauses when the process has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(20);
/// Tunnels without streams are closed at this interval.
const RELEASE_EVERY: Duration = Duration::from_secs(60);
/// Bytes of open flows reach metrics at this interval, and when a flow ends.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long a connection is held for the control plane to tell of a workload (as ztunnel).
const HOLD: Duration = Duration::from_secs(5);

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
    /// Counts the flows of the node.
    pub stop: Drain,
}

/// What a worker is asked.
enum Command {
    Serve(Arc<Member>, Listeners),
    Close(Arc<str>, Refusal),
    Show(usize, oneshot::Sender<Shown>),
}

/// What a worker shows of itself.
#[derive(Debug, Default)]
pub struct Shown {
    /// Open flows.
    pub flows: Vec<Value>,
    /// How many there are.
    pub open: usize,
    /// Tunnel connections that are kept.
    pub tunnels: usize,
}

/// The handle of a worker thread; it ends when the last handle is dropped.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Command>);

impl Handle {
    /// Accepts on a pod's listeners until the pod drains.
    pub async fn serve(&self, member: Arc<Member>, listeners: Listeners) {
        self.send(Command::Serve(member, listeners)).await;
    }

    /// Closes the flows of a pod (by uid).
    pub async fn close(&self, uid: Arc<str>, refusal: Refusal) {
        self.send(Command::Close(uid, refusal)).await;
    }

    /// What is open; at most `limit` flows in detail.
    pub async fn show(&self, limit: usize) -> Shown {
        let (answer, shown) = oneshot::channel();
        self.send(Command::Show(limit, answer)).await;
        shown.await.unwrap_or_default()
    }

    async fn send(&self, command: Command) {
        if self.0.send(command).await.is_err() {
            tracing::error!("a worker thread has ended");
        }
    }
}

/// Starts `count` worker threads.
///
/// # Errors
/// A thread or its runtime cannot be made.
pub fn start(count: usize, shared: &Shared) -> io::Result<Vec<Handle>> {
    (0..count.max(1)).map(|index| spawn(index, shared.clone())).collect()
}

fn spawn(index: usize, shared: Shared) -> io::Result<Handle> {
    let (send, commands) = mpsc::channel(COMMANDS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let home = Home::here()?;
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        LocalSet::new().block_on(&runtime, Worker::new(shared, home).run(commands));
    })?;
    Ok(Handle(send))
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
    snapshots: watch::Receiver<Arc<Snapshot>>,
    home: Home,
    certificates: RefCell<HashMap<Identity, (Arc<Issued>, WorkloadTls)>>,
    entropy: RefCell<SplitMix64>,
}

impl Worker {
    fn new(shared: Shared, home: Home) -> Rc<Self> {
        Rc::new(Self {
            redirector: shared.redirector,
            pool: Pool::default(),
            load: Rc::default(),
            flows: Flows::new(Recorder::new(shared.families), shared.max_flows, shared.stop),
            snapshots: shared.snapshots,
            home,
            certificates: RefCell::default(),
            entropy: RefCell::new(SplitMix64::new(rand::random())),
        })
    }

    async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        spawn_local(self.clone().follow());
        spawn_local(self.clone().release());
        spawn_local(self.clone().tell());
        while let Some(command) = commands.recv().await {
            match command {
                Command::Serve(member, listeners) => self.serve(&member, listeners),
                Command::Close(uid, refusal) => self.flows.close_pod(&uid, &refusal),
                Command::Show(limit, answer) => drop(answer.send(Shown {
                    flows: self.flows.show(limit),
                    open: self.flows.len(),
                    tunnels: self.pool.connections(),
                })),
            }
        }
    }

    /// Looks again at live flows and kept tunnels when the world changes.
    async fn follow(self: Rc<Self>) {
        let mut snapshots = self.snapshots.clone();
        let mut policies = snapshots.borrow_and_update().policy_version();
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            self.pool.retain(|key| snapshot.workload(&key.peer).is_some());
            if snapshot.policy_version() != policies {
                policies = snapshot.policy_version();
                self.flows.recheck(&snapshot);
            }
        }
    }

    async fn release(self: Rc<Self>) {
        loop {
            tokio::time::sleep(RELEASE_EVERY).await;
            self.pool.release_idle();
        }
    }

    async fn tell(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            self.flows.tell();
        }
    }

    fn serve(self: &Rc<Self>, member: &Arc<Member>, listeners: Listeners) {
        self.accept(member, listeners.outbound, |worker, member, tcp, client| async move {
            outbound::carry(&worker, &member, tcp, client).await;
        });
        self.accept(member, listeners.plaintext, |worker, member, tcp, client| async move {
            inbound::plaintext(&worker, &member, tcp, client).await;
        });
        self.accept(member, listeners.hbone, |worker, member, tcp, client| async move {
            inbound::hbone(&worker, &member, tcp, client).await;
        });
        let (worker, member) = (self.clone(), member.clone());
        spawn_local(async move {
            member.drain.forced().await;
            let refusal = Refusal::new(Reason::DrainDeadline, "the connection outlived its drain");
            worker.flows.close_pod(&member.info.uid, &refusal);
        });
    }

    fn accept<F, Fut>(self: &Rc<Self>, member: &Arc<Member>, listener: std::net::TcpListener, carry: F)
    where
        F: Fn(Rc<Self>, Arc<Member>, TcpStream, SocketAddr) -> Fut + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let (worker, member) = (self.clone(), member.clone());
        spawn_local(async move {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    return tracing::error!(pod = member.info.name(), %error, "listener is unusable");
                }
            };
            let asked = pin!(member.drain.asked());
            let mut asked = asked;
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = &mut asked => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((tcp, client)) => {
                        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                        spawn_local(carry(worker.clone(), member.clone(), tcp, client));
                    }
                    Err(error) => {
                        tracing::warn!(pod = member.info.name(), %error, "accept failed");
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                }
            }
        });
    }

    /// The world of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Takes a decision; one that fails because a workload is not known yet is taken again with each
    /// new snapshot, for [`HOLD`].
    ///
    /// # Errors
    /// The decision's.
    pub async fn decide<T>(&self, decision: impl Fn(&Snapshot) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let unknown = match decision(&self.snapshot()) {
            Err(refusal) if refusal.reason == Reason::WorkloadUnknown => refusal,
            result => return result,
        };
        let mut snapshots = self.snapshots.clone();
        let later = async {
            loop {
                let snapshot = snapshots.borrow_and_update().clone();
                match decision(&snapshot) {
                    Err(refusal) if refusal.reason == Reason::WorkloadUnknown => {}
                    result => return result,
                }
                if snapshots.changed().await.is_err() {
                    return decision(&snapshot);
                }
            }
        };
        tokio::time::timeout(HOLD, later).await.unwrap_or(Err(unknown))
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
            && Arc::ptr_eq(from, &issued)
        {
            return Ok(tls.clone());
        }
        let tls = WorkloadTls::new(&issued).map_err(|error| missing(error.to_string()))?;
        kept.insert(member.identity.clone(), (issued, tls.clone()));
        Ok(tls)
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

    fn socket(
        &self,
        member: &Member,
        make: impl FnOnce() -> io::Result<TcpSocket>,
    ) -> Result<TcpSocket, Refusal> {
        let socket = self.home.visit(&member.target.netns, make).map_err(|error| {
            Refusal::new(Reason::Internal, format!("no socket in pod {}: {error}", member.info.name()))
        })?;
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
