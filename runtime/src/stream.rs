//! The state that the work for one HTTP/2 stream shares with the connection that carries it.
//!
//! While a response waits for the peer's flow-control window, hyper polls nothing of the response: neither
//! its body nor the timers inside it. Only the task around both still runs. From here it learns when the
//! stream has to end, and the layers of the call learn why it was dropped.

use futures_util::future::BoxFuture;
use std::{
    cell::{Cell, RefCell},
    error::Error,
    fmt,
    task::{Context, Poll},
};
use tokio::{task::futures::TaskLocalFuture, time::Instant};

/// Why the connection ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The deadline of the call has passed.
    Deadline,
    /// The peer has read nothing for too long.
    Stalled,
    /// The process is stopping.
    Stopping,
    /// The connection is about to close.
    Closing,
    /// The credential that opened the stream is no longer valid.
    Credential,
    /// The policy no longer admits the peer.
    Policy,
}

impl Cut {
    /// Returns the value of the metric label.
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

/// Why a request that has arrived is not taken up.
pub type Refused = Box<dyn Error + Send + Sync>;

/// Decides whether a request is taken up, once what the process waited for has arrived.
pub type Gate = Box<dyn FnOnce() -> Result<(), Refused> + Send>;

/// The state of one stream. It belongs to the stream's task, so it needs no lock.
#[derive(Default)]
pub struct Stream {
    deadline: Cell<Option<Instant>>,
    end_condition: RefCell<Option<BoxFuture<'static, Cut>>>,
    frames: Cell<u64>,
    waiting: Cell<bool>,
    cut: Cell<Option<Cut>>,
    awaited: Cell<bool>,
    gate: Cell<Option<Gate>>,
    arrived: Cell<Option<Instant>>,
}

tokio::task_local! {
    static STREAM: Stream;
}

impl Stream {
    /// Runs the work of a stream, which finds its state through the other functions. Outside of a
    /// stream those have no effect.
    pub fn scope<F: Future>(work: F) -> TaskLocalFuture<Self, F> {
        STREAM.scope(Self::default(), work)
    }

    fn with<T>(work: impl FnOnce(&Self) -> T) -> Option<T> {
        STREAM.try_with(work).ok()
    }

    /// Sets the instant by which the stream must have ended.
    pub fn set_deadline(at: Instant) {
        Self::with(|s| s.deadline.set(Some(at)));
    }

    /// Returns the instant by which the stream must have ended.
    pub fn deadline() -> Option<Instant> {
        Self::with(|s| s.deadline.get()).flatten()
    }

    /// Sets a future that completes when the stream must end. It is polled only while the peer reads
    /// nothing: otherwise the stream's body checks by itself.
    pub fn set_end_condition(condition: BoxFuture<'static, Cut>) {
        Self::with(|s| s.end_condition.replace(Some(condition)));
    }

    /// Polls the future of [`set_end_condition`](Self::set_end_condition).
    pub fn poll_end_condition(cx: &mut Context<'_>) -> Poll<Cut> {
        let polled = Self::with(|s| match &mut *s.end_condition.borrow_mut() {
            Some(condition) => condition.as_mut().poll(cx),
            None => Poll::Pending,
        });
        polled.unwrap_or(Poll::Pending)
    }

    /// Records that the next piece of the request has not arrived yet.
    pub fn request_awaited() {
        Self::with(|s| s.awaited.set(true));
    }

    /// Returns whether the process waits for the next piece of the request.
    pub fn is_request_awaited() -> bool {
        Self::with(|s| s.awaited.get()).unwrap_or(false)
    }

    /// Sets what decides about the request once the piece arrives that is awaited.
    pub fn set_gate(gate: Gate) {
        Self::with(|s| s.gate.set(Some(gate)));
    }

    /// Records that a piece of the request has arrived. The clock is read only if the piece was waited for.
    ///
    /// # Errors
    ///
    /// What the gate of [`set_gate`](Self::set_gate) refuses the request with.
    pub fn request_arrived() -> Result<(), Refused> {
        let gate = Self::with(|s| {
            if !s.awaited.replace(false) {
                return None;
            }
            s.arrived.set(Some(Instant::now()));
            s.gate.take()
        });
        gate.flatten().map_or(Ok(()), |gate| gate())
    }

    /// Returns when the last piece of the request arrived that was waited for.
    pub fn request_arrived_at() -> Option<Instant> {
        Self::with(|s| s.arrived.get()).flatten()
    }

    /// Records that a piece of the response was handed to hyper.
    pub fn handed_over() {
        Self::with(|s| {
            s.frames.set(s.frames.get() + 1);
            s.waiting.set(true);
        });
    }

    /// Records that hyper asks for the next piece, so that the one before it has been sent.
    pub fn next_requested() {
        Self::with(|s| s.waiting.set(false));
    }

    /// Returns the number of the piece that waits for the peer, if one does.
    pub fn waiting_piece() -> Option<u64> {
        Self::with(|s| s.waiting.get().then(|| s.frames.get())).flatten()
    }

    /// Records why the connection ends the stream.
    pub fn set_cut(why: Cut) {
        Self::with(|s| s.cut.set(Some(why)));
    }

    /// Returns why the running task's stream is being dropped, when its connection ended it.
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
    async fn work_that_is_dropped_learns_why() {
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
    async fn a_gate_decides_once_about_what_was_awaited() {
        Stream::scope(async {
            Stream::set_gate(Box::new(|| Err("too busy".into())));
            assert!(Stream::request_arrived().is_ok(), "nothing was awaited");
            Stream::request_awaited();
            assert!(Stream::is_request_awaited());
            let refused = Stream::request_arrived().unwrap_err();
            assert_eq!(refused.to_string(), "too busy");
            assert!(!Stream::is_request_awaited());
            Stream::request_awaited();
            assert!(Stream::request_arrived().is_ok(), "it has decided");
        })
        .await;
    }

    #[tokio::test]
    async fn a_piece_waits_until_the_next_is_requested() {
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
