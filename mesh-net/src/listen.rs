//! Listening sockets. They are made in the calling thread's network namespace: agents call this on a
//! thread that entered the pod's.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::dial;

const BACKLOG: i32 = 1024;

/// Listens on every address, both families; IPv4 alone where there is no IPv6. Non-blocking, to be
/// given to `tokio::net::TcpListener::from_std`. What it
/// accepts has no delay and keepalive as [`dial::prepare`] sets them. `transparent` accepts connections to any address
/// (needs CAP_NET_ADMIN).
///
/// # Errors
/// The kernel's, for example that the port is taken.
pub fn listen(port: u16, transparent: bool) -> io::Result<TcpListener> {
    one(port, transparent, false)
}

/// `count` sockets as those of [`listen`] that share a port: the kernel spreads connections over them.
///
/// # Errors
/// As [`listen`].
pub fn group(port: u16, transparent: bool, count: usize) -> io::Result<Vec<TcpListener>> {
    (0..count).map(|_| one(port, transparent, true)).collect()
}

fn one(port: u16, transparent: bool, shared: bool) -> io::Result<TcpListener> {
    match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), transparent, shared) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), transparent, shared)
        }
        result => result,
    }
}

fn bind(address: SocketAddr, transparent: bool, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if transparent {
        // The option of IPv4 covers the socket as a whole, IPv6 included.
        socket.set_ip_transparent_v4(true)?;
    }
    // Accepted connections inherit these.
    dial::tune(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
