//! A bound on what a server may send before a message is whole.
//!
//! The driver keeps what it receives until a message is whole, however long the server says it will be. What
//! the bus receives is short: hints, and responses to its own commands.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Several times the longest message, and what one read may hold of those that follow it.
const LIMIT: usize = 64 * 1024;

/// The bytes since the last whole message. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unfinished(Arc<AtomicUsize>);

impl Unfinished {
    /// Begins to count again, after a whole message.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn add(&self, bytes: usize) -> io::Result<()> {
        let count = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match count > LIMIT {
            true => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("more than {LIMIT} bytes without a whole message"),
            )),
            false => Ok(()),
        }
    }
}

/// A stream that fails once it has received too much without a whole message.
#[derive(Debug)]
pub(crate) struct Limited<S> {
    stream: S,
    unfinished: Unfinished,
}

impl<S> Limited<S> {
    pub(crate) fn new(stream: S, unfinished: Unfinished) -> Self {
        Self { stream, unfinished }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.unfinished.add(buf.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_stream_fails_at_the_limit_and_not_after_whole_messages() {
        let unfinished = Unfinished::default();
        let mut stream = Limited::new(tokio::io::repeat(b'9'), unfinished.clone());
        let mut message = vec![0; LIMIT];
        for _ in 0..10 {
            stream.read_exact(&mut message).await.unwrap();
            unfinished.reset();
        }
        stream.read_exact(&mut message).await.unwrap();
        let refused = stream.read_exact(&mut message[..1]).await.unwrap_err();
        assert!(refused.to_string().contains("whole message"), "{refused}");
    }
}
