//! Connecting to applications and peers, from an address that need not be ours.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::outcome::{Reason, Refusal};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Mark of connections from an address that is not ours: answers to them carry it too, so that they
/// can be routed back (`tcp_fwmark_accept`).
pub const MARK: u32 = 0x539;
/// Time for connecting.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a socket in the calling thread's network namespace; with `from`, a marked one that connects
/// from that address even if it is not local (needs CAP_NET_ADMIN).
///
/// # Errors
/// The kernel's.
pub fn socket(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = bound(to, from)?;
    tune(&socket)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn bound(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.set_mark(MARK)?;
        // The option of IPv4 covers the socket as a whole, IPv6 included.
        socket.set_ip_transparent_v4(true)?;
        // The port is chosen at connect, so that it need only be unique for the destination.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    Ok(socket)
}

/// As [`socket`], for an application in the same namespace: the kernel tells at once when it is gone,
/// so nothing is kept alive.
///
/// # Errors
/// The kernel's.
pub fn local_socket(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = bound(to, from)?;
    socket.set_tcp_nodelay(true)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Connects a socket of [`socket`].
///
/// # Errors
/// `ConnectTimeout` after [`CONNECT_TIMEOUT`], `ConnectFailed`.
pub async fn connect(socket: TcpSocket, to: SocketAddr) -> Result<TcpStream, Refusal> {
    match timeout(CONNECT_TIMEOUT, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Refusal::new(Reason::ConnectFailed, format!("{to}: {error}"))),
        Err(_) => Err(Refusal::new(Reason::ConnectTimeout, format!("{to} within {CONNECT_TIMEOUT:?}"))),
    }
}

/// Prepares an accepted connection: no delay, keepalive as Istio's (180 s, 180 s, 9).
///
/// # Errors
/// The kernel's.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    tune(&SockRef::from(stream))
}

/// No delay, and keepalive as Istio's.
pub(crate) fn tune(socket: &Socket) -> io::Result<()> {
    let every = Duration::from_secs(180);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(every).with_interval(every).with_retries(9);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, TcpListener},
        os::fd::AsFd,
    };

    use super::*;

    /// Whether keepalive is on, and its time, interval and probes.
    fn keepalive(socket: &impl AsFd) -> (bool, Duration, Duration, u32) {
        let socket = SockRef::from(socket);
        let (time, interval) = (socket.tcp_keepalive_time(), socket.tcp_keepalive_interval());
        let probes = socket.tcp_keepalive_retries().unwrap();
        (socket.keepalive().unwrap(), time.unwrap(), interval.unwrap(), probes)
    }

    const ISTIOS: (bool, Duration, Duration, u32) =
        (true, Duration::from_secs(180), Duration::from_secs(180), 9);

    #[tokio::test]
    async fn accepted_and_dialled_connections_have_istios_keepalive_and_those_to_the_application_none() {
        for local in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let listener: TcpListener = crate::listen::listen(0, false).unwrap();
            let to = SocketAddr::new(local, listener.local_addr().unwrap().port());
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let dialled = connect(socket(to, None).unwrap(), to).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            for stream in [&dialled, &accepted] {
                assert_eq!(keepalive(stream), ISTIOS, "{local}");
                assert!(stream.nodelay().unwrap());
            }
            let application = connect(local_socket(to, None).unwrap(), to).await.unwrap();
            assert!(!keepalive(&application).0, "its end is in the same kernel");
            assert!(application.nodelay().unwrap());
        }
    }
}
