//! Deadlines: absolute from the moment a call arrives, never later than the rule's, propagated to
//! outgoing calls, and in force until the last byte of a stream. While a response waits for the peer's
//! flow-control window, nothing here is polled; the connection then enforces the deadline, which it
//! receives through `tars_runtime::stream`.
//!
//! A stream without a deadline must at least start in time: a client that sends headers but never
//! finishes its request would hold its place for ever.
//!
//! The timer is created only when a call has to wait, which most unary calls never do.

use crate::{Call, check::CheckFuture};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_proto::{fault, reason, timeout};
use tars_runtime::stream::Stream;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

fn not_begun() -> Status {
    fault::status(
        Code::DeadlineExceeded,
        reason::REQUEST_TIMEOUT,
        "the response did not start in time: the request was incomplete, or its handler was slow",
    )
}

/// Enforces the deadline of every call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeadlineLayer {
    /// How long a stream without a deadline may take to start its response.
    pub open: Duration,
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline {
            inner,
            open: self.open,
        }
    }
}

/// A service that enforces deadlines.
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    open: Duration,
}

/// Returns the instant by which the call must have ended.
fn decide(call: &Call, headers: &HeaderMap) -> Result<Option<Instant>, Status> {
    let refused = |problem| fault::status(Code::InvalidArgument, reason::INVALID_TIMEOUT, problem);
    let mut values = headers.get_all(timeout::HEADER).iter();
    let asked = match (values.next(), values.next()) {
        (None, _) => None,
        (Some(value), None) => {
            let parsed = value.to_str().ok().and_then(timeout::parse);
            Some(parsed.ok_or_else(|| refused("grpc-timeout does not parse"))?)
        }
        (Some(_), Some(_)) => return Err(refused("grpc-timeout is given twice")),
    };
    let shorter = match (asked, call.method.rule.deadline) {
        (Some(asked), Some(most)) => Some(asked.min(most)),
        (asked, most) => asked.or(most),
    };
    Ok(shorter.and_then(|t| call.started.checked_add(t)))
}

impl<S, A> Service<Request<A>> for Deadline<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = CheckFuture<Timed<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let Some(call) = Call::in_extensions(request.extensions()).map(Arc::clone) else {
            return CheckFuture::refused(Status::internal("the call has no record"));
        };
        match decide(&call, request.headers()) {
            // The call has just begun: the clock is not read again.
            Ok(Some(at)) if at <= call.started => refused(&call, timeout::expired()),
            Ok(at) => {
                if let Some(at) = at {
                    call.set_deadline(at);
                }
                let streams = call.method.server_streaming;
                let begun = call.started.checked_add(self.open).filter(|_| streams);
                CheckFuture::passed(Timed {
                    inner: self.inner.call(request),
                    timer: Timer::new([at, begun].into_iter().flatten().min()),
                    deadline: at,
                    streams,
                })
            }
            Err(status) => refused(&call, status),
        }
    }
}

/// Refuses a call for what it asks for. Its listener counts that, as it does what exceeds a limit.
fn refused<F>(call: &Call, status: Status) -> CheckFuture<F> {
    call.set_refusal(&status);
    let mut response = status.into_http();
    response.extensions_mut().insert(timeout::Refused);
    CheckFuture::answered(response)
}

#[derive(Debug)]
struct Timer {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn new(at: Option<Instant>) -> Self {
        Self { at, sleep: None }
    }

    /// Ready when time is up. Called only when the call has to wait.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        sleep.as_mut().poll(cx)
    }
}

pin_project! {
    /// A call that has until its deadline.
    pub struct Timed<F> {
        #[pin]
        inner: F,
        timer: Timer,
        deadline: Option<Instant>,
        streams: bool,
    }
}

impl<F, E> Future for Timed<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(at) = *this.deadline {
            Stream::set_deadline(at);
        }
        let Poll::Ready(result) = this.inner.poll(cx) else {
            ready!(this.timer.poll(cx));
            let late = this.deadline.is_some_and(|at| at <= Instant::now());
            let status = if late {
                timeout::expired()
            } else {
                not_begun()
            };
            return Poll::Ready(Ok(status.into_http()));
        };
        let bounded = this.deadline.is_some() && *this.streams;
        Poll::Ready(match bounded {
            true => result.map(|r| r.map(|body| bound(body, *this.deadline))),
            false => result,
        })
    }
}

fn bound(body: Body, at: Option<Instant>) -> Body {
    Body::new(DeadlineBody {
        inner: Some(body),
        timer: Timer::new(at),
    })
}

/// A stream that ends with DEADLINE_EXCEEDED at its deadline.
#[derive(Debug)]
struct DeadlineBody {
    inner: Option<Body>,
    timer: Timer,
}

impl http_body::Body for DeadlineBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(this.timer.poll(cx));
        this.inner = None;
        let mut trailers = HeaderMap::new();
        trailers.insert(
            "grpc-status",
            HeaderValue::from(Code::DeadlineExceeded as i32),
        );
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner
            .as_ref()
            .is_none_or(http_body::Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_start_is_reported_whichever_side_was_slow() {
        let status = not_begun();
        assert_eq!(fault::reason(&status).as_deref(), Some("REQUEST_TIMEOUT"));
        let message = status.message();
        assert!(message.contains("the response did not start in time"));
        assert!(
            message.contains("request") && message.contains("handler"),
            "{message}"
        );
    }
}
