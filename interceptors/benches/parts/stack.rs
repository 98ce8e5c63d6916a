//! All layers around a handler that answers at once, beside the handler alone, and beside the handler behind the
//! usual interceptor, which verifies the token in each call.

use crate::{held::Held, policy::METHOD};
use criterion::Criterion;
use futures_util::FutureExt;
use http::{Request, Response, header::AUTHORIZATION};
use jsonwebtoken::{DecodingKey, Validation};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_certs::{
    KeyId, PeerClass, Serial, SpiffeId,
    name::CertName,
    peer::{PeerCertificate, PeerInfo, Verified},
};
use tars_credentials::Claims;
use tars_interceptors::{
    Policy, PolicyHandle, Stack, StackOptions, authenticate::Failures, contract,
    limits::RateLimiter, metrics::CallMetrics, overload::Overload, served::Served, usage::Usage,
};
use tars_runtime::{clock::Clock, config::Config, metrics::Metrics, trace::Tracer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, codegen::Service};
use tower_layer::Layer;

/// So many calls in a minute that none is refused.
const WIDE: u32 = 1_000_000_000;

/// What a handler would answer.
#[derive(Debug, Clone, Copy)]
struct Handler;

impl Service<Request<Body>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(Status::ok("").into_http()))
    }
}

/// A handler behind the usual interceptor.
struct Usual {
    key: DecodingKey,
    rules: Validation,
}

impl Usual {
    fn admits(&self, request: &Request<Body>) -> bool {
        let value = request.headers().get(AUTHORIZATION);
        let token = value
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "));
        token.is_some_and(|t| jsonwebtoken::decode::<Claims>(t, &self.key, &self.rules).is_ok())
    }
}

/// The gateway, by the certificate that it shows.
fn peer() -> Arc<PeerInfo> {
    let (key, serial) = (
        KeyId::of_spki(b"key"),
        Serial::from_bytes(&[1]).expect("a serial"),
    );
    let certificate = PeerCertificate {
        id: SpiffeId::new("tars.local", "/gateway").expect("an id"),
        serial: serial.clone(),
        not_before: Duration::ZERO,
        not_after: Duration::MAX,
        client_auth: true,
        server_auth: true,
    };
    Arc::new(PeerInfo {
        verified: Some(Verified {
            certificate,
            chain: vec![CertName {
                issuer: key,
                serial,
            }],
            anchor: key,
            presented: Default::default(),
        }),
        class: Some(PeerClass::Gateway),
        addr: SocketAddr::from(([127, 0, 0, 1], 1)),
        closing: CancellationToken::new(),
    })
}

fn layers(held: &Held) -> Stack {
    let mut config = Config::default();
    config.limits.user_per_minute = WIDE;
    config.limits.flood_per_second = WIDE;
    let (clock, metrics) = (Clock::system(), Metrics::default());
    let (audit, _) = mpsc::channel(1);
    Stack::new(StackOptions {
        service: "auth",
        listener: "auth",
        config: &config,
        view: held.view(),
        clock: clock.clone(),
        tracer: Tracer::disabled(),
        call_metrics: CallMetrics::new(&metrics),
        failures: Failures::new(&metrics),
        limiter: RateLimiter::new(&config.limits, clock.clone()),
        usage: Usage::detached(clock),
        overload: Overload::new(&config.overload, &metrics),
        audit,
        policy: PolicyHandle::new(Policy::contract(contract().expect("the contract"))),
        served: Served::new(|_| true),
        stop: CancellationToken::new(),
        end_streams: CancellationToken::new(),
    })
}

/// Where a response of gRPC that has no body says how the call ended.
fn is_good<B>(response: &Response<B>) -> bool {
    response
        .headers()
        .get("grpc-status")
        .is_some_and(|s| s == "0")
}

pub(crate) fn measure(criterion: &mut Criterion, held: &Held) {
    let bearer = format!("Bearer {}", held.token);
    let peer = peer();
    let request = || {
        Request::post(METHOD)
            .header(AUTHORIZATION, &bearer)
            .header("content-type", "application/grpc")
            .extension(Arc::clone(&peer))
            .body(Body::empty())
            .expect("a request")
    };
    // Timers of deadlines need a runtime, though none is waited for.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("stack");
    group.bench_function("baseline: the handler", |b| {
        b.iter(|| answered(&mut Handler, request()));
    });
    let (key, rules) = held.usual();
    let usual = Usual { key, rules };
    group.bench_function("baseline: with the usual interceptor", |b| {
        b.iter(|| {
            let request = request();
            assert!(usual.admits(&request));
            answered(&mut Handler, request);
        });
    });
    let mut service = layers(held).layer(Handler);
    group.bench_function("all layers", |b| {
        b.iter(|| answered(&mut service, request()));
    });
    group.finish();
}

/// Sends a call, which must be answered well and without waiting.
fn answered<S, B>(service: &mut S, request: Request<Body>)
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
{
    let answer = service.call(request).now_or_never();
    let Some(Ok(response)) = answer else {
        unreachable!("nothing of it waits")
    };
    assert!(is_good(&response), "{:?}", response.headers());
}
