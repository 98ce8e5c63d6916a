//! A body that keeps a value alive: a response is not over with its headers.

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

pin_project! {
    /// Drops the value right after the body.
    #[derive(Debug)]
    pub struct HoldingBody<B, T> {
        #[pin]
        body: B,
        held: T,
    }
}

impl<B, T> HoldingBody<B, T> {
    /// Wraps a body so that `held` lives as long.
    pub fn new(body: B, held: T) -> Self {
        Self { body, held }
    }
}

impl<B: Body, T> Body for HoldingBody<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
