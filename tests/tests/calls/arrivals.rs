//! Calls that arrive whether or not those before them were answered, as those of many clients do: three times as
//! many as a service can do, over real sockets and through all layers.

use super::*;
use futures_util::future::{BoxFuture, join_all};
use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tars_credentials::View;
use tars_interceptors::{
    Policy, PolicyHandle, Stack, StackOptions, authenticate::Failures, contract,
    limits::RateLimiter, metrics::CallMetrics, overload::Overload, served::Served, usage::Usage,
};
use tars_runtime::{
    config::{self, Timeouts},
    metrics::Metrics,
    trace::Tracer,
};
use tars_tests::{test_ca::TestCa, test_listener::TestListener};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;

const KEYS: &str = "/tars.auth.v1.SigningKeyService/GetJwks";
const REFRESH: &str = "/tars.auth.v1.AuthService/Refresh";

/// How many calls the service does at a time, and how long one takes.
const HANDS: usize = 2;
const WORK: Duration = Duration::from_millis(20);
/// Between two arrivals, for three times as many as the service can do.
const BETWEEN: Duration = Duration::from_nanos(WORK.as_nanos() as u64 / HANDS as u64 / 3);
/// How long a client waits for an answer.
const PATIENCE: &str = "1S";
/// The arrivals of a round.
const ROUND: usize = 300;
/// Two of so many are of a caller who asks for little, a tenth of what the service can do, and one is a probe.
const OTHERS: usize = 60;
/// The limit below which the service has found out what it can do.
const SETTLED: u64 = 12;

/// A service that can do only so much.
#[derive(Clone)]
struct Workshop {
    hands: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
}

impl Workshop {
    fn new() -> Self {
        Self {
            hands: Arc::new(Semaphore::new(HANDS)),
            begun: Arc::default(),
        }
    }

    fn is_idle(&self) -> bool {
        self.hands.available_permits() > 0
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let works = request.uri().path() != CHECK;
        if let Err(status) = request.into_body().collect().await {
            return status.into_http();
        }
        if works {
            let _hand = self.hands.acquire().await.unwrap();
            self.begun.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(WORK).await;
        }
        let mut good = HeaderMap::new();
        good.insert("grpc-status", "0".parse().unwrap());
        let body = message(b"").with_trailers(async move { Some(Ok(good)) });
        let response = Response::builder().header("content-type", "application/grpc");
        response.body(Body::new(body)).unwrap()
    }
}

impl tonic::codegen::Service<Request<Body>> for Workshop {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

/// The layers of a service, which sheds from four calls in flight on.
fn layers(metrics: &Metrics) -> Stack {
    let mut config = tars_tests::config();
    config.overload = config::Overload {
        floor: 4,
        ceiling: 64,
    };
    let clock = Clock::system();
    let (audit, _) = mpsc::channel(1);
    Stack::new(StackOptions {
        service: "auth",
        listener: "auth",
        config: &config,
        view: View::default(),
        clock: clock.clone(),
        tracer: Tracer::disabled(),
        call_metrics: CallMetrics::new(metrics),
        failures: Failures::new(metrics),
        limiter: RateLimiter::new(&config.limits, clock.clone()),
        usage: Usage::detached(clock),
        overload: Overload::new(&config.overload, metrics),
        audit,
        policy: PolicyHandle::new(Policy::contract(contract().unwrap())),
        served: Served::new(|_| true),
        stop: CancellationToken::new(),
        end_streams: CancellationToken::new(),
    })
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    /// With a time to come back.
    Shed,
    Late,
}

async fn call(to: SendRequest<Body>, path: &'static str) -> Fate {
    let answer = send(&to, path, &[("grpc-timeout", PATIENCE)], message(b"")).await;
    let comes_back = answer.headers().contains_key("grpc-retry-pushback-ms");
    match end(answer).await {
        Code::Ok => Fate::Served,
        Code::Unavailable | Code::ResourceExhausted if comes_back => Fate::Shed,
        Code::DeadlineExceeded => Fate::Late,
        other => panic!("{path}: {other:?}"),
    }
}

/// A busy service and its callers, of whom each has a certificate.
struct Market {
    workshop: Workshop,
    metrics: Metrics,
    _listener: TestListener,
    /// Two who ask for far more than the service can do, each over two connections.
    greedy: Vec<SendRequest<Body>>,
    modest: SendRequest<Body>,
    probe: SendRequest<Body>,
}

/// The fates of the calls of a round, and how many of them found the service with nothing to do.
#[derive(Default)]
struct Round {
    greedy: Vec<Fate>,
    modest: Vec<Fate>,
    probes: Vec<Fate>,
    idle: usize,
}

fn count(fates: &[Fate], fate: Fate) -> usize {
    fates.iter().filter(|f| **f == fate).count()
}

impl Market {
    async fn open() -> Self {
        let root = TestCa::root("root");
        let parts = |path: &str| root.parts(path, vec![root.der.clone()]);
        let (workshop, metrics) = (Workshop::new(), Metrics::default());
        let service = layers(&metrics).layer(workshop.clone());
        let listener = TestListener::serving(parts("/auth"), Timeouts::default(), service).await;
        let target = listener.addr.to_string();
        let client = async |name: &str| {
            let identity = Identity::new(parts(&format!("/client/{name}")), &time()).unwrap();
            let expected = SpiffeId::new("tars.local", "/auth").unwrap();
            http2(tls(&identity, expected, &target).await, 1 << 16).await
        };
        let mut greedy = Vec::new();
        for name in ["one", "other", "one", "other"] {
            greedy.push(client(name).await);
        }
        let (modest, probe) = (client("modest").await, client("probe").await);
        Self {
            workshop,
            metrics,
            _listener: listener,
            greedy,
            modest,
            probe,
        }
    }

