//! The layer that charges every call. The decision may be one that another process makes: the call waits
//! for it here, with its request unread.

use super::{Charge, Decision, RateLimiter, class_name, class_of};
use crate::{Call, check::CheckFuture};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tars_certs::PeerClass;
use tars_proto::{fault, reason};
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
        match self.limiter.charge(&call) {
            Charge::Ready(decision) => {
                let (inner, headers) = self.act_on(&decision, &call, request);
                LimitFuture::decided(inner, headers)
            }
            Charge::Remote(decision) => self.wait_for(decision, call, request),
        }
    }
}

impl<S> RateLimit<S> {
    fn act_on<A>(
        &mut self,
        decision: &Decision,
        call: &Call,
        request: Request<A>,
    ) -> (CheckFuture<S::Future>, Option<RateLimitHeaders>)
    where
        S: Service<Request<A>, Response = Response<Body>>,
    {
        let headers = headers(decision, call, self.limiter.clock());
        if decision.passed() {
            return (CheckFuture::passed(self.inner.call(request)), headers);
        }
        let class = class_name(class_of(call));
        let status = fault::exhausted(reason::RATE_LIMITED, class, decision.retry);
        call.set_refusal(&status);
        (CheckFuture::refused(status), headers)
    }

    /// Takes the inner service, which is ready, and leaves a clone in its place.
    fn wait_for<A>(
        &mut self,
        decision: BoxFuture<'static, Decision>,
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
                decision,
                waiting: Some(waiting),
            },
        }
    }
}

/// Only the gateway passes these on to somebody who reads them.
fn headers(decision: &Decision, call: &Call, clock: &Clock) -> Option<RateLimitHeaders> {
    (call.peer.class == Some(PeerClass::Gateway)).then(|| RateLimitHeaders::new(decision, clock))
}

#[derive(Debug, Clone, Copy)]
struct RateLimitHeaders {
    limit: u32,
    remaining: u32,
    reset_at_s: u64,
}

impl RateLimitHeaders {
    /// The reset is a wall-clock time: clients share no other clock with us.
    fn new(decision: &Decision, clock: &Clock) -> Self {
        let reset_at_s = (clock.now() + decision.reset).as_secs_f64().ceil() as u64;
        Self {
            limit: decision.limit,
            remaining: decision.remaining,
            reset_at_s,
        }
    }
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
            decision: BoxFuture<'static, Decision>,
            waiting: Option<Box<Waiting<S, A>>>,
        },
        Decided {
            #[pin]
            inner: CheckFuture<S::Future>,
            headers: Option<RateLimitHeaders>,
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
    fn decided(inner: CheckFuture<S::Future>, headers: Option<RateLimitHeaders>) -> Self {
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
                Projected::Charging { decision, waiting } => {
                    let decision = ready!(decision.as_mut().poll(cx));
                    let waiting = waiting.take().expect("a decision is made once");
                    let mut waiting = *waiting;
                    waiting
                        .service
                        .act_on(&decision, &waiting.call, waiting.request)
                }
                Projected::Decided { inner, headers } => {
                    let mut result = ready!(inner.poll(cx));
                    if let (Ok(response), Some(limits)) = (&mut result, headers) {
                        limits.add_to(response);
                    }
                    return Poll::Ready(result);
                }
            };
            this.state.set(State::Decided { inner, headers });
        }
    }
}

impl RateLimitHeaders {
    fn add_to(self, response: &mut Response<Body>) {
        let headers = response.headers_mut();
        headers.insert("x-ratelimit-limit", HeaderValue::from(self.limit));
        headers.insert("x-ratelimit-remaining", HeaderValue::from(self.remaining));
        headers.insert("x-ratelimit-reset", HeaderValue::from(self.reset_at_s));
    }
}
