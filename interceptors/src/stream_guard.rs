//! Guards open server streams, which may otherwise have no end: a stream ends when the process stops or
//! its connection is about to close (UNAVAILABLE: resume elsewhere by sequence number), when the
//! credential that opened it is no longer valid (UNAUTHENTICATED), and when the policy no longer
//! admits the peer (PERMISSION_DENIED). While the peer reads nothing, the connection checks in place of
//! the body, and resets the stream.

use crate::{
    Call,
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
use tars_proto::{fault, reason, unavailable::Unavailable};
use tars_runtime::{
    clock::Clock,
    stream::{Cut, Stream},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};
use tower_service::Service;

/// How often the credential and the policy of an open stream are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// What a stream needs in order to stay open.
#[derive(Debug)]
pub(crate) struct StreamConditions {
    /// Cancelled when the process stops: workloads follow each other without an end, and go on elsewhere.
    pub stop: CancellationToken,
    /// Cancelled when the time is over that other streams have to finish by themselves.
    pub end_streams: CancellationToken,
    /// The policy that must admit the peer.
    pub policy: PolicyHandle,
    /// The view in which the caller's credential must be valid.
    pub view: View,
    /// The clock by which credentials expire.
    pub clock: Clock,
}

/// A service whose server streams are guarded.
#[derive(Debug, Clone)]
pub struct StreamGuard<S> {
    inner: S,
    conditions: Arc<StreamConditions>,
}

impl<S> StreamGuard<S> {
    pub(crate) fn new(inner: S, conditions: Arc<StreamConditions>) -> Self {
        Self { inner, conditions }
    }
}

impl<S, A> Service<Request<A>> for StreamGuard<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = StreamGuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let call = Call::in_extensions(request.extensions()).map(Arc::clone);
        let streams = call.filter(|c| c.method.server_streaming);
        StreamGuardFuture {
            inner: self.inner.call(request),
            guard: streams.map(|call| (call, Arc::clone(&self.conditions))),
        }
    }
}

pin_project! {
    /// The future of [`StreamGuard`].
    pub struct StreamGuardFuture<F> {
        #[pin]
        inner: F,
        guard: Option<(Arc<Call>, Arc<StreamConditions>)>,
    }
}

impl<F, E> Future for StreamGuardFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        Poll::Ready(match this.guard.take() {
            Some((call, conditions)) => {
                // For when the peer reads nothing, and the body is not polled.
                let violated = Arc::clone(&conditions).violated(Arc::clone(&call));
                Stream::set_end_condition(Box::pin(violated));
                result.map(|r| r.map(|body| Body::new(GuardedBody::new(body, call, conditions))))
            }
            None => result,
        })
    }
}

impl StreamConditions {
    /// Returns why a stream must end, once it must. Credentials and policies change without a
    /// notification, so they are checked periodically.
    async fn violated(self: Arc<Self>, call: Arc<Call>) -> Cut {
        let denied = async {
            let mut ticks = tokio::time::interval(CHECK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Some(why) = self.denied(&call) {
                    return why;
                }
            }
        };
        tokio::select! {
            biased;
            why = denied => why,
            () = self.ends(&call).cancelled() => Cut::Stopping,
            () = call.peer.closing.cancelled() => Cut::Closing,
        }
    }

    fn ends(&self, call: &Call) -> &CancellationToken {
        match call.is_own() {
            true => &self.stop,
            false => &self.end_streams,
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
                tracing::info!(peer = call.peer.name(), method = call.method.path, %why, "an open stream is no longer allowed");
                Some(Cut::Policy)
            }
        }
    }
}

