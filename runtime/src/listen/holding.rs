//! A body that something lives as long as: an answer is not over with its headers.

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

pin_project! {
    /// Drops what it holds when it is dropped, right after the body.
    #[derive(Debug)]
    pub struct HoldingBody<B, T> {
        #[pin]
        body: B,
        held: T,
    }
}

impl<B, T> HoldingBody<B, T> {
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
