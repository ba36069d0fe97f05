//! HBONE: TCP streams as HTTP/2 CONNECT requests inside mutual TLS.

pub mod client;
pub mod pool;
pub mod server;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use h2::{PingPong, Reason as H2Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};

/// Window of a stream, bytes (Istio's).
pub const STREAM_WINDOW: u32 = 4 << 20;
/// Window of a connection, bytes (Istio's).
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest DATA frame, bytes (Istio's).
pub const FRAME_SIZE: u32 = 1 << 20;
/// Most bytes that one write puts into the send buffer of a stream.
pub(crate) const MAX_WRITE: usize = 64 << 10;
const SEND_BUFFER: usize = 400 << 10;
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(20);

/// Counts the streams of a connection, and those that proved to be bulk.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) streams: Cell<u32>,
    pub(crate) bulk: Cell<u32>,
}

/// One stream's share of its connection's [`Usage`].
#[derive(Debug)]
pub(crate) struct Share {
    usage: Rc<Usage>,
    moved: u64,
}

impl Share {
    const BULK: u64 = 1 << 20;

    pub(crate) fn new(usage: &Rc<Usage>) -> Self {
        usage.streams.set(usage.streams.get() + 1);
        Self { usage: usage.clone(), moved: 0 }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        let before = self.moved;
        self.moved += bytes as u64;
        if before <= Self::BULK && self.moved > Self::BULK {
            self.usage.bulk.set(self.usage.bulk.get() + 1);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.usage.streams.set(self.usage.streams.get() - 1);
        if self.moved > Self::BULK {
            self.usage.bulk.set(self.usage.bulk.get() - 1);
        }
    }
}

/// The bytes of one CONNECT request. Dropping it before both directions ended resets the stream.
#[derive(Debug)]
pub struct HboneStream {
    pub(crate) up: Sender,
    pub(crate) down: Receiver,
    /// `baggage` of the response (client side).
    pub baggage: Option<String>,
    _share: Option<Rc<std::cell::RefCell<Share>>>,
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: SendStream<Bytes>,
    ended: bool,
    share: Option<Rc<std::cell::RefCell<Share>>>,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: RecvStream,
    pending: Bytes,
    ended: bool,
    share: Option<Rc<std::cell::RefCell<Share>>>,
}

impl HboneStream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, share: Option<Share>) -> Self {
        let share = share.map(|share| Rc::new(std::cell::RefCell::new(share)));
        Self {
            up: Sender { stream: send, ended: false, share: share.clone() },
            down: Receiver { stream: recv, pending: Bytes::new(), ended: false, share: share.clone() },
            baggage: None,
            _share: share,
        }
    }

    /// Resets the stream so that the other side resets its TCP connection.
    pub fn reset(&mut self) {
        self.up.stream.send_reset(H2Reason::INTERNAL_ERROR);
        self.up.ended = true;
        self.down.ended = true;
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        if !(self.up.ended && self.down.ended) {
            self.reset();
        }
    }
}

impl Sender {
    /// Waits for room for up to `want` bytes; at least one.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        self.stream.reserve_capacity(want);
        loop {
            if self.stream.capacity() > 0 {
                return Poll::Ready(Ok(self.stream.capacity().min(want)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    /// Sends what [`Sender::poll_room`] gave room for.
    pub(crate) fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let count = bytes.len();
        self.stream.send_data(bytes, false).map_err(to_io)?;
        if let Some(share) = &self.share {
            share.borrow_mut().add(count);
        }
        Ok(())
    }

    /// Ends this direction.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.stream.send_data(Bytes::new(), true).map_err(to_io)?;
        self.ended = true;
        Ok(())
    }

    /// Completes when the other side has reset the stream.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.stream.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(to_io(reason.into())),
            Err(error) => Poll::Ready(to_io(error)),
        }
    }
}

impl Receiver {
    /// The next bytes; none at the end. What is taken must be given back by [`Receiver::release`].
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if !self.pending.is_empty() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.pending))));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => self.pending = bytes,
                None => self.ended = true,
                // As ztunnel: these two end a stream in order.
                Some(Err(error))
                    if error.is_reset()
                        && matches!(error.reason(), Some(H2Reason::NO_ERROR | H2Reason::CANCEL)) =>
                {
                    self.ended = true;
                }
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
            }
        }
    }

    /// Lets the other side send `count` more bytes.
    pub(crate) fn release(&mut self, count: usize) {
        // It fails only for more than was received; then the window is full anyway.
        let _ = self.stream.flow_control().release_capacity(count);
        if let Some(share) = &self.share {
            share.borrow_mut().add(count);
        }
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut bytes) = ready!(self.down.poll_chunk(cx))? else { return Poll::Ready(Ok(())) };
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        bytes.advance(count);
        self.down.pending = bytes;
        self.down.release(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.up.poll_room(cx, buf.len().min(MAX_WRITE)))?;
        self.up.send(Bytes::copy_from_slice(&buf[..room]))?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.up.finish())
    }
}

fn to_io(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe };
    io::Error::new(kind, error)
}

/// Returns when the other side stops answering.
async fn ping_until_silent(mut ping: PingPong) {
    loop {
        sleep(PING_EVERY).await;
        if !matches!(timeout(PING_LIMIT, ping.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
