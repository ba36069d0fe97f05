//! A tunnelled stream in the hands of an HTTP connection, which drops it as soon as it has said all.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use mesh_net::hbone::HboneStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How long the other side may take to end its direction after ours has ended.
const LINGER: Duration = Duration::from_secs(5);

/// An HBONE stream that, dropped after it was shut down, lives on until the other side has ended too:
/// a reset would take bytes with it that are still on their way.
pub(super) struct TunnelIo {
    stream: Option<HboneStream>,
    shut: bool,
}

impl TunnelIo {
    pub(super) fn new(stream: HboneStream) -> Self {
        Self { stream: Some(stream), shut: false }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut HboneStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take().filter(|_| self.shut) else { return };
        tokio::task::spawn_local(async move {
            let mut rest = [0; 1024];
            let ended = async { while let Ok(1..) = stream.read(&mut rest).await {} };
            let _ = tokio::time::timeout(LINGER, ended).await;
        });
    }
}
