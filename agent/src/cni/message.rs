//! What the plugin asks the agent: one JSON value and, for a new sandbox, the descriptor of its network
//! namespace; one JSON value comes back. Over a Unix socket that only root may use.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Shutdown},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Largest message, in bytes.
const LARGEST: usize = 64 << 10;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// A sandbox has its network and no container yet.
    Add,
    /// Is it as it should be?
    Check,
    /// Its network ends.
    Del,
    /// Is anybody there?
    Status,
}

/// A question about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What is asked.
    pub verb: Verb,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod as the kubelet knows it.
    pub uid: String,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "reason")]
pub enum Answer {
    /// It does not belong into the mesh (why).
    Untouched(String),
    /// It is captured: blocked until it is enrolled.
    Captured,
    /// Done.
    Done,
    /// It belongs, or may belong, into the mesh and could not be captured (why).
    Failed(String),
}

/// Asks the agent.
///
/// # Errors
/// Nobody listens, or no answer came within the limit.
pub fn ask(socket: &Path, question: &Question, netns: Option<&File>, limit: Duration) -> io::Result<Answer> {
    let mut stream = connect(socket, limit)?;
    let text = serde_json::to_vec(question)?;
    let descriptors: Vec<_> = netns.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(&stream, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&text[sent..])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(LARGEST as u64).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Connects within the limit, which holds for each read and write afterwards too.
fn connect(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    // A listener whose queue is full blocks a connect for as long as it may send.
    let socket2 = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket2.set_write_timeout(Some(limit))?;
    socket2.set_read_timeout(Some(limit))?;
    socket2.connect(&socket2::SockAddr::unix(socket)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket2)))
}

/// Reads a question and the descriptor that came with it.
///
/// # Errors
/// It is too long or none, or did not come within the stream's limit.
pub fn read(stream: &mut UnixStream) -> io::Result<(Question, Option<File>)> {
    let mut text = vec![0; LARGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        recvmsg(&*stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    text.truncate(message.bytes);
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next().map(File::from),
        _ => None,
    });
    stream.take((LARGEST - text.len()) as u64).read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, file))
}

/// Answers.
///
/// # Errors
/// The other side is gone.
pub fn answer(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(answer)?)?;
    stream.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    fn question() -> Question {
        Question {
            verb: Verb::Add,
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u1".into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
        }
    }

    #[test]
    fn a_question_carries_the_namespace_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cni.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (asked, file) = read(&mut stream).unwrap();
            answer(&mut stream, &Answer::Untouched("as told".into())).unwrap();
            (asked, crate::netns::Held::new(file.unwrap()).unwrap())
        });
        let own = File::open("/proc/self/ns/net").unwrap();
        let answered = ask(&path, &question(), Some(&own), Duration::from_secs(5)).unwrap();
        assert_eq!(answered, Answer::Untouched("as told".into()));
        let (asked, held) = agent.join().unwrap();
        assert_eq!(asked, question());
        assert_eq!(held, crate::netns::Held::new(own).unwrap());
    }

    #[test]
    fn an_agent_that_is_away_or_silent_is_noticed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cni.sock");
        assert!(ask(&path, &question(), None, Duration::from_secs(5)).is_err());
        let _silent = UnixListener::bind(&path).unwrap();
        assert!(ask(&path, &question(), None, Duration::from_millis(50)).is_err());
    }
}
