//! The bytes of one CONNECT request, both ways.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason as H2Reason, RecvStream, SendStream};
use mesh_core::identity::Identity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{MAX_WRITE, usage::Share};

/// The bytes of one CONNECT request. Dropping it before both directions ended resets the stream.
#[derive(Debug)]
pub struct HboneStream {
    pub(crate) up: Sender,
    pub(crate) down: Receiver,
    /// `baggage` of the response (client side).
    pub baggage: Option<String>,
    /// Who proved to be at the other end of the connection (client side).
    pub peer: Option<Identity>,
    _share: Option<Rc<RefCell<Share>>>,
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: SendStream<Bytes>,
    /// Room that was asked for and not used. While it is kept, other streams of the connection lack it.
    reserved: usize,
    ended: bool,
    share: Option<Rc<RefCell<Share>>>,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: RecvStream,
    pending: Bytes,
    ended: bool,
    share: Option<Rc<RefCell<Share>>>,
}

impl HboneStream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, share: Option<Share>) -> Self {
        let share = share.map(|share| Rc::new(RefCell::new(share)));
        Self {
            up: Sender { stream: send, reserved: 0, ended: false, share: share.clone() },
            down: Receiver { stream: recv, pending: Bytes::new(), ended: false, share: share.clone() },
            baggage: None,
            peer: None,
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
    /// Waits for room for up to `want` bytes; at least one. It is held until something is sent or it is
    /// given back.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        if self.reserved < want {
            self.stream.reserve_capacity(want);
            self.reserved = want;
        }
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

    /// Sends what [`Sender::poll_room`] gave room for, and gives back the rest of the room.
    pub(crate) fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let count = bytes.len();
        self.stream.send_data(bytes, false).map_err(to_io)?;
        self.reserved = self.reserved.saturating_sub(count);
        self.give_back();
        if let Some(share) = &self.share {
            share.borrow_mut().add(count);
        }
        Ok(())
    }

    /// Gives back room that is not needed now.
    pub(crate) fn give_back(&mut self) {
        if self.reserved > 0 {
            self.stream.reserve_capacity(0);
            self.reserved = 0;
        }
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

    /// Completes when the other side has reset the stream: an error, or nothing when it only says that
    /// it reads no more (as ztunnel: NO_ERROR and CANCEL end a stream in order).
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.stream.poll_reset(cx)) {
            Ok(H2Reason::NO_ERROR | H2Reason::CANCEL) => {
                self.ended = true;
                Poll::Ready(Ok(()))
            }
            Ok(reason) => Poll::Ready(Err(to_io(reason.into()))),
            Err(error) => Poll::Ready(Err(to_io(error))),
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
