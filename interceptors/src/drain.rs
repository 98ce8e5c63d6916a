//! Ends server streams that have no end of their own: when the process stops, and when the
//! credential that opened them no longer holds. Clients of a stopping process are told UNAVAILABLE
//! and resume elsewhere by sequence number; the others UNAUTHENTICATED.

use crate::Call;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_credentials::View;
use tars_runtime::clock::Clock;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};
use tower_service::Service;

/// How often an open stream's credential is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct StreamEnds {
    pub stop: CancellationToken,
    pub view: View,
    pub clock: Clock,
}

#[derive(Debug, Clone)]
pub struct Drain<S> {
    inner: S,
    layer: Arc<StreamEnds>,
}

impl<S> Drain<S> {
    pub(crate) fn new(inner: S, layer: Arc<StreamEnds>) -> Self {
        Self { inner, layer }
    }
}

impl<S, A> Service<Request<A>> for Drain<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = DrainFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let call = Call::in_extensions(request.extensions()).map(Arc::clone);
        let streams = call.filter(|c| c.method.server_streaming);
        DrainFuture {
            inner: self.inner.call(request),
            guard: streams.map(|call| (call, Arc::clone(&self.layer))),
        }
    }
}

pin_project! {
    pub struct DrainFuture<F> {
        #[pin]
        inner: F,
        guard: Option<(Arc<Call>, Arc<StreamEnds>)>,
    }
}

impl<F, E> Future for DrainFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        Poll::Ready(match this.guard.take() {
            Some((call, layer)) => {
                result.map(|r| r.map(|body| Body::new(DrainBody::new(body, call, layer))))
            }
            None => result,
        })
    }
}

struct DrainBody {
    inner: Option<Body>,
    call: Option<Arc<Call>>,
    layer: Arc<StreamEnds>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    look: Interval,
}

impl DrainBody {
    fn new(inner: Body, call: impl Into<Option<Arc<Call>>>, layer: Arc<StreamEnds>) -> Self {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stopped = Box::pin(layer.stop.clone().cancelled_owned());
        Self {
            inner: Some(inner),
            call: call.into(),
            layer,
            stopped,
            look,
        }
    }

    fn revoked(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(caller) = self.call.as_ref().and_then(|c| c.caller()) else {
            return false;
        };
        let mut due = false;
        while self.look.poll_tick(cx).is_ready() {
            due = true;
        }
        due && !self
            .layer
            .view
            .still_valid(caller, self.layer.clock.now_s())
    }

    fn end(&mut self, code: Code, message: &'static str) -> Frame<bytes::Bytes> {
        self.inner = None;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(code as i32));
        trailers.insert("grpc-message", HeaderValue::from_static(message));
        Frame::trailers(trailers)
    }
}

impl http_body::Body for DrainBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        if this.inner.is_none() {
            return Poll::Ready(None);
        }
        // First, so that a stream that always has something to say ends as well.
        if this.revoked(cx) {
            let end = this.end(Code::Unauthenticated, "the credential no longer holds");
            return Poll::Ready(Some(Ok(end)));
        }
        if let Some(inner) = &mut this.inner
            && let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx)
        {
            return Poll::Ready(frame);
        }
        ready!(this.stopped.as_mut().poll(cx));
        let end = this.end(Code::Unavailable, "the server is stopping");
        Poll::Ready(Some(Ok(end)))
    }

    /// A refusal has no body, and must be sent as one frame of headers: some clients take anything
    /// else for a stream without its trailers.
    fn is_end_stream(&self) -> bool {
        self.inner
            .as_ref()
            .is_none_or(http_body::Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_quiet_stream_ends_when_the_process_stops() {
        let stop = CancellationToken::new();
        let layer = Arc::new(StreamEnds {
            stop: stop.clone(),
            view: View::default(),
            clock: Clock::system(),
        });
        let silent = Body::new(http_body_util::StreamBody::new(
            futures_util::stream::pending::<Result<Frame<bytes::Bytes>, Status>>(),
        ));
        let mut body = DrainBody::new(silent, None, layer);
        stop.cancel();
        let trailers = body
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(
            Code::from_bytes(trailers["grpc-status"].as_bytes()),
            Code::Unavailable
        );
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_empty_body_stays_empty() {
        let layer = Arc::new(StreamEnds {
            stop: CancellationToken::new(),
            view: View::default(),
            clock: Clock::system(),
        });
        assert!(http_body::Body::is_end_stream(&DrainBody::new(
            Body::empty(),
            None,
            layer
        )));
    }
}
