//! A layer that lets a call pass or answers in its place.

use crate::Call;
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

/// Decides whether a call may pass.
pub trait Check: Clone {
    /// Decides about a call before its request has been read.
    ///
    /// # Errors
    ///
    /// The status with which the call is refused.
    fn check(&self, call: &Arc<Call>, headers: &http::HeaderMap) -> Result<(), Status>;
}

/// One after another, in their order; the first refusal counts. As one check they cost one layer, through which the
/// request and the future of its handler are moved once.
impl<A: Check, B: Check, C: Check, D: Check, E: Check> Check for (A, B, C, D, E) {
    fn check(&self, call: &Arc<Call>, headers: &http::HeaderMap) -> Result<(), Status> {
        self.0.check(call, headers)?;
        self.1.check(call, headers)?;
        self.2.check(call, headers)?;
        self.3.check(call, headers)?;
        self.4.check(call, headers)
    }
}

/// Applies a [`Check`] to every call.
#[derive(Debug, Clone)]
pub(crate) struct CheckLayer<C>(pub C);

impl<S, C: Clone> Layer<S> for CheckLayer<C> {
    type Service = Checked<S, C>;

    fn layer(&self, inner: S) -> Checked<S, C> {
        Checked {
            inner,
            check: self.0.clone(),
        }
    }
}

/// A service behind a [`Check`].
#[derive(Debug, Clone)]
pub struct Checked<S, C> {
    inner: S,
    check: C,
}

impl<S, C, B> Service<Request<B>> for Checked<S, C>
where
    S: Service<Request<B>, Response = Response<Body>>,
    C: Check,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = CheckFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let verdict = match Call::in_extensions(request.extensions()) {
            Some(call) => self
                .check
                .check(call, request.headers())
                .inspect_err(|status| call.set_refusal(status)),
            None => Err(Status::internal("the call has no record")),
        };
        match verdict {
            Ok(()) => CheckFuture::passed(self.inner.call(request)),
            Err(status) => CheckFuture::refused(status),
        }
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Passed { #[pin] future: F },
        Refused { response: Option<Response<Body>> },
    }
}

pin_project! {
    /// The future of a layer that lets a call pass or answers in its place.
    pub struct CheckFuture<F> {
        #[pin]
        state: State<F>,
    }
}

impl<F> CheckFuture<F> {
    pub(crate) fn passed(future: F) -> Self {
        Self {
            state: State::Passed { future },
        }
    }

    pub(crate) fn refused(status: Status) -> Self {
        Self::answered(status.into_http())
    }

    pub(crate) fn answered(response: Response<Body>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }
}

impl<F, E> Future for CheckFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Passed { future } => future.poll(cx),
            Projected::Refused { response } => Poll::Ready(Ok(response
                .take()
                .expect("a future is not polled after it is ready"))),
        }
    }
}
