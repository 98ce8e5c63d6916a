//! The streams of one client connection. A server says how many there may be at once; what is over
//! waits inside h2, in silence and for as long as the others stay. Here whoever finds none free is
//! told so: at once, or after a moment where streams are short and one will be free.

use crate::framed::Framed;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// The largest message that a channel takes.
pub const MAX_RESPONSE: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Lanes {
    most: AtomicUsize,
    taken: AtomicUsize,
    freed: Notify,
}

impl Lanes {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            taken: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// What the server says that it takes.
    pub(super) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Takes a lane, and waits up to `patience` for one to be free.
    pub(super) async fn take(self: &Arc<Self>, patience: Duration) -> Option<Lane> {
        if let Some(lane) = self.try_take() {
            return Some(lane);
        }
        if patience.is_zero() {
            return None;
        }
        let end = Instant::now() + patience;
        while timeout_at(end, self.freed.notified()).await.is_ok() {
            if let Some(lane) = self.try_take() {
                return Some(lane);
            }
        }
        None
    }

    fn try_take(self: &Arc<Self>) -> Option<Lane> {
        let most = self.most.load(Ordering::Relaxed);
        let free = |taken| (taken < most).then_some(taken + 1);
        let taken = (self.taken).fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        taken.ok().map(|_| Lane(Arc::clone(self)))
    }
}

/// One stream's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Lane(Arc<Lanes>);

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

pin_project! {
    /// A response's body, which keeps its stream's place until it has ended.
    #[derive(Debug)]
    pub struct ChannelBody {
        #[pin]
        body: Framed<Incoming>,
        lane: Option<Lane>,
    }
}

impl ChannelBody {
    pub(super) fn new(body: Incoming, lane: Lane) -> Self {
        Self {
            body: Framed::new(body, MAX_RESPONSE),
            lane: Some(lane),
        }
    }
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        let more = matches!(&frame, Some(Ok(frame)) if frame.is_data());
        if !more {
            *this.lane = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_over_is_told_at_once_or_gets_the_next_lane() {
        let lanes = Lanes::new(200);
        lanes.set_most(2);
        let first = lanes.take(Duration::ZERO).await.unwrap();
        let second = lanes.take(Duration::ZERO).await.unwrap();
        assert!(lanes.take(Duration::ZERO).await.is_none());
        let waiting = tokio::spawn({
            let lanes = Arc::clone(&lanes);
            async move { lanes.take(Duration::from_secs(60)).await }
        });
        drop(first);
        let third = waiting.await.unwrap();
        assert!(third.is_some());
        drop((second, third));
        assert_eq!(lanes.taken.load(Ordering::Relaxed), 0);
    }
}
