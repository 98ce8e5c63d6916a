//! The body of a response: it holds the slot of its stream until it has ended, and ends with the deadline of
//! its call. What its trailers say is recorded on the way.

use super::{
    ending::{Ending, code_in},
    health::Trial,
    metrics::Counted,
    slots::StreamSlot,
};
use crate::framed::Framed;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::{
    error::Error,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};
use tars_proto::timeout;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Code;

/// Maximum size in bytes of a message that a channel receives.
pub const MAX_RESPONSE: usize = 16 << 20;

type BoxError = Box<dyn Error + Send + Sync>;
type Item = Result<Frame<Bytes>, BoxError>;

pin_project! {
    /// The body of a response, which holds the slot of its stream until it has ended.
    #[derive(Debug)]
    pub struct ChannelBody {
        // `None` once the deadline has passed, which resets the stream.
        #[pin]
        body: Option<Framed<Incoming>>,
        // What was read of it to see whether the call failed.
        first: Option<Item>,
        slot: Option<StreamSlot>,
        deadline: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
        // The call to an address that has sent no message of its stream.
        trial: Option<Box<Trial>>,
        counted: Option<Counted>,
    }
}

impl ChannelBody {
    pub(super) fn new(body: Incoming, slot: StreamSlot, deadline: Option<Instant>) -> Self {
        Self {
            body: Some(Framed::response(body, MAX_RESPONSE)),
            first: None,
            slot: Some(slot),
            deadline,
            timer: None,
            trial: None,
            counted: None,
        }
    }

    /// Waits for the first message, or what comes in its place.
    pub(super) async fn read_first(&mut self) {
        if let Some(body) = &mut self.body {
            self.first = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        }
    }

    /// Returns the trailers, where they are the first that was read.
    pub(super) fn first_trailers(&self) -> Option<&HeaderMap> {
        self.first.as_ref()?.as_ref().ok()?.trailers_ref()
    }

    /// Takes the failure of the connection, where it came before the first message.
    pub(super) fn take_failure(&mut self) -> Option<hyper::Error> {
        match self.first.take()? {
            Ok(frame) => {
                self.first = Some(Ok(frame));
                None
            }
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(failure) => Some(*failure),
                Err(other) => {
                    self.first = Some(Err(other));
                    None
                }
            },
        }
    }

    /// Judges the address by whether the stream fails before its first message.
    pub(super) fn judge(&mut self, trial: Trial) {
        self.trial = Some(Box::new(trial));
    }

    /// Counts the call when the body ends.
    pub(super) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }
}

/// Records what a frame tells, or that there is no further one.
fn record(frame: Option<&Item>, trial: &mut Option<Box<Trial>>, counted: &mut Option<Counted>) {
    let trailers = match frame {
        Some(Ok(frame)) => match frame.trailers_ref() {
            Some(trailers) => Some(trailers),
            None => {
                drop(trial.take());
                return;
            }
        },
        _ => None,
    };
    if let (Some(trial), Some(trailers)) = (trial.take(), trailers) {
        trial.end(Ending::of(trailers));
    }
    if let Some(mut counted) = counted.take() {
        counted.end(match frame {
            Some(Err(_)) => Code::Unavailable,
            _ => trailers.and_then(code_in).unwrap_or(Code::Unknown),
        });
    }
}

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let polled = match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => body.poll_frame(cx),
        };
        if let Poll::Ready(frame) = polled {
            let more = matches!(&frame, Some(Ok(frame)) if frame.is_data());
            if !more {
                *this.slot = None;
            }
            record(frame.as_ref(), this.trial, this.counted);
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
        let expired = Ok(Frame::trailers(trailers));
        *this.trial = None;
        record(Some(&expired), this.trial, this.counted);
        Poll::Ready(Some(expired))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let known = self.body.as_ref().map(Body::size_hint);
        let mut hint = known.unwrap_or_else(|| SizeHint::with_exact(0));
        let first = self.first.as_ref().and_then(|first| first.as_ref().ok());
        let first = first.and_then(Frame::data_ref).map_or(0, Bytes::len);
        let first = u64::try_from(first).unwrap_or(u64::MAX);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint.set_lower(hint.lower().saturating_add(first));
        hint
    }
}
