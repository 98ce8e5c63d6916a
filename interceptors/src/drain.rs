//! Ends server streams that have no end of their own: when the process stops or the connection is
//! about to close (UNAVAILABLE: resume elsewhere by sequence number), when the credential that
//! opened them no longer holds (UNAUTHENTICATED), and when the policy no longer lets the peer in
//! (PERMISSION_DENIED). While the peer takes nothing, the connection's side looks in the body's
//! place, and resets the stream.

use crate::{
    Call, deadline,
    decide::{self, Verdict, decide},
    policy::PolicyHandle,
};
use futures_util::future::BoxFuture;
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
use tars_runtime::{
    clock::Clock,
    stream::{Cut, Stream},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
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
                // For while the peer takes nothing, and the body is not polled.
                Stream::set_ends(Box::pin(Arc::clone(&layer).ended(Some(Arc::clone(&call)))));
                result.map(|r| r.map(|body| Body::new(DrainBody::new(body, Some(call), layer))))
            }
            None => result,
        })
    }
}

impl StreamEnds {
    /// Why a stream may not go on, once that is so. Looks again and again at what can change
    /// without telling.
    async fn ended(self: Arc<Self>, call: Option<Arc<Call>>) -> Cut {
        let closing = call
            .as_ref()
            .map_or_else(CancellationToken::new, |c| c.peer.closing.clone());
        let denied = async {
            let Some(call) = &call else {
                return std::future::pending().await;
            };
            let mut look = tokio::time::interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                if let Some(why) = self.denied(call) {
                    return why;
                }
            }
        };
        tokio::select! {
            biased;
            why = denied => why,
            () = self.stop.cancelled() => Cut::Stopping,
            () = closing.cancelled() => Cut::Closing,
        }
    }

    fn denied(&self, call: &Call) -> Option<Cut> {
        let now = self.clock.now_s();
        if call
            .caller()
            .is_some_and(|c| !self.view.still_valid(c, now))
        {
            return Some(Cut::Credential);
        }
        match decide(&self.policy, call) {
            Verdict::Allowed => None,
            Verdict::NeedsCredential => Some(Cut::Credential),
            Verdict::Refused(why) => {
                tracing::info!(peer = call.peer.name(), method = call.method.path, %why, "an open stream is not allowed any more");
                Some(Cut::Policy)
            }
        }
    }
}

/// How the client reads it.
pub(crate) fn status_of(why: Cut) -> Status {
    let again = Duration::from_millis(100);
    match why {
        Cut::Deadline => deadline::expired(),
        Cut::Stalled => fault::unavailable("STALLED", "nothing of the answer was taken", again),
        Cut::Stopping => fault::unavailable("STOPPING", "the server is stopping", again),
        Cut::Closing => fault::unavailable(
            "CONNECTION_CLOSING",
            "the connection is closing; go on from the last sequence on another one",
            again,
        ),
        Cut::Credential => fault::status(
            Code::Unauthenticated,
            "INVALID_CREDENTIALS",
            "the credential no longer holds",
        ),
        Cut::Policy => decide::peer_not_allowed(),
    }
}

struct DrainBody {
    inner: Option<Body>,
    ended: BoxFuture<'static, Cut>,
}

impl DrainBody {
    fn new(inner: Body, call: Option<Arc<Call>>, layer: Arc<StreamEnds>) -> Self {
        Self {
            inner: Some(inner),
            ended: Box::pin(layer.ended(call)),
        }
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
        if let Poll::Ready(why) = this.ended.as_mut().poll(cx) {
            return Poll::Ready(Some(Ok(this.end(status_of(why)))));
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
