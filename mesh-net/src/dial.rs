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

fn unbound(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Lets a socket have an address that is not local.
fn borrow_address(socket: &Socket) -> io::Result<()> {
    socket.set_mark(MARK)?;
    // The option of IPv4 covers the socket as a whole, IPv6 included.
    socket.set_ip_transparent_v4(true)
}

fn bound(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Socket> {
    let socket = unbound(to)?;
    if let Some(from) = from {
        borrow_address(&socket)?;
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

/// Ports above those that clients take by default (`net.ipv4.ip_local_port_range`), see [`beside_client`].
const BESIDE: std::ops::RangeInclusive<u16> = 61_000..=65_535;
/// So many of them are tried.
pub const BESIDE_TRIES: usize = 8;

/// As [`local_socket`], for a client whose own connections end in the same namespace: from one of the ports that
/// clients do not take, the `random`th. With a client's port both connections would have the same four numbers,
/// and the packets of one would arrive at the other.
///
/// # Errors
/// The kernel's; `AddrInUse` when the port is taken.
pub fn beside_client(to: SocketAddr, from: IpAddr, random: u64) -> io::Result<TcpSocket> {
    let socket = unbound(to)?;
    borrow_address(&socket)?;
    // Many destinations may be reached from one port.
    socket.set_reuse_address(true)?;
    let (first, count) = (*BESIDE.start(), u64::from(BESIDE.end() - BESIDE.start()) + 1);
    let port = first + u16::try_from(random % count).unwrap_or_default();
    socket.bind(&SocketAddr::new(from, port).into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Whether another port of one's own would do.
pub fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Connects a socket of [`socket`].
///
/// # Errors
/// `ConnectTimeout` after [`CONNECT_TIMEOUT`], `ConnectFailed`.
pub async fn connect(socket: TcpSocket, to: SocketAddr) -> Result<TcpStream, Refusal> {
    connect_io(socket, to).await.map_err(|error| refusal(to, &error))
}

/// As [`connect`], with the kernel's own words.
///
/// # Errors
/// The kernel's; `TimedOut` after [`CONNECT_TIMEOUT`].
pub async fn connect_io(socket: TcpSocket, to: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, socket.connect(to)).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("not within {CONNECT_TIMEOUT:?}")))
    })
}

/// What a connection that cannot be made is called.
pub fn refusal(to: SocketAddr, error: &io::Error) -> Refusal {
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    };
    Refusal::new(reason, format!("{to}: {error}"))
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
