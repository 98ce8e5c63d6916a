//! A request body that must arrive at a minimum rate.

use super::{Pace, pace::Patience};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prometheus_client::metrics::counter::Counter;
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The body arrived more slowly than the minimum rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body did not arrive in time")]
pub struct TooSlow;

impl TooSlow {
    /// Returns whether `error` is this error, or was caused by it.
    pub fn caused(error: &(dyn Error + 'static)) -> bool {
        error.is::<Self>() || error.source().is_some_and(Self::caused)
    }
}

pin_project! {
    /// Fails with [`TooSlow`] when too little arrives while it is being read.
    #[derive(Debug)]
    pub(crate) struct PacedBody<B> {
        #[pin]
        inner: B,
        patience: Patience,
        cut: Counter,
    }
}

impl<B> PacedBody<B> {
    /// Wraps a body; `cut` counts the ones that were too slow.
    pub(crate) fn new(inner: B, pace: Pace, cut: Counter) -> Self {
        Self {
            inner,
            patience: Patience::new(pace),
            cut,
        }
    }
}

impl<B> Body for PacedBody<B>
where
    B: Body<Data = bytes::Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    type Data = bytes::Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        match this.inner.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.patience.moved(frame.data_ref().map_or(0, |d| d.len()));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|r| r.map_err(Into::into))),
            Poll::Pending => {
                ready!(this.patience.poll_over(cx));
                this.cut.inc();
                Poll::Ready(Some(Err(TooSlow.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