/// The status with which the client sees a stream end.
pub(crate) fn status_of(why: Cut) -> Status {
    let retry = Duration::from_millis(100);
    match why {
        Cut::Deadline => tars_proto::timeout::expired(),
        Cut::Stalled => fault::unavailable(
            Unavailable::Stalled,
            "the peer read nothing of the response",
            retry,
        ),
        Cut::Stopping => fault::unavailable(Unavailable::Stopping, "the server is stopping", retry),
        Cut::Closing => fault::unavailable(
            Unavailable::ConnectionClosing,
            "the connection is closing; resume after the last sequence number on another one",
            retry,
        ),
        Cut::Credential => fault::status(
            Code::Unauthenticated,
            reason::INVALID_CREDENTIALS,
            "the credential is no longer valid",
        ),
        Cut::Policy => decide::peer_not_allowed(),
    }
}

struct GuardedBody {
    inner: Option<Body>,
    violated: BoxFuture<'static, Cut>,
}

impl GuardedBody {
    fn new(inner: Body, call: Arc<Call>, conditions: Arc<StreamConditions>) -> Self {
        Self {
            inner: Some(inner),
            violated: Box::pin(conditions.violated(call)),
        }
    }

    fn end(&mut self, status: Status) -> Frame<bytes::Bytes> {
        self.inner = None;
        let mut trailers = status.into_http::<()>().into_parts().0.headers;
        trailers.remove(CONTENT_TYPE);
        Frame::trailers(trailers)
    }
}

impl http_body::Body for GuardedBody {
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
        // Checked first, so that a stream that always has another message ends as well.
        if let Poll::Ready(why) = this.violated.as_mut().poll(cx) {
            return Poll::Ready(Some(Ok(this.end(status_of(why)))));
        }
        match &mut this.inner {
            Some(inner) => Pin::new(inner).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    /// A refusal has no body, and must be sent as a single HEADERS frame: some clients take anything
    /// else for a stream without trailers.
    fn is_end_stream(&self) -> bool {
        self.inner
            .as_ref()
            .is_none_or(http_body::Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::by_peer;
    use http_body_util::BodyExt;
    use tars_certs::PeerClass;

    const CREDENTIALS: &str = "/tars.auth.v1.CredentialService/WatchCredentials";

    /// A call that every policy allows.
    fn watch() -> Arc<Call> {
        by_peer(
            "/grpc.health.v1.Health/Watch",
            PeerClass::Gateway,
            "/gateway",
        )
    }

    fn conditions() -> Arc<StreamConditions> {
        Arc::new(StreamConditions {
            stop: CancellationToken::new(),
            end_streams: CancellationToken::new(),
            policy: PolicyHandle::default(),
            view: View::default(),
            clock: Clock::system(),
        })
    }

    fn silent(call: Arc<Call>, conditions: &Arc<StreamConditions>) -> GuardedBody {
        let silent = Body::new(http_body_util::StreamBody::new(
            futures_util::stream::pending::<Result<Frame<bytes::Bytes>, Status>>(),
        ));
        GuardedBody::new(silent, call, Arc::clone(conditions))
    }

    async fn code_at_the_end(body: &mut GuardedBody) -> Code {
        let frame = body.frame().await.unwrap().unwrap();
        let trailers = frame.into_trailers().unwrap();
        fault::code_in(&trailers).unwrap()
    }

    #[tokio::test]
    async fn a_stream_that_workloads_follow_ends_when_the_process_stops() {
        let conditions = conditions();
        let own = by_peer(CREDENTIALS, PeerClass::Gateway, "/gateway");
        let mut body = silent(own, &conditions);
        conditions.stop.cancel();
        assert_eq!(code_at_the_end(&mut body).await, Code::Unavailable);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn other_streams_have_time_to_finish_by_themselves() {
        let conditions = conditions();
        let mut body = silent(watch(), &conditions);
        conditions.stop.cancel();
        let mut frame = Box::pin(body.frame());
        assert!(futures_util::poll!(frame.as_mut()).is_pending());
        drop(frame);
        conditions.end_streams.cancel();
        assert_eq!(code_at_the_end(&mut body).await, Code::Unavailable);
    }

    #[tokio::test]
    async fn an_empty_body_stays_empty() {
        let conditions = conditions();
        assert!(http_body::Body::is_end_stream(&GuardedBody::new(
            Body::empty(),
            watch(),
            conditions
        )));
    }
}
