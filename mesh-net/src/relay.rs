//! Copying bytes both ways with half-close, resets and back-pressure; an idle flow owns no buffer.

#[cfg(test)]
mod tests;

use std::{cell::Cell, future::poll_fn, io, net::Shutdown, pin::Pin, task::Poll, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use mesh_core::outcome::Reason;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{TcpStream, tcp::ReadHalf},
    task::consume_budget,
};
use tokio_util::io::poll_read_buf;

use crate::hbone::{HboneStream, MAX_WRITE};

const MIN_BUFFER: usize = 4 << 10;

/// Bytes moved so far; readable while the flow runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the first stream to the second.
    pub sent: Cell<u64>,
    /// From the second stream to the first.
    pub received: Cell<u64>,
}

/// A flow that did not end in order.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {source}")]
pub struct Broken {
    /// `ClientReset` for the first stream, `UpstreamReset` for the second; the side that failed.
    pub reason: Reason,
    /// What happened.
    pub source: io::Error,
}

/// Which side failed.
enum Side {
    Tcp(io::Error),
    Far(io::Error),
}

/// Copies between an application's socket and a tunnel until both directions ended. `sent` counts
/// bytes into the tunnel. A reset of either side resets the other; dropped before the end it resets both.
///
/// # Errors
/// `near` is the reason when the socket fails, `far` when the tunnel does.
pub async fn tunnel(
    tcp: TcpStream,
    mut stream: HboneStream,
    counters: &Counters,
    near: Reason,
    far: Reason,
) -> Result<(), Broken> {
    let mut tcp = Ending::new(tcp);
    let (up, down) = (&mut stream.up, &mut stream.down);
    let (mut reader, writer) = tcp.socket.split();
    let sending = async {
        let mut size = MIN_BUFFER;
        loop {
            tokio::select! {
                biased;
                ready = reader.readable() => ready.map_err(Side::Tcp)?,
                reset = poll_fn(|cx| up.poll_reset(cx)) => return reset.map_err(Side::Far),
            }
            let room = tokio::select! {
                biased;
                room = poll_fn(|cx| up.poll_room(cx, size)) => room.map_err(Side::Far)?,
                error = failure(reader.as_ref()) => return Err(Side::Tcp(error)),
            };
            match read(&mut reader, room, &mut size).await.map_err(Side::Tcp)? {
                Some(bytes) if bytes.is_empty() => return up.finish().map_err(Side::Far),
                Some(bytes) => {
                    add(&counters.sent, bytes.len());
                    up.send(bytes).map_err(Side::Far)?;
                }
                None => {
                    up.give_back();
                    consume_budget().await;
                }
            }
        }
    };
    let receiving = async {
        while let Some(bytes) = poll_fn(|cx| down.poll_chunk(cx)).await.map_err(Side::Far)? {
            let count = bytes.len();
            write_all(writer.as_ref(), &bytes).await.map_err(Side::Tcp)?;
            add(&counters.received, count);
            down.release(count);
        }
        end(writer.as_ref()).map_err(Side::Tcp)
    };
    match tokio::try_join!(sending, receiving) {
        Ok(_) => {
            tcp.in_order = true;
            Ok(())
        }
        Err(side) => {
            stream.reset();
            let (reason, source) = match side {
                Side::Tcp(source) => (near, source),
                Side::Far(source) => (far, source),
            };
            Err(Broken { reason, source })
        }
    }
}

/// Copies between two sockets until both directions ended. A reset of either side resets the other;
/// dropped before the end it resets both.
///
/// # Errors
/// `ClientReset` when reading from or writing to `client` fails, else `UpstreamReset`.
pub async fn plain(client: TcpStream, upstream: TcpStream, counters: &Counters) -> Result<(), Broken> {
    let (mut client, mut upstream) = (Ending::new(client), Ending::new(upstream));
    let (from_client, to_client) = client.socket.split();
    let (from_upstream, to_upstream) = upstream.socket.split();
    let result = tokio::try_join!(
        copy(from_client, to_upstream.as_ref(), &counters.sent, Side::Tcp, Side::Far),
        copy(from_upstream, to_client.as_ref(), &counters.received, Side::Far, Side::Tcp),
    );
    let (reason, source) = match result {
        Ok(_) => {
            (client.in_order, upstream.in_order) = (true, true);
            return Ok(());
        }
        Err(Side::Tcp(source)) => (Reason::ClientReset, source),
        Err(Side::Far(source)) => (Reason::UpstreamReset, source),
    };
    Err(Broken { reason, source })
}

/// A socket that is closed with a reset unless it ended in order, also when its flow is told to end or
/// its task is dropped: nobody must take what came so far for all there is.
struct Ending {
    socket: TcpStream,
    in_order: bool,
}

impl Ending {
    fn new(socket: TcpStream) -> Self {
        Self { socket, in_order: false }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.in_order {
            return;
        }
        if let Err(error) = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "socket cannot be reset");
        }
    }
}

async fn copy(
    mut from: ReadHalf<'_>,
    to: &TcpStream,
    counter: &Cell<u64>,
    reading: fn(io::Error) -> Side,
    writing: fn(io::Error) -> Side,
) -> Result<(), Side> {
    let mut size = MIN_BUFFER;
    loop {
        from.readable().await.map_err(reading)?;
        match read(&mut from, size, &mut size).await.map_err(reading)? {
            Some(bytes) if bytes.is_empty() => return end(to).map_err(writing),
            Some(bytes) => {
                write_all(to, &bytes).await.map_err(writing)?;
                add(counter, bytes.len());
            }
            None => consume_budget().await,
        }
    }
}

/// Completes when the other end of a socket that we do not read now has reset it.
async fn failure(tcp: &TcpStream) -> io::Error {
    match tcp.ready(Interest::ERROR).await {
        Ok(_) => match tcp.take_error() {
            Ok(Some(error)) | Err(error) => error,
            // Told to somebody else: reading or writing meets it.
            Ok(None) => std::future::pending().await,
        },
        Err(error) => error,
    }
}

/// Reads what is there, up to `room`; none when nothing is, empty at the end. `size` follows the load.
///
/// None comes also when tokio's budget for one turn of the task is used up, with the socket still
/// readable: who asks again without giving way ([`consume_budget`]) would never end.
///
/// A read that does not fill the buffer has emptied the socket: tokio then waits for the next event
/// without another system call, which `try_read` would need to find that out.
async fn read(from: &mut ReadHalf<'_>, room: usize, size: &mut usize) -> io::Result<Option<Bytes>> {
    let mut buffer = BytesMut::with_capacity(room).limit(room);
    let polled = poll_fn(|cx| Poll::Ready(poll_read_buf(Pin::new(&mut *from), cx, &mut buffer))).await;
    let Poll::Ready(count) = polled else { return Ok(None) };
    let count = count?;
    *size = if count >= *size { (*size * 4).min(MAX_WRITE) } else { (*size / 2).max(MIN_BUFFER) };
    Ok(Some(buffer.into_inner().freeze()))
}

async fn write_all(tcp: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match tcp.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends the writing direction. A peer that is gone already is no error: its own direction tells.
fn end(tcp: &TcpStream) -> io::Result<()> {
    match SockRef::from(tcp).shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

fn add(counter: &Cell<u64>, count: usize) {
    counter.set(counter.get() + count as u64);
}
