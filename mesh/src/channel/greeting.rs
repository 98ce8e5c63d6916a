//! Notices when a server begins to speak HTTP/2.
//!
//! In TLS 1.3 the client's handshake is complete before the server has verified the client's certificate. A
//! server that refuses it would take a call with it, of which nobody knows whether it was processed. What
//! the server sends first shows that it has accepted the connection; until then no call is sent.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// A connection whose first received byte is reported.
#[derive(Debug)]
pub(super) struct Greeted<T> {
    inner: T,
    greeting: Option<oneshot::Sender<()>>,
}

impl<T> Greeted<T> {
    /// Returns the connection, and what receives a value with its first byte, or an error when it is
    /// dropped before.
    pub(super) fn new(inner: T) -> (Self, oneshot::Receiver<()>) {
        let (greeting, greeted) = oneshot::channel();
        let greeting = Some(greeting);
        (Self { inner, greeting }, greeted)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Greeted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if self.greeting.is_some() && buf.filled().len() > before {
            // Nobody waits where the attempt took too long.
            self.greeting.take().map(|greeting| greeting.send(()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Greeted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn the_first_byte_is_reported_and_an_end_without_one_is_not() {
        let (client, mut server) = duplex(16);
        let (mut stream, mut greeted) = Greeted::new(client);
        stream.write_all(b"preface").await.unwrap();
        assert!(greeted.try_recv().is_err());
        server.write_all(b"ab").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        greeted.try_recv().unwrap();

        let (client, server) = duplex(16);
        let (mut stream, greeted) = Greeted::new(client);
        drop(server);
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
        drop(stream);
        assert!(greeted.await.is_err());
    }
}