    fn limit(&self) -> u64 {
        let (_, text) = self.metrics.render("").unwrap();
        let limit = text.lines().find_map(|l| l.strip_prefix("overload_limit "));
        limit.unwrap().parse().unwrap()
    }

    /// Calls one after the other, by which the service learns how long they take.
    async fn quiet(&self) {
        for _ in 0..80 {
            let calls = self.greedy[..2].iter().chain([&self.modest]);
            let fates = join_all(calls.map(|to| call(to.clone(), KEYS))).await;
            assert_eq!(count(&fates, Fate::Served), 3);
        }
    }

    /// Calls that arrive at a steady rate, whatever becomes of them.
    async fn round(&self) -> Round {
        let mut ticks = interval(BETWEEN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut round = Round::default();
        let (mut greedy, mut modest, mut probes) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..ROUND {
            ticks.tick().await;
            round.idle += usize::from(self.workshop.is_idle());
            match n % OTHERS {
                0 => modest.push(tokio::spawn(call(self.modest.clone(), KEYS))),
                20 => modest.push(tokio::spawn(call(self.modest.clone(), REFRESH))),
                40 => probes.push(tokio::spawn(call(self.probe.clone(), CHECK))),
                _ => {
                    let to = self.greedy[n % self.greedy.len()].clone();
                    greedy.push(tokio::spawn(call(to, KEYS)));
                }
            }
        }
        for (calls, fates) in [
            (greedy, &mut round.greedy),
            (modest, &mut round.modest),
            (probes, &mut round.probes),
        ] {
            let ended = join_all(calls).await;
            fates.extend(ended.into_iter().map(Result::unwrap));
        }
        round
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_times_as_many_calls_as_a_service_can_do_leave_it_doing_what_it_can() {
    let market = Market::open().await;
    market.quiet().await;
    assert_eq!(market.limit(), 64, "nothing was slow");
    let began = Instant::now();
    while market.limit() > SETTLED {
        market.round().await;
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "{}",
            market.limit()
        );
    }
    let (before, mut all) = (market.workshop.begun(), Round::default());
    for _ in 0..4 {
        let round = market.round().await;
        all.greedy.extend(round.greedy);
        all.modest.extend(round.modest);
        all.probes.extend(round.probes);
        all.idle += round.idle;
    }
    let begun = market.workshop.begun() - before;
    let served = count(&all.greedy, Fate::Served) + count(&all.modest, Fate::Served);
    let shed = count(&all.greedy, Fate::Shed);
    assert!(
        served * 10 >= begun * 9,
        "{served} of {begun}: what is done is done in time"
    );
    assert!(
        all.idle * 10 <= 4 * ROUND,
        "{}: it has always something to do",
        all.idle
    );
    assert!(
        shed * 3 >= all.greedy.len(),
        "{shed}: most are told to come back"
    );
    // A third of all arrivals can be served, and is of the greedy ones.
    let modest = count(&all.modest, Fate::Served);
    assert!(
        modest * 2 >= all.modest.len(),
        "{modest}: who asks for little has more of it"
    );
    assert_eq!(count(&all.probes, Fate::Served), all.probes.len());
}
