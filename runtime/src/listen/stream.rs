//! A stream whose peer must read: a write that makes too little progress fails.
//!
//! It sits below TLS and HTTP, so that it sees exactly what the kernel accepts; a stream with nothing to
//! write waits for nobody.

use super::{Pace, pace::Patience};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reports whether a stream ended because its peer did not read.
#[derive(Debug, Clone, Default)]
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    /// Returns whether a write has failed because the peer did not read.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] when its peer does not read.
#[derive(Debug)]
pub struct PacedStream<T> {
    inner: T,
    patience: Patience,
    unread: Unread,
}

impl<T> PacedStream<T> {
    /// Wraps a stream whose peer must read at this pace.
    pub fn new(inner: T, pace: Pace) -> Self {
        Self {
            inner,
            patience: Patience::new(pace),
            unread: Unread::default(),
        }
    }

    /// Returns a handle that outlives the stream.
    pub fn unread(&self) -> Unread {
        self.unread.clone()
    }

    /// Returns the inner stream.
    pub fn into_inner(self) -> T {
        self.inner
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => self.patience.moved(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                std::task::ready!(self.patience.poll_over(cx));
                self.unread.0.store(true, Ordering::Relaxed);
                let error = io::Error::new(io::ErrorKind::TimedOut, "the peer does not read");
                return Poll::Ready(Err(error));
            }
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PacedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PacedStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
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
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const PACE: Pace = Pace {
        grace: Duration::from_secs(10),
        rate: 100,
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_reads_is_cut() {
        let (near, _far) = duplex(64);
        let mut stream = PacedStream::new(near, PACE);
        let unread = stream.unread();
        let error = stream.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(unread.is_set());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_above_the_minimum_rate_gets_everything() {
        let (near, mut far) = duplex(64);
        let mut stream = PacedStream::new(near, PACE);
        let reading = tokio::spawn(async move {
            let (mut got, mut buf) = (0, [0; 16]);
            while got < 10_000 {
                got += far.read(&mut buf).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            got
        });
        stream.write_all(&[0; 10_000]).await.unwrap();
        assert_eq!(reading.await.unwrap(), 10_000);
        assert!(!stream.unread().is_set());
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_waits_for_nobody() {
        let (near, mut far) = duplex(64);
        let mut stream = PacedStream::new(near, PACE);
        stream.write_all(b"event").await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        stream.write_all(b"event").await.unwrap();
        let mut buf = [0; 10];
        far.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"eventevent");
    }
}
