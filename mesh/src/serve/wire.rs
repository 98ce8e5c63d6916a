//! The bytes of a connection between TLS and h2: notices when a peer begins to speak HTTP/2, and ends the
//! connection of a peer that sends too many control frames.
//!
//! A connection that was admitted and then stays silent must not live as long as an idle one. The server's own
//! first frames are not held back for that, as a client may wait for them. Nothing is copied, and only the
//! header of each frame is inspected.

use super::{
    allowance::Allowance,
    excess::{Excess, ExcessSignal},
    frames::Frames,
};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_runtime::{clock::Clock, rate::Rate};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// The length of the client's connection preface. Its content is checked by h2.
const PREFACE: usize = 24;
/// The rate of frames that no call explains. A healthy client sends a few per minute.
const UNEXPLAINED: Rate = Rate::every(Duration::from_millis(10), 1000);
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Debug)]
pub(super) struct Wire<T> {
    inner: T,
    missing: usize,
    opened: CancellationToken,
    received: Frames,
    sent: Frames,
    allowance: Allowance,
    clock: Clock,
    signal: ExcessSignal,
}

impl<T> Wire<T> {
    pub(super) fn new(inner: T, clock: Clock, signal: ExcessSignal) -> Self {
        Self {
            inner,
            missing: PREFACE,
            opened: CancellationToken::new(),
            received: Frames::default(),
            sent: Frames::default(),
            allowance: Allowance::new(UNEXPLAINED),
            clock,
            signal,
        }
    }

    /// Returns a token that is cancelled once the preface has arrived.
    pub(super) fn opened(&self) -> CancellationToken {
        self.opened.clone()
    }

    fn record_received(&mut self, data: &[u8]) {
        let preface = self.missing.min(data.len());
        if preface > 0 {
            self.missing -= preface;
            if self.missing == 0 {
                self.opened.cancel();
            }
        }
        let (allowance, clock) = (&mut self.allowance, &self.clock);
        let mut within = true;
        self.received.read(&data[preface..], |frame| {
            within &= allowance.received(frame, clock);
        });
        if !within {
            self.signal.raise(Excess::ControlFrames);
        }
    }

    fn record_sent(&mut self, data: &[u8]) {
        let allowance = &mut self.allowance;
        self.sent.read(data, |frame| allowance.sent(frame));
    }

