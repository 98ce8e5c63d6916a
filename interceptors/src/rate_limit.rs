//! Rate limits by class. A call is charged once, where it enters the mesh: hops between workloads are
//! charged to the INTERNAL class only.

use crate::{
    Call,
    check::CheckFuture,
    limiter::{Decision, Gcra, SlidingLog},
};
use http::{HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tars_certs::PeerClass;
use tars_proto::{fault, reason, table::RateClass};
use tars_runtime::{clock::Clock, config::Limits, network::bucket};
use tonic::{Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

const MINUTE: Duration = Duration::from_secs(60);

/// The rate limits of one service. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct RateLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    auth: SlidingLog,
    public: Gcra,
    user: Gcra,
    internal: Gcra,
    clock: Clock,
}

impl RateLimits {
    /// Creates the limits with full budgets.
    pub(crate) fn new(limits: &Limits, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            auth: SlidingLog::new(limits.auth_per_minute, MINUTE),
            public: Gcra::new(limits.public_per_minute, MINUTE),
            user: Gcra::new(limits.user_per_minute, MINUTE),
            internal: Gcra::new(limits.internal_per_second, Duration::from_secs(1)),
            clock,
        }))
    }

    fn charge(&self, call: &Call) -> Decision {
        let now = call.arrived;
        match class_of(call) {
            RateClass::Auth => self.0.auth.take(bucket(call.client), now),
            RateClass::Public => self.0.public.take(bucket(call.client), now),
            RateClass::User => self.0.user.take(call.owner(), now),
            RateClass::Internal => self.0.internal.take(call.peer.name(), now),
        }
    }
}

/// A workload that forwards a caller's call has already charged the caller.
fn class_of(call: &Call) -> RateClass {
    let hop = call
        .peer
        .class
        .is_some_and(|c| c.is_workload() && c != PeerClass::Gateway);
    if hop {
        RateClass::Internal
    } else {
        call.method.rule.rate
    }
}

/// Applies the rate limits to every call.
#[derive(Debug, Clone)]
pub(crate) struct RateLimitLayer(pub RateLimits);

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit {
            inner,
            limits: self.0.clone(),
        }
    }
}

/// A service behind rate limits.
#[derive(Debug, Clone)]
pub struct RateLimit<S> {
    inner: S,
    limits: RateLimits,
}

impl<S, A> Service<Request<A>> for RateLimit<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = LimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let Some(call) = Call::in_extensions(request.extensions()).map(Arc::clone) else {
            let status = Status::internal("the call has no record");
            return LimitFuture {
                inner: CheckFuture::refused(status),
                headers: None,
            };
        };
        let decision = self.limits.charge(&call);
        // Only the gateway passes these on to somebody who reads them.
        let headers = (call.peer.class == Some(PeerClass::Gateway))
            .then(|| RateLimitHeaders::new(&decision, &self.limits.0.clock));
        if decision.passed() {
            return LimitFuture {
                inner: CheckFuture::passed(self.inner.call(request)),
                headers,
            };
        }
        let status = fault::exhausted(
            reason::RATE_LIMITED,
            class_name(class_of(&call)),
            decision.retry,
        );
        call.set_refusal(&status);
        LimitFuture {
            inner: CheckFuture::refused(status),
            headers,
        }
    }
}

fn class_name(class: RateClass) -> &'static str {
    match class {
        RateClass::Auth => "auth",
        RateClass::Public => "public",
        RateClass::User => "user",
        RateClass::Internal => "internal",
    }
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

pin_project! {
    /// The future of [`RateLimit`].
    pub struct LimitFuture<F> {
        #[pin]
        inner: CheckFuture<F>,
        headers: Option<RateLimitHeaders>,
    }
}

impl<F, E> Future for LimitFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        if let (Ok(response), Some(limits)) = (&mut result, this.headers) {
            let headers = response.headers_mut();
            headers.insert("x-ratelimit-limit", HeaderValue::from(limits.limit));
            headers.insert("x-ratelimit-remaining", HeaderValue::from(limits.remaining));
            headers.insert("x-ratelimit-reset", HeaderValue::from(limits.reset_at_s));
        }
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ME, by_credential};

    #[test]
    fn keys_share_the_limit_of_their_owner() {
        let limits = Limits {
            user_per_minute: 8,
            ..Limits::default()
        };
        let limits = RateLimits::new(&limits, Clock::manual(Duration::from_secs(1)));
        let passes = |user: &str, label: &str| {
            let call = by_credential(ME, "/gateway", user, label);
            limits.charge(&call).passed()
        };
        assert!(passes("ada", "key:1") && passes("ada", "key:2"));
        assert!(!passes("ada", "key:3") && !passes("ada", "user:ada"));
        assert!(passes("bob", "user:bob"));
    }
}
