//! Ends server streams that have no end of their own: when the process stops or the connection is
//! about to close (UNAVAILABLE: resume elsewhere by sequence number), when the credential that
//! opened them no longer holds (UNAUTHENTICATED), and when the policy no longer lets the peer in
//! (PERMISSION_DENIED).

use crate::{Call, peer_policy, policy::PolicyHandle};
use http::{Request, Response, header::CONTENT_TYPE};
use http_body::Frame;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_credentials::View;
use tars_proto::fault;
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
    pub policy: PolicyHandle,
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
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    look: Interval,
}

impl DrainBody {
    fn new(inner: Body, call: impl Into<Option<Arc<Call>>>, layer: Arc<StreamEnds>) -> Self {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let call = call.into();
        let closing = call
            .as_ref()
            .map_or_else(CancellationToken::new, |c| c.peer.closing.clone());
        Self {
            inner: Some(inner),
            closing: Box::pin(closing.cancelled_owned()),
            stopped: Box::pin(layer.stop.clone().cancelled_owned()),
            call,
            layer,
            look,
        }
    }

    /// Why the stream may not go on, looked at a few times a second.
    fn denied(&mut self, cx: &mut Context<'_>) -> Option<Status> {
        let mut due = false;
        while self.look.poll_tick(cx).is_ready() {
            due = true;
        }
        let call = self.call.as_ref().filter(|_| due)?;
        let layer = &self.layer;
        let now = layer.clock.now_s();
        if call
            .caller()
            .is_some_and(|c| !layer.view.still_valid(c, now))
        {
            return Some(fault::status(
                Code::Unauthenticated,
                "INVALID_CREDENTIALS",
                "the credential no longer holds",
            ));
        }
        layer.policy.decide(call).err().map(|why| {
            tracing::info!(peer = call.peer.name(), method = call.method.path, %why, "an open stream is not allowed any more");
            peer_policy::refusal()
        })
    }

    /// Why the stream must move, whenever that happens.
    fn moved(&mut self, cx: &mut Context<'_>) -> Option<Status> {
        let again = Duration::from_millis(100);
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Some(fault::unavailable(
                "STOPPING",
                "the server is stopping",
                again,
            ));
        }
        let message = "the connection is closing; go on from the last sequence on another one";
        let closing = self.closing.as_mut().poll(cx).is_ready();
        closing.then(|| fault::unavailable("CONNECTION_CLOSING", message, again))
    }

    fn end(&mut self, status: Status) -> Frame<bytes::Bytes> {
        self.inner = None;
        let mut trailers = status.into_http::<()>().into_parts().0.headers;
        trailers.remove(CONTENT_TYPE);
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
        if let Some(status) = this.denied(cx).or_else(|| this.moved(cx)) {
            return Poll::Ready(Some(Ok(this.end(status))));
        }
        match &mut this.inner {
            Some(inner) => Pin::new(inner).poll_frame(cx),
            None => Poll::Ready(None),
        }
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
            policy: PolicyHandle::default(),
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
            policy: PolicyHandle::default(),
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
