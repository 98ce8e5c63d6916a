//! The layer that counts every call that is admitted. It is the last one: what another check refuses is not
//! counted, and what exceeds a quota is charged to the rate limits.
//!
//! A call is used from here on, and counted when its response begins or it is given up, unless its request was
//! shed when it came (`overload`). A workload that sends a call again says whether it may have been counted
//! before: a call counts once, however often it is sent.

use super::Usage;
use crate::{Call, check::CheckFuture};
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tonic::{Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

/// Counts every call.
#[derive(Debug, Clone)]
pub(crate) struct UsageLayer(pub Usage);

impl<S> Layer<S> for UsageLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            usage: self.0.clone(),
        }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    usage: Usage,
}

impl<S, A> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = CheckFuture<CountedFuture<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let Some(call) = Call::in_extensions(request.extensions()) else {
            return CheckFuture::refused(Status::internal("the call has no record"));
        };
        match self.usage.admit(call) {
            Ok(admitted) => CheckFuture::passed(CountedFuture {
                inner: self.inner.call(request),
                admitted,
            }),
            Err(status) => {
                call.set_refusal(&status);
                CheckFuture::refused(status)
            }
        }
    }
}

impl Usage {
    /// Admits a call, unless it exceeds the quota of its caller. `None` for one that is not counted.
    ///
    /// # Errors
    ///
    /// The status with which it is refused.
    pub(super) fn admit(&self, call: &Arc<Call>) -> Result<Option<Admitted>, Status> {
        let is_counted =
            call.enters_the_mesh() && !call.is_charged() && !call.method.rule.unmetered;
        let Some(caller) = call.caller().filter(|_| is_counted) else {
            return Ok(None);
        };
        let begun = self.begin_call(caller);
        begun.map_err(|refusal| refusal.status())?;
        Ok(Some(Admitted {
            usage: self.clone(),
            call: Arc::clone(call),
        }))
    }
}

/// A call that is admitted, and counted when this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    usage: Usage,
    call: Arc<Call>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(caller) = self.call.caller() {
            let counts = !self.call.flight().is_shed();
            self.usage.end_call(&caller.owner_id, counts);
        }
    }
}

pin_project! {
    /// The future of [`Counted`].
    pub struct CountedFuture<F> {
        #[pin]
        inner: F,
        admitted: Option<Admitted>,
    }
}

impl<F, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx));
        // What is counted is known before the answer is.
        this.admitted.take();
        Poll::Ready(answer)
    }
}
