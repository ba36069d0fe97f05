//! Sockets inside namespaces, with a deadline on everything.

use std::{
    fs::File,
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::agent::netns;

/// Emulation is slow: ten times what a real machine needs, and far below the limit per kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// A listener on every address of a namespace, both families.
///
/// # Errors
/// The namespace cannot be entered or the port is taken.
pub fn listen(ns: &File, port: u16) -> Result<TcpListener> {
    let listener = netns::within(ns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
    let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects from a namespace.
///
/// # Errors
/// As the connect.
pub fn dial(ns: &File, to: SocketAddr) -> io::Result<TcpStream> {
    netns::within(ns, || TcpStream::connect_timeout(&to, PATIENCE))
}

/// The next connection and its client's address.
///
/// # Errors
/// Nothing arrived in time.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => return Ok((stream, canonical(peer))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ensure!(Instant::now() < deadline, "no connection arrived");
                thread::yield_now();
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
}

/// Fails when a connection waits where none may.
///
/// # Errors
/// One does.
pub fn nothing_waits(listener: &TcpListener) -> Result<()> {
    ensure!(listener.accept().is_err(), "a connection arrived where none may");
    Ok(())
}

/// Waits until something holds.
///
/// # Errors
/// It did not in time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
    Ok(())
}

/// IPv4 addresses as such, also when an IPv6 socket saw them.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
