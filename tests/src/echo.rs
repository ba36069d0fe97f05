//! An application that answers each line with its own name and the client's address as it sees it.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;
use socket2::SockRef;

use crate::peer::Peer;

/// A running server; it stops accepting when dropped.
pub struct Echo {
    listener: Arc<TcpListener>,
    ended: Arc<AtomicBool>,
}

impl Echo {
    /// Serves a port of a pod under a name.
    pub fn serve(peer: &Peer, port: u16, name: &str) -> Result<Self> {
        let listener = Arc::new(peer.listen(port)?);
        let ended = Arc::new(AtomicBool::new(false));
        let (accepting, over, name) = (listener.clone(), ended.clone(), name.to_string());
        thread::spawn(move || {
            while let Ok((stream, client)) = accepting.accept() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let name = name.clone();
                // A client that goes away ends its conversation; that is no failure of the server.
                thread::spawn(move || drop(converse(stream, client, &name)));
            }
        });
        Ok(Self { listener, ended })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
    }
}

fn converse(stream: TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    let mut out = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        line?;
        // In one piece, so that it is in one packet.
        out.write_all(format!("{name} {}\n", client.ip().to_canonical()).as_bytes())?;
    }
    Ok(())
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// Address of the client as the server sees it.
    pub seen: IpAddr,
}

/// One question and its answer on an open connection.
pub fn say(mut stream: &TcpStream) -> io::Result<Answer> {
    stream.write_all(b"who\n")?;
    let mut line = String::new();
    if BufReader::with_capacity(1, stream).read_line(&mut line)? == 0 {
        return Err(io::Error::from(ErrorKind::UnexpectedEof));
    }
    let strange = || io::Error::new(ErrorKind::InvalidData, format!("answer {line:?}"));
    let (server, seen) = line.trim().split_once(' ').ok_or_else(strange)?;
    Ok(Answer { server: server.to_string(), seen: seen.parse().map_err(|_| strange())? })
}

/// Connects, asks once and closes.
pub fn ask(client: &Peer, to: SocketAddr) -> io::Result<Answer> {
    say(&client.connect(to)?)
}
