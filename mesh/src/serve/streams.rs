//! Runs hyper's task for each stream, and ends a stream whose peer does not read.
//!
//! The deadline of a call, and the other conditions that end it, are checked in its response body, which hyper
//! polls only when the peer's window has room. While a piece of the response waits for that room, this task
//! checks in place of the body. It ends the stream by dropping hyper's future: h2 then sends RST_STREAM and
//! discards what it has buffered for the stream (`Prioritize::pop_frame`), and the layers of the call find the
//! reason in [`Stream::cut`].

use crate::MeshMetrics;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_runtime::stream::{Cut, Stream};
use tokio::time::{Instant, Sleep, sleep_until};

/// The executor of one connection.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    /// How long a peer may read nothing of a response.
    pub(super) stall: Duration,
    pub(super) metrics: MeshMetrics,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        tokio::spawn(Stream::scope(Watched {
            work: Some(work),
            stall: Stall::new(self.stall),
            metrics: self.metrics.clone(),
        }));
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        work: Option<F>,
        stall: Stall,
        metrics: MeshMetrics,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(work) = this.work.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        if work.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let why = ready!(this.stall.poll(cx));
        this.metrics.cut_stream(why.reason());
        Stream::set_cut(why);
        this.work.set(None);
        Poll::Ready(())
    }
}

/// Longer than any connection lives, and short enough to be added to the current time.
const MAX_STALL: Duration = Duration::from_secs(366 * 86_400);

/// A piece of a response that waits for the peer. The timer is created only when one does.
struct Stall {
    most: Duration,
    piece: u64,
    since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(most: Duration) -> Self {
        Self {
            most: most.min(MAX_STALL),
            piece: 0,
            since: None,
            sleep: None,
        }
    }

    /// Ready when the stream must end although its body is not polled.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        let Some(piece) = Stream::waiting_piece() else {
            self.since = None;
            return Poll::Pending;
        };
        if self.since.is_none() || self.piece != piece {
            self.begin(piece);
        }
        if let Poll::Ready(why) = Stream::poll_end_condition(cx) {
            return Poll::Ready(why);
        }
        let sleep = self.sleep.as_mut().expect("set when the piece began");
        ready!(sleep.as_mut().poll(cx));
        let late = Stream::deadline().is_some_and(|at| at <= Instant::now());
        Poll::Ready(if late { Cut::Deadline } else { Cut::Stalled })
    }

    fn begin(&mut self, piece: u64) {
        let now = Instant::now();
        (self.piece, self.since) = (piece, Some(now));
        let stalled = now + self.most;
        let end = Stream::deadline().map_or(stalled, |at| at.min(stalled));
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(end),
            None => self.sleep = Some(Box::pin(sleep_until(end))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_any_length_can_be_waited_for() {
        let cut = |most| async move {
            let mut stall = Stall::new(most);
            stall.begin(1);
            timeout(Duration::from_secs(60), stall.sleep.unwrap())
                .await
                .is_ok()
        };
        assert!(Stream::scope(cut(Duration::from_secs(30))).await);
        assert!(!Stream::scope(cut(Duration::MAX)).await);
    }
}
