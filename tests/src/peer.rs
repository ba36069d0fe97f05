//! A pod whose application is the test itself: real sockets of the pod, held by the test's process.

use std::{
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use socket2::Socket;

use crate::{process::Process, wait::scaled, world::Pod};

/// How long connecting and reading may take.
pub const PATIENCE: Duration = Duration::from_secs(8);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Hands out sockets of one pod.
struct Sockets {
    channel: Mutex<UnixStream>,
    _process: Process,
}

/// See the module's description.
#[derive(Clone)]
pub struct Peer {
    /// The pod.
    pub pod: Pod,
    sockets: Arc<Sockets>,
}

impl Peer {
    /// Starts the pod's helper, which makes its sockets.
    pub fn start(pod: Pod, programs: &Path, log: &Path) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = pod.command(&programs.join("culvert-sockets").to_string_lossy())?;
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        let process = Process::spawn(&mut command, log)?;
        ours.set_read_timeout(Some(scaled(PATIENCE)))?;
        Ok(Self { pod, sockets: Arc::new(Sockets { channel: Mutex::new(ours), _process: process }) })
    }

    /// The pod's address of the family of `like`.
    pub fn ip(&self, like: Family) -> IpAddr {
        let text = if like == Family::V4 { &self.pod.ip } else { &self.pod.ip6 };
        text.parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    }

    /// The pod's address with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// A fresh socket of the pod.
    pub fn socket(&self, family: Family) -> Result<Socket> {
        let mut channel = self.sockets.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.write_all(if family == Family::V4 { b"4" } else { b"6" })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&*channel, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let found = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok(Socket::from(found.context("the pod's helper sent no socket")?))
    }

    /// Listens on a port of all addresses of both families.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let socket = self.socket(Family::V6)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// Connects; reads and writes of the stream have a deadline.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = self.socket(family).map_err(io::Error::other)?;
        socket.connect_timeout(&to.into(), scaled(PATIENCE))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(scaled(PATIENCE)))?;
        stream.set_write_timeout(Some(scaled(PATIENCE)))?;
        Ok(stream)
    }
}

/// Family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families, to try everything with each.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
