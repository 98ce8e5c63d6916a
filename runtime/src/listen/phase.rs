//! What an HTTP/1 connection waits for, and until when.

use super::{
    Seat,
    request::{Requests, Unreadable},
    stream::PacedStream,
};
use crate::config::Timeouts;
use futures_util::task::AtomicWaker;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until},
};

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The rest of a request head, of which something has arrived or not.
    Head { since: Instant, begun: bool },
    /// The next request.
    Idle { since: Instant },
    /// Nothing: a request is being answered.
    Busy,
}

/// What did not arrive in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The first byte.
    Silent,
    /// The end of a head that had begun.
    Head,
    /// The next request.
    Idle,
}

impl Overdue {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Head => "head",
            Self::Idle => "idle",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Phases {
    phase: Arc<watch::Sender<Phase>>,
    seat: Arc<Seat>,
    /// A reader that waits until no request is being answered.
    reader: Arc<AtomicWaker>,
}

impl Phases {
    pub(super) fn new(seat: Seat) -> Self {
        let since = Instant::now();
        let (phase, _) = watch::channel(Phase::Head {
            since,
            begun: false,
        });
        Self {
            phase: Arc::new(phase),
            seat: Arc::new(seat),
            reader: Arc::default(),
        }
    }

    pub(super) fn busy(&self) {
        self.seat.set_busy();
        self.phase.send_replace(Phase::Busy);
    }

    pub(super) fn idle(&self) {
        let since = Instant::now();
        self.phase.send_replace(Phase::Idle { since });
        self.seat.set_waiting();
        self.reader.wake();
    }

    /// Ready once no request is being answered.
    fn poll_idle(&self, waker: &Waker) -> Poll<()> {
        self.reader.register(waker);
        if self.is_busy() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Busy)
    }

    /// Whether a request head is awaited, on a connection that is not merely idle.
    pub(super) fn is_head(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Head { .. })
    }

    fn received(&self) {
        let now = Instant::now();
        self.phase.send_if_modified(|phase| match phase {
            Phase::Head { begun, .. } => {
                *begun = true;
                false
            }
            Phase::Idle { .. } => {
                *phase = Phase::Head {
                    since: now,
                    begun: true,
                };
                true
            }
            Phase::Busy => false,
        });
    }

    /// A peer that does not read is waited for, whatever else goes on.
    fn write_blocked(&self) {
        self.seat.set_waiting();
    }

    /// A connection whose last response is still being written is not idle. Nobody needs to be
    /// notified, since a timer that fires checks again.
    fn write_progressed(&self) {
        self.phase.send_if_modified(|phase| {
            match phase {
                Phase::Idle { since } => *since = Instant::now(),
                Phase::Busy => self.seat.set_busy(),
                Phase::Head { .. } => {}
            }
            false
        });
    }

    /// Returns once the peer is late.
    pub(super) async fn overdue(&self, times: &Timeouts) -> Overdue {
        let mut changes = self.phase.subscribe();
        loop {
            let phase = *changes.borrow_and_update();
            let (end, what) = match phase {
                Phase::Busy => (None, Overdue::Idle),
                Phase::Idle { since } => (Some(since + times.idle()), Overdue::Idle),
                Phase::Head { since, begun } => {
                    let what = if begun {
                        Overdue::Head
                    } else {
                        Overdue::Silent
                    };
                    (Some(since + times.head()), what)
                }
            };
            if end.is_some_and(|end| end <= Instant::now()) {
                return what;
            }
            tokio::select! {
                () = until(end) => {}
                changed = changes.changed() => changed.expect("the sender is here"),
            }
        }
    }

    pub(super) async fn displaced(&self) {
        self.seat.displaced().await;
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// A connection that reports its progress to its phases, and hides from hyper every request that is
/// refused here.
#[derive(Debug)]
pub(super) struct PhasedStream {
    inner: PacedStream<TcpStream>,
    phases: Phases,
    requests: Requests,
    /// Whether hyper may still hold a part of a response.
    unsent: bool,
    /// Whether hyper has asked for the refused request. After a response with `connection: close`, or
    /// whose request it did not read to the end, it asks for nothing more.
    asked: bool,
}

impl PhasedStream {
    /// Wraps a connection whose request heads have at most `most` bytes.
    pub(super) fn new(inner: PacedStream<TcpStream>, phases: Phases, most: usize) -> Self {
        Self {
            inner,
            phases,
            requests: Requests::new(most),
            unsent: false,
            asked: false,
        }
    }

    /// Returns the socket, and why the next request is refused, if hyper would have answered it.
    pub(super) fn into_inner(self) -> (TcpStream, Option<Unreadable>) {
        let refused = self.requests.refused().filter(|_| self.asked);
        (self.inner.into_inner(), refused)
    }

    /// Whether anything that is written now could end up inside a response.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent
    }

    /// Whether the peer may still be sending a request that nobody reads.
    pub(super) fn is_within_request(&self) -> bool {
        self.requests.is_within()
    }

    /// Signals the end of the stream to hyper. While an earlier request is being answered, hyper would
    /// mistake it for a peer that has gone, so it is held back until the response has been written
    /// completely: by then hyper knows whether it wants another request.
    fn poll_ended(&mut self, waker: &Waker) -> Poll<io::Result<()>> {
        if self.requests.refused().is_some() {
            ready!(self.phases.poll_idle(waker));
            if self.unsent {
                return Poll::Pending;
            }
            self.asked = true;
        }
        Poll::Ready(Ok(()))
    }

    fn flushed(&mut self) {
        self.unsent = false;
        self.phases.reader.wake();
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(1..)) => self.phases.write_progressed(),
            Poll::Pending => self.phases.write_blocked(),
            Poll::Ready(_) => {}
        }
        written
    }
}

impl AsyncRead for PhasedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.requests.is_over() {
            return self.poll_ended(cx.waker());
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.phases.received();
        }
        let shown = self.requests.read(&buf.filled()[before..]);
        buf.set_filled(before + shown);
        if shown == 0 && self.requests.is_over() {
            return self.poll_ended(cx.waker());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PhasedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unsent = true;
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unsent = true;
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper flushes once it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flushed();
        Poll::Ready(Ok(()))
    }

    /// Does not shut down, as a refusal may still have to be sent.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
}
