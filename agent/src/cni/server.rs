//! The agent's part: answers the plugin, and keeps on disk what the plugin needs when nobody answers.

use std::{
    fs::File,
    future::Future,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use mesh_core::error::chain;
use mesh_net::admin::bind_unix;
use tokio::{
    net::UnixListener,
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::{
    known::Known,
    message::{self, Answer, Question, Verb},
};
use crate::{
    redirect::{AnyRedirector, Target},
    sandbox::Sandboxes,
};

/// Questions that are worked on at a time; more wait in the socket's queue.
const AT_ONCE: usize = 32;
/// How long a plugin may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a pod that the plugin asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It belongs into the mesh.
    In,
    /// It does not (why).
    Out(String),
    /// Nobody can say: its namespace decides.
    Unknown,
}

/// Who can say whether a pod belongs into the mesh.
pub trait Decide: Send + Sync + 'static {
    /// Decides; asks the API server when the watch has not told yet, within a limit of its own.
    fn decide<'a>(&'a self, pod: &'a Question) -> Pin<Box<dyn Future<Output = Decision> + Send + 'a>>;
}

/// See the module's description.
pub struct Server {
    /// Who decides.
    pub decide: Arc<dyn Decide>,
    /// Where namespaces are remembered.
    pub sandboxes: Arc<Sandboxes>,
    /// The kernel side.
    pub redirector: AnyRedirector,
    /// File of what was last known.
    pub known: PathBuf,
    /// Namespaces that never take part.
    pub excluded: Vec<String>,
}

/// Takes the socket over, whoever had it.
///
/// # Errors
/// Something that is no socket is there, or the folder cannot be written.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    bind_unix(path)
}

/// Answers until cancelled. The socket's file stays for the next agent to take over.
pub async fn serve(listener: UnixListener, server: Arc<Server>, cancel: CancellationToken) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => return,
        };
        match stream.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.converse(stream).await {
                        tracing::warn!(%error, "the CNI plugin's question was not answered");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the CNI plugin's socket cannot be read");
                // No descriptors are left: some are when others have finished.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Server {
    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let read = move || {
            let mut stream = stream;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let (question, file) = message::read(&mut stream)?;
            io::Result::Ok((stream, question, file))
        };
        let (mut stream, question, file) = spawn_blocking(read).await.map_err(io::Error::other)??;
        let answer = self.answer(&question, file).await;
        tracing::debug!(?question, ?answer, "CNI");
        spawn_blocking(move || message::answer(&mut stream, &answer)).await.map_err(io::Error::other)?
    }

    /// Answers a question; `file` is the sandbox's network namespace.
    pub async fn answer(&self, question: &Question, file: Option<File>) -> Answer {
        match question.verb {
            Verb::Status => Answer::Done,
            Verb::Del => {
                self.sandboxes.ended(&question.uid);
                Answer::Done
            }
            Verb::Check => match self.decision(question).await {
                Decision::Out(why) => Answer::Untouched(why),
                _ => self.check(question),
            },
            Verb::Add => {
                let Some(file) = file else {
                    return Answer::Failed("no network namespace came along".into());
                };
                self.add(question, file).await.unwrap_or_else(|error| Answer::Failed(error.to_string()))
            }
        }
    }

    /// Unknown turned into a decision by what is remembered.
    async fn decision(&self, question: &Question) -> Decision {
        if self.excluded.contains(&question.namespace) {
            return Decision::Out("its namespace is excluded by configuration".into());
        }
        match self.decide.decide(question).await {
            Decision::Unknown => {
                let known = Known::load(&self.known);
                match known.may_be_eligible(&question.namespace, &self.excluded) {
                    true => Decision::In,
                    false => Decision::Out("its namespace is not labelled for the mesh".into()),
                }
            }
            decision => decision,
        }
    }

    /// Closes the pod first and remembers its network then: who enrols it finds it closed.
    async fn add(&self, question: &Question, file: File) -> Result<Answer, JoinError> {
        if let Decision::Out(why) = self.decision(question).await {
            let kept = self.sandboxes.told(question.uid.as_str().into(), file, question.addresses.clone());
            return Ok(
                kept.map_or_else(|error| Answer::Failed(error.to_string()), |_| Answer::Untouched(why))
            );
        }
        let (redirector, sandboxes) = (self.redirector.clone(), self.sandboxes.clone());
        let (uid, addresses) = (Arc::from(question.uid.as_str()), question.addresses.clone());
        let close = move || {
            let target = Target::of(file.try_clone().map_err(|error| error.to_string())?, &addresses);
            let target = target.map_err(|error| chain(&error))?;
            if sandboxes.is_hosts(&file) {
                return Err("it is in the node's own network namespace".to_owned());
            }
            redirector.block(&target).map_err(|error| chain(&error))?;
            sandboxes.told(uid, file, addresses).map_err(|error| error.to_string())
        };
        Ok(match spawn_blocking(close).await? {
            Ok(_) => Answer::Captured,
            Err(why) => Answer::Failed(why),
        })
    }

    fn check(&self, question: &Question) -> Answer {
        let captured = match self.redirector.captured() {
            Ok(captured) => captured,
            Err(error) => return Answer::Failed(chain(&error)),
        };
        let is = |pod: &crate::bpf::Pod| {
            let own = [pod.v4.map(std::net::IpAddr::from), pod.v6.map(std::net::IpAddr::from)];
            question.addresses.iter().any(|ip| own.contains(&Some(*ip)))
        };
        match captured.iter().any(is) {
            true => Answer::Captured,
            false => {
                Answer::Failed("the pod belongs into the mesh and the kernel does not capture it".into())
            }
        }
    }
}