    fn record_sent_vectored(&mut self, bufs: &[IoSlice<'_>], mut bytes: usize) {
        for buf in bufs {
            let part = bytes.min(buf.len());
            self.record_sent(&buf[..part]);
            bytes -= part;
        }
    }

    /// Encodes GOAWAY with the excess as its debug data (RFC 9113, section 6.8).
    fn goaway(&self, excess: Excess) -> Vec<u8> {
        let message = excess.message().as_bytes();
        let length = u8::try_from(8 + message.len()).expect("messages are short");
        let mut frame = vec![0, 0, length, GOAWAY, 0, 0, 0, 0, 0];
        frame.extend(self.allowance.last_stream().to_be_bytes());
        frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frame.extend(message);
        frame
    }
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    /// Sends GOAWAY, unless a frame of h2's has been sent in part. It is tried once: a peer that does not read
    /// is not waited for.
    fn send_goaway(&mut self, excess: Excess, cx: &mut Context<'_>) -> io::Error {
        if self.sent.is_between() {
            let goaway = self.goaway(excess);
            let _unsent = Pin::new(&mut self.inner).poll_write(cx, &goaway);
            let _unsent = Pin::new(&mut self.inner).poll_flush(cx);
        }
        io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the peer exceeded its allowance",
        )
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(excess) = self.signal.why() {
            return Poll::Ready(Err(self.send_goaway(excess, cx)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.record_received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.record_sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        self.record_sent_vectored(bufs, written);
        Poll::Ready(Ok(written))
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const HEADERS: [u8; 10] = [0, 0, 1, 1, 5, 0, 0, 0, 3, 0x88];
    const PRIORITY: [u8; 14] = [0, 0, 5, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1];

    fn wire() -> (Wire<DuplexStream>, DuplexStream, ExcessSignal) {
        let (near, far) = duplex(1 << 20);
        let signal = ExcessSignal::default();
        let clock = Clock::manual(Duration::ZERO);
        (Wire::new(near, clock, signal.clone()), far, signal)
    }

    /// Reads in pieces until the wire ends the connection.
    async fn drained(wire: &mut Wire<DuplexStream>, piece: usize) -> io::ErrorKind {
        let mut buf = vec![0; piece];
        loop {
            if let Err(e) = wire.read(&mut buf).await {
                return e.kind();
            }
        }
    }

    #[tokio::test]
    async fn the_preface_opens_the_connection_however_it_is_split() {
        let (mut wire, mut far, signal) = wire();
        let opened = wire.opened();
        let mut byte = [0];
        for n in 1..=PREFACE {
            assert!(!opened.is_cancelled(), "{n}");
            far.write_all(b"P").await.unwrap();
            wire.read_exact(&mut byte).await.unwrap();
        }
        assert!(opened.is_cancelled() && signal.why().is_none());
    }

    #[tokio::test]
    async fn a_flood_of_frames_ends_with_goaway_however_it_is_split() {
        for piece in [1, 13, 14, 4096] {
            let (mut wire, mut far, signal) = wire();
            let mut said = vec![b'P'; PREFACE];
            said.extend(HEADERS);
            for _ in 0..UNEXPLAINED.burst() + 100 {
                said.extend(PRIORITY);
            }
            far.write_all(&said).await.unwrap();
            let ended = drained(&mut wire, piece).await;
            assert_eq!(ended, io::ErrorKind::ConnectionAborted);
            assert_eq!(signal.why(), Some(Excess::ControlFrames));
            drop(wire);
            let mut goaway = Vec::new();
            far.read_to_end(&mut goaway).await.unwrap();
            let head = [0, 0, 31, 7, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 11];
            let expected = [&head[..], b"too many control frames"].concat();
            assert_eq!(goaway, expected, "{piece}");
        }
    }

    #[tokio::test]
    async fn goaway_names_the_highest_stream_and_not_that_of_the_last_trailers() {
        let (mut wire, mut far, signal) = wire();
        let trailers = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
        let said = [&[b'P'; PREFACE][..], &HEADERS, &trailers].concat();
        far.write_all(&said).await.unwrap();
        wire.read_exact(&mut vec![0; said.len()]).await.unwrap();
        signal.raise(Excess::Refusals);
        drained(&mut wire, 64).await;
        drop(wire);
        let mut goaway = Vec::new();
        far.read_to_end(&mut goaway).await.unwrap();
        assert_eq!(goaway[9..13], [0, 0, 0, 3]);
        assert_eq!(&goaway[17..], b"too many refused calls");
    }

    #[tokio::test]
    async fn goaway_is_not_sent_inside_of_a_frame() {
        let (mut wire, mut far, signal) = wire();
        wire.write_all(&[0, 0, 5, 0, 0, 0, 0, 0, 3, b'h'])
            .await
            .unwrap();
        signal.raise(Excess::Refusals);
        drained(&mut wire, 64).await;
        drop(wire);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 10);
    }

    #[tokio::test]
    async fn responses_earn_credit_for_control_frames() {
        let (mut wire, mut far, signal) = wire();
        far.write_all(&[b'P'; PREFACE]).await.unwrap();
        wire.read_exact(&mut [0; PREFACE]).await.unwrap();
        let data = [&[0u8, 0, 3, 0, 0, 0, 0, 0, 3][..], b"abc"].concat();
        let update = [0, 0, 4, 8, 0, 0, 0, 0, 3, 0, 0, 0, 3];
        let mut buf = [0; 26];
        for _ in 0..5000 {
            wire.write_all(&data).await.unwrap();
            far.read_exact(&mut buf[..data.len()]).await.unwrap();
            far.write_all(&[update, update].concat()).await.unwrap();
            wire.read_exact(&mut buf).await.unwrap();
        }
        assert_eq!(signal.why(), None);
    }
}
