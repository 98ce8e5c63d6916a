//! The layer that charges every call. The decision may be one that another process makes: the call waits
//! for it here, with its request unread.

use super::{Charging, Outcome, RateLimiter, headers::LimitHeaders};
use crate::{Call, check::CheckFuture};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tars_certs::PeerClass;
use tars_runtime::clock::Clock;
use tonic::{Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

/// Applies the rate limits to every call.
#[derive(Debug, Clone)]
pub(crate) struct RateLimitLayer(pub RateLimiter);

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit {
            inner,
            limiter: self.0.clone(),
        }
    }
}

/// A service behind rate limits.
#[derive(Debug, Clone)]
pub struct RateLimit<S> {
    inner: S,
    limiter: RateLimiter,
}

impl<S, A> Service<Request<A>> for RateLimit<S>
where
    S: Service<Request<A>, Response = Response<Body>> + Clone,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = LimitFuture<S, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let Some(call) = Call::in_extensions(request.extensions()).map(Arc::clone) else {
            let status = Status::internal("the call has no record");
            return LimitFuture::decided(CheckFuture::refused(status), None);
        };
        // Its first attempt was charged, and is told what is left.
        if call.is_charged() {
            return LimitFuture::decided(CheckFuture::passed(self.inner.call(request)), None);
        }
        match self.limiter.charge_call(&call) {
            Charging::Ready(outcome) => {
                let (inner, headers) = self.act_on(&outcome, &call, request);
                LimitFuture::decided(inner, headers)
            }
            Charging::Remote(outcome) => self.wait_for(outcome, call, request),
        }
    }
}

impl<S> RateLimit<S> {
    fn act_on<A>(
        &mut self,
        outcome: &Outcome,
        call: &Call,
        request: Request<A>,
    ) -> (CheckFuture<S::Future>, Option<LimitHeaders>)
    where
        S: Service<Request<A>, Response = Response<Body>>,
    {
        let headers = headers(outcome, call, self.limiter.clock());
        let inner = match outcome.status() {
            Ok(()) => CheckFuture::passed(self.inner.call(request)),
            Err(status) => {
                call.set_refusal(&status);
                CheckFuture::refused(status)
            }
        };
        (inner, headers)
    }

    /// Takes the inner service, which is ready, and leaves a clone in its place.
    fn wait_for<A>(
        &mut self,
        outcome: BoxFuture<'static, Outcome>,
        call: Arc<Call>,
        request: Request<A>,
    ) -> LimitFuture<S, A>
    where
        S: Service<Request<A>, Response = Response<Body>> + Clone,
    {
        let mut service = self.clone();
        std::mem::swap(&mut service, self);
        let waiting = Box::new(Waiting {
            service,
            call,
            request,
        });
        LimitFuture {
            state: State::Charging {
                outcome,
                waiting: Some(waiting),
            },
        }
    }
}

/// Only the gateway passes these on to somebody who reads them.
fn headers(outcome: &Outcome, call: &Call, clock: &Clock) -> Option<LimitHeaders> {
    let is_read = call.peer.class == Some(PeerClass::Gateway);
    is_read.then(|| LimitHeaders::new(outcome, clock.now()))
}

/// A call that waits for its decision.
struct Waiting<S, A> {
    service: RateLimit<S>,
    call: Arc<Call>,
    request: Request<A>,
}

pin_project! {
    #[project = Projected]
    enum State<S, A>
    where
        S: Service<Request<A>>,
    {
        Charging {
            outcome: BoxFuture<'static, Outcome>,
            waiting: Option<Box<Waiting<S, A>>>,
        },
        Decided {
            #[pin]
            inner: CheckFuture<S::Future>,
            headers: Option<LimitHeaders>,
        },
    }
}

pin_project! {
    /// The future of [`RateLimit`].
    pub struct LimitFuture<S, A>
    where
        S: Service<Request<A>>,
    {
        #[pin]
        state: State<S, A>,
    }
}

impl<S: Service<Request<A>>, A> LimitFuture<S, A> {
    fn decided(inner: CheckFuture<S::Future>, headers: Option<LimitHeaders>) -> Self {
        Self {
            state: State::Decided { inner, headers },
        }
    }
}

impl<S, A> Future for LimitFuture<S, A>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Output = Result<Response<Body>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (inner, headers) = match this.state.as_mut().project() {
                Projected::Charging { outcome, waiting } => {
                    let outcome = ready!(outcome.as_mut().poll(cx));
                    let waiting = waiting.take().expect("a decision is made once");
                    let mut waiting = *waiting;
                    waiting
                        .service
                        .act_on(&outcome, &waiting.call, waiting.request)
                }
                Projected::Decided { inner, headers } => {
                    let mut result = ready!(inner.poll(cx));
                    if let (Ok(response), Some(limits)) = (&mut result, &*headers) {
                        limits.add_to(response.headers_mut());
                    }
                    return Poll::Ready(result);
                }
            };
            this.state.set(State::Decided { inner, headers });
        }
    }
}

#[cfg(test)]
mod tests;
