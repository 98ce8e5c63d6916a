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
    /// For the rest of a request's head, of which something has come or not.
    Head { since: Instant, begun: bool },
    /// For another request.
    Idle { since: Instant },
    /// For nothing: a request is being answered.
    Busy,
}

/// What did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The first byte.
    Silent,
    /// The end of a head that had begun.
    Head,
    /// Another request.
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
    /// A reader that waits until nothing is being answered.
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
        self.seat.works();
        self.phase.send_replace(Phase::Busy);
    }

    pub(super) fn idle(&self) {
        let since = Instant::now();
        self.phase.send_replace(Phase::Idle { since });
        self.seat.waits();
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

    /// Whether a request's head is waited for, on a connection that is not merely kept.
    pub(super) fn is_head(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Head { .. })
    }

    fn heard(&self) {
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
    fn stuck(&self) {
        self.seat.waits();
    }

    /// An answer whose last part is still on its way out is no idle connection; nobody needs to be
    /// told, since a timer that ends looks again.
    fn wrote(&self) {
        self.phase.send_if_modified(|phase| {
            match phase {
                Phase::Idle { since } => *since = Instant::now(),
                Phase::Busy => self.seat.works(),
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

/// A connection that tells its phases what moves, and shows hyper no request that must not be read.
#[derive(Debug)]
pub(super) struct PhasedStream {
    inner: PacedStream<TcpStream>,
    phases: Phases,
    requests: Requests,
    /// Whether hyper may still have a part of an answer.
    unsent: bool,
    /// Whether hyper has asked for the request that is refused. After an answer that says
    /// `connection: close`, or whose request it did not read to the end, it asks for nothing more.
    asked: bool,
}

impl PhasedStream {
    /// `most` is how long the head of a request may be.
    pub(super) fn new(inner: PacedStream<TcpStream>, phases: Phases, most: usize) -> Self {
        Self {
            inner,
            phases,
            requests: Requests::new(most),
            unsent: false,
            asked: false,
        }
    }

    /// The socket, and why the next request gets no answer of hyper's, if it is to have one.
    pub(super) fn into_inner(self) -> (TcpStream, Option<Unreadable>) {
        let refused = self.requests.refused().filter(|_| self.asked);
        (self.inner.into_inner(), refused)
    }

    /// Whether anything that is written now could end up within an answer.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent
    }

    /// Whether the peer may still be sending what nobody wants to read.
    pub(super) fn is_within_request(&self) -> bool {
        self.requests.is_within()
    }

    /// An end of the stream, as hyper sees it. While an earlier request is being answered, hyper
    /// would take it for a peer that is gone, so it is held back until the answer is done and all of
    /// it is sent: by then hyper knows whether it wants another request.
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
            Poll::Ready(Ok(1..)) => self.phases.wrote(),
            Poll::Pending => self.phases.stuck(),
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
            self.phases.heard();
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

    /// Not by hyper: a refusal may have to be said yet.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
}
