//! The body of a response: it holds the slot of its stream until it has ended, and ends with the deadline of
//! its call. What its trailers say is recorded on the way. Details of a status that cannot be read are dropped
//! here, from headers as from trailers, before anybody reads the status.

use super::{
    judge::{BoxError, Item, Judge},
    metrics::Counted,
    slots::StreamSlot,
};
use crate::framed::Framed;
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tars_proto::{MAX_RESPONSE, binary, fault::code_in, timeout};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

pin_project! {
    /// The body of a response, which holds the slot of its stream until it has ended.
    #[derive(Debug)]
    pub struct ChannelBody<B = Incoming> {
        // `None` once the deadline has passed, which resets the stream.
        #[pin]
        body: Option<Framed<B>>,
        // What was read of it to see whether the call failed.
        first: Option<Item>,
        slot: Option<StreamSlot>,
        deadline: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
        // What judges the address, as long as what follows tells something of it.
        judge: Option<Judge>,
        counted: Option<Counted>,
    }
}

impl<B> ChannelBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    /// The response with this body.
    pub(super) fn of(
        mut response: Response<B>,
        slot: StreamSlot,
        deadline: Option<Instant>,
    ) -> Response<Self> {
        binary::drop_unreadable_details(response.headers_mut());
        response.map(|body| Self {
            body: Some(Framed::response(body, MAX_RESPONSE)),
            first: None,
            slot: Some(slot),
            deadline,
            timer: None,
            judge: None,
            counted: None,
        })
    }

    /// Waits for the first message, or what comes in its place.
    pub(super) async fn read_first(&mut self) {
        if let Some(body) = &mut self.body {
            self.first = poll_fn(|cx| poll_body(Pin::new(&mut *body), cx)).await;
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

    /// Judges the address by what follows.
    pub(super) fn judge(&mut self, judge: Judge) {
        self.judge = Some(judge);
    }

    /// Counts the call when the body ends.
    pub(super) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }
}

fn poll_body<B>(body: Pin<&mut Framed<B>>, cx: &mut Context<'_>) -> Poll<Option<Item>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut frame = ready!(body.poll_frame(cx));
    if let Some(Ok(frame)) = &mut frame
        && let Some(trailers) = frame.trailers_mut()
    {
        binary::drop_unreadable_details(trailers);
    }
    Poll::Ready(frame)
}

/// Returns the code with which a call has ended whose body has this last; `None` for the end.
fn code_of(last: Option<&Item>) -> Code {
    match last {
        Some(Ok(frame)) => {
            let trailers = frame.trailers_ref();
            trailers.and_then(code_in).unwrap_or(Code::Unknown)
        }
        // What this side refuses has a status; the connection was lost otherwise.
        Some(Err(error)) => {
            let refused = error.downcast_ref::<Status>();
            refused.map_or(Code::Unavailable, Status::code)
        }
        None => Code::Unknown,
    }
}

impl<B> Body for ChannelBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let polled = match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => poll_body(body, cx),
        };
        if let Poll::Ready(frame) = polled {
            *this.judge = this
                .judge
                .take()
                .and_then(|judge| judge.see(frame.as_ref()));
            let more = matches!(&frame, Some(Ok(frame)) if frame.is_data());
            if !more {
                *this.slot = None;
                end(this.counted, code_of(frame.as_ref()));
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
        (*this.slot, *this.judge) = (None, None);
        end(this.counted, Code::DeadlineExceeded);
        let mut trailers = HeaderMap::new();
        timeout::expired().add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
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

fn end(counted: &mut Option<Counted>, code: Code) {
    if let Some(mut counted) = counted.take() {
        counted.end(code);
    }
}

#[cfg(test)]
mod tests;
