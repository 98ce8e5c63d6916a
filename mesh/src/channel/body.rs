//! The body of a response: it holds the slot of its stream until it has ended, and ends with the deadline of
//! its call.

use super::slots::StreamSlot;
use crate::framed::Framed;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};
use tars_proto::timeout;
use tokio::time::{Instant, Sleep, sleep_until};

/// Maximum size in bytes of a message that a channel receives.
pub const MAX_RESPONSE: usize = 16 << 20;

pin_project! {
    /// The body of a response, which holds the slot of its stream until it has ended.
    #[derive(Debug)]
    pub struct ChannelBody {
        // `None` once the deadline has passed, which resets the stream.
        #[pin]
        body: Option<Framed<Incoming>>,
        slot: Option<StreamSlot>,
        deadline: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl ChannelBody {
    pub(super) fn new(body: Incoming, slot: StreamSlot, deadline: Option<Instant>) -> Self {
        Self {
            body: Some(Framed::new(body, MAX_RESPONSE)),
            slot: Some(slot),
            deadline,
            timer: None,
        }
    }
}

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = body.poll_frame(cx) {
            let more = matches!(&frame, Some(Ok(frame)) if frame.is_data());
            if !more {
                *this.slot = None;
            }
            return Poll::Ready(frame);
        }
        // The timer is created only when there is something to wait for.
        let Some(at) = *this.deadline else {
            return Poll::Pending;
        };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.body.set(None);
        *this.slot = None;
        let mut trailers = HeaderMap::new();
        timeout::expired().add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let known = self.body.as_ref().map(Body::size_hint);
        known.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}
