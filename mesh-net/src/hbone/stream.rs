//! The byte stream of one tunnel.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Lease;

/// A tunnel: chunks as they arrive with [`HboneStream::halves`], or a socket through tokio's traits.
/// Dropped before its end, it tells the peer CANCEL.
pub struct HboneStream {
    pub(crate) send: Sender,
    pub(crate) recv: Receiver,
    baggage: Option<Box<str>>,
    unread: Bytes,
}

/// Towards the peer.
pub struct Sender {
    stream: SendStream<Bytes>,
    lease: Option<Rc<Lease>>,
}

/// From the peer.
pub struct Receiver {
    stream: RecvStream,
    lease: Option<Rc<Lease>>,
}

impl HboneStream {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        lease: Option<Lease>,
        baggage: Option<Box<str>>,
    ) -> Self {
        let lease = lease.map(Rc::new);
        Self {
            send: Sender { stream: send, lease: lease.clone() },
            recv: Receiver { stream: recv, lease },
            baggage,
            unread: Bytes::new(),
        }
    }

    /// What the peer says about its workload; for metrics and logs only.
    pub fn baggage(&self) -> Option<&str> {
        self.baggage.as_deref()
    }

    /// Both directions, to be moved independently.
    pub fn halves(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.send, &mut self.recv)
    }
}

impl Sender {
    /// Sends all of `data`, as the peer's windows allow. `None` from the peer's side is an error.
    ///
    /// # Errors
    /// The stream was reset or its connection broke.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), h2::Error> {
        if let Some(lease) = &self.lease {
            lease.moved(data.len());
        }
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let granted = match self.stream.capacity() {
                0 => poll_fn(|cx| self.stream.poll_capacity(cx)).await.unwrap_or_else(|| Err(closed()))?,
                granted => granted,
            };
            let part = data.split_to(granted.min(data.len()));
            if part.is_empty() {
                continue;
            }
            self.stream.send_data(part, false)?;
        }
        Ok(())
    }

    /// Ends this direction (END_STREAM); the other one goes on.
    ///
    /// # Errors
    /// The stream was reset or its connection broke.
    pub fn finish(&mut self) -> Result<(), h2::Error> {
        self.stream.send_data(Bytes::new(), true)
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Resolves when the peer resets the stream, with its reason.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn was_reset(&mut self) -> Result<Reason, h2::Error> {
        poll_fn(|cx| self.stream.poll_reset(cx)).await
    }
}

impl Receiver {
    /// The next chunk; none at the peer's end of stream. Call [`Receiver::release`] when it is used up.
    ///
    /// # Errors
    /// The stream was reset (other than NO_ERROR or CANCEL, which end it) or its connection broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, h2::Error> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                if let Some(lease) = &self.lease {
                    lease.moved(data.len());
                }
                Poll::Ready(Ok(Some(data)))
            }
            Some(Err(error)) if ends_quietly(&error) => Poll::Ready(Ok(None)),
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(None)),
        }
    }

    /// Gives the peer room for `bytes` more: they have left this process.
    pub fn release(&mut self, bytes: usize) {
        // It fails only when the stream is already gone.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }
}

/// NO_ERROR and CANCEL are how peers drop a stream that they are done with.
pub(crate) fn ends_quietly(error: &h2::Error) -> bool {
    error.is_reset() && matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL))
}

fn closed() -> h2::Error {
    h2::Error::from(Reason::STREAM_CLOSED)
}

fn io_error(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        false => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_chunk(cx)).map_err(io_error)? {
                Some(data) => self.unread = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = buf.remaining().min(self.unread.len());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        self.recv.release(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let sender = &mut self.send;
        sender.stream.reserve_capacity(buf.len());
        let mut granted = sender.stream.capacity();
        while granted == 0 {
            let more = ready!(sender.stream.poll_capacity(cx)).unwrap_or_else(|| Err(closed()));
            granted = more.map_err(io_error)?;
        }
        let part = Bytes::copy_from_slice(&buf[..granted.min(buf.len())]);
        let count = part.len();
        sender.stream.send_data(part, false).map_err(io_error)?;
        if let Some(lease) = &sender.lease {
            lease.moved(count);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.finish().map_err(io_error))
    }
}
