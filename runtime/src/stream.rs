//! What the work for one HTTP/2 stream and the connection that carries it tell each other.
//!
//! While an answer waits for the peer to open its window, hyper polls nothing of the answer:
//! neither its body nor the timers inside it. Only the task around both still runs. It learns here
//! when the stream has to end, and the layers of the call learn here why it was dropped.

use futures_util::future::BoxFuture;
use std::{
    cell::{Cell, RefCell},
    fmt,
    task::{Context, Poll},
};
use tokio::{task::futures::TaskLocalFuture, time::Instant};

/// Why the connection's side ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The deadline of the call has passed.
    Deadline,
    /// The peer has taken nothing for too long.
    Stalled,
    /// The process is stopping.
    Stopping,
    /// The connection is about to close.
    Closing,
    /// The credential that opened the stream no longer holds.
    Credential,
    /// The policy no longer lets the peer in.
    Policy,
}

impl Cut {
    /// A metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Stalled => "stalled",
            Self::Stopping => "stopping",
            Self::Closing => "closing",
            Self::Credential => "credential",
            Self::Policy => "policy",
        }
    }
}

/// The state of one stream. It belongs to the stream's task, so that it needs no lock.
#[derive(Default)]
pub struct Stream {
    deadline: Cell<Option<Instant>>,
    end_condition: RefCell<Option<BoxFuture<'static, Cut>>>,
    frames: Cell<u64>,
    waiting: Cell<bool>,
    cut: Cell<Option<Cut>>,
}

tokio::task_local! {
    static STREAM: Stream;
}

impl Stream {
    /// Runs the work of a stream, which finds its state through the other functions.
    pub fn scope<F: Future>(work: F) -> TaskLocalFuture<Self, F> {
        STREAM.scope(Self::default(), work)
    }

    fn with<T>(work: impl FnOnce(&Self) -> T) -> Option<T> {
        STREAM.try_with(work).ok()
    }

    /// The stream must have ended by then.
    pub fn set_deadline(at: Instant) {
        Self::with(|s| s.deadline.set(Some(at)));
    }

    pub fn deadline() -> Option<Instant> {
        Self::with(|s| s.deadline.get()).flatten()
    }

    /// The stream must end when this says so. It is polled only while the peer takes nothing:
    /// otherwise the stream's body looks by itself.
    pub fn set_end_condition(condition: BoxFuture<'static, Cut>) {
        Self::with(|s| s.end_condition.replace(Some(condition)));
    }

    pub fn poll_end_condition(cx: &mut Context<'_>) -> Poll<Cut> {
        let polled = Self::with(|s| match &mut *s.end_condition.borrow_mut() {
            Some(condition) => condition.as_mut().poll(cx),
            None => Poll::Pending,
        });
        polled.unwrap_or(Poll::Pending)
    }

    /// A piece of the answer was handed over.
    pub fn handed_over() {
        Self::with(|s| {
            s.frames.set(s.frames.get() + 1);
            s.waiting.set(true);
        });
    }

    /// The next piece is asked for, so that the one before it is on its way.
    pub fn next_requested() {
        Self::with(|s| s.waiting.set(false));
    }

    /// How many pieces were handed over, when the last one waits for the peer.
    pub fn waiting_piece() -> Option<u64> {
        Self::with(|s| s.waiting.get().then(|| s.frames.get())).flatten()
    }

    pub fn set_cut(why: Cut) {
        Self::with(|s| s.cut.set(Some(why)));
    }

    /// Why the running task's stream is being dropped, when its connection ended it.
    pub fn cut() -> Option<Cut> {
        Self::with(|s| s.cut.get()).flatten()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("deadline", &self.deadline)
            .field("waiting", &self.waiting)
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_dropped_inside_learns_why() {
        struct Witness(std::sync::Arc<parking_lot::Mutex<Option<Cut>>>);
        impl Drop for Witness {
            fn drop(&mut self) {
                *self.0.lock() = Stream::cut();
            }
        }
        let seen = std::sync::Arc::default();
        let witness = Witness(std::sync::Arc::clone(&seen));
        Stream::scope(async {
            let work = async move {
                let _witness = witness;
                std::future::pending::<()>().await;
            };
            let mut work = Box::pin(work);
            let once = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
            assert!(once.is_pending());
            Stream::set_cut(Cut::Stalled);
            drop(work);
        })
        .await;
        assert_eq!(*seen.lock(), Some(Cut::Stalled));
        assert_eq!(Stream::cut(), None, "outside of a stream");
    }

    #[tokio::test]
    async fn a_piece_waits_until_the_next_is_asked_for() {
        Stream::scope(async {
            assert_eq!(Stream::waiting_piece(), None);
            Stream::handed_over();
            assert_eq!(Stream::waiting_piece(), Some(1));
            Stream::next_requested();
            assert_eq!(Stream::waiting_piece(), None);
        })
        .await;
    }
}
