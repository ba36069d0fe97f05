//! Closing without losing what is still on its way.
//!
//! HTTP/2 is done with a connection once everything is sent, not once it has arrived. A socket that is
//! closed then answers the peer's next WINDOW_UPDATE with a RST, and the peer's kernel throws away the
//! end of the last stream that its application has not read. So the socket stays open for reading until
//! the peer has closed, too.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::timeout,
};

/// How long the peer may take to read to the end and close.
const LIMIT: Duration = Duration::from_secs(10);

/// A stream of which a second handle is kept.
#[derive(Debug)]
pub(super) struct Shared<T>(Rc<RefCell<T>>);

impl<T: AsyncRead + AsyncWrite + Unpin> Shared<T> {
    /// Two handles of one stream: one to use, one for [`Shared::linger`].
    pub(super) fn pair(io: T) -> (Self, Self) {
        let shared = Rc::new(RefCell::new(io));
        (Self(shared.clone()), Self(shared))
    }

    /// Reads until the peer has closed, at most for [`LIMIT`]. The other handle has been dropped.
    pub(super) async fn linger(mut self) {
        let mut rest = [0; 1024];
        let drained = async { while self.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
        if timeout(LIMIT, drained).await.is_err() {
            tracing::debug!("hbone peer did not close its connection");
        }
    }

    fn with<R>(&self, act: impl FnOnce(Pin<&mut T>) -> R) -> R {
        act(Pin::new(&mut *self.0.borrow_mut()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Shared<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_read(cx, buf))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Shared<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_shutdown(cx))
    }
}
