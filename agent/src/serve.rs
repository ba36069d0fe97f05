//! The data threads: one single-threaded runtime each, which owns its connections from accept to end.

use std::{future::Future, io, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Duration};

use mesh_core::outcome::{Reason, Refusal};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{LocalSet, spawn_local},
    time::Instant,
};

use crate::{inbound, listeners::Listeners, member::Member, netns::Home, outbound, worker::Worker};

pub use crate::worker::Shared;

/// Commands that may wait for a worker.
const COMMANDS: usize = 64;
/// How long accepting pauses when the process has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(20);
/// Ended tunnels and keys that are not needed are forgotten at this interval.
const RELEASE_EVERY: Duration = Duration::from_secs(60);
/// Bytes of open flows reach metrics at this interval, and when a flow ends.
const TELL_EVERY: Duration = Duration::from_secs(5);

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
        LocalSet::new().block_on(&runtime, run(Worker::new(shared, home), commands));
    })?;
    Ok(Handle(send))
}

async fn run(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    spawn_local(follow(worker.clone()));
    spawn_local(release(worker.clone()));
    spawn_local(tell(worker.clone()));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Serve(member, listeners) => serve(&worker, &member, listeners),
            Command::Close(uid, refusal) => worker.flows.close_pod(&uid, &refusal),
            Command::Show(limit, answer) => drop(answer.send(Shown {
                flows: worker.flows.show(limit),
                open: worker.flows.len(),
                tunnels: worker.pool.connections(),
            })),
        }
    }
}

/// Looks again at live flows and kept tunnels when the world changes, and at flows that wait for a policy
/// when their time is over.
async fn follow(worker: Rc<Worker>) {
    let mut snapshots = worker.snapshots.clone();
    let mut policies = snapshots.borrow_and_update().policy_version();
    let mut again = None;
    loop {
        let overdue = async move {
            match again {
                Some(at) => tokio::time::sleep_until(Instant::from_std(at)).await,
                None => std::future::pending().await,
            }
        };
        let due = tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = overdue => true,
        };
        let snapshot = snapshots.borrow_and_update().clone();
        worker.pool.retain(|key| snapshot.workload(&key.peer).is_some());
        if due || snapshot.policy_version() != policies {
            policies = snapshot.policy_version();
            again = worker.flows.recheck(&snapshot, std::time::Instant::now());
        }
    }
}

async fn release(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(RELEASE_EVERY).await;
        worker.release();
    }
}

async fn tell(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        worker.flows.tell();
    }
}

fn serve(worker: &Rc<Worker>, member: &Arc<Member>, listeners: Listeners) {
    accept(worker, member, listeners.outbound, |worker, member, tcp, client| async move {
        outbound::carry(&worker, &member, tcp, client).await;
    });
    accept(worker, member, listeners.plaintext, |worker, member, tcp, client| async move {
        inbound::plaintext(&worker, &member, tcp, client).await;
    });
    accept(worker, member, listeners.hbone, |worker, member, tcp, client| async move {
        inbound::hbone(&worker, &member, tcp, client).await;
    });
    let (worker, member) = (worker.clone(), member.clone());
    spawn_local(async move {
        member.drain.forced().await;
        let refusal = Refusal::new(Reason::DrainDeadline, "the connection outlived its drain");
        worker.flows.close_member(&member, &refusal);
    });
}

fn accept<F, Fut>(worker: &Rc<Worker>, member: &Arc<Member>, listener: std::net::TcpListener, carry: F)
where
    F: Fn(Rc<Worker>, Arc<Member>, TcpStream, SocketAddr) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let (worker, member) = (worker.clone(), member.clone());
    spawn_local(async move {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                return tracing::error!(pod = member.info.name(), %error, "listener is unusable");
            }
        };
        let mut asked = pin!(member.drain.asked());
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
