//! A chain of three services with all of their layers: the deadline of a call holds for the whole chain.

use super::*;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use std::{convert::Infallible, time::Duration};
use tars_credentials::View;
use tars_gateway::Raw;
use tars_interceptors::{
    Policy, PolicyHandle, Stack, StackOptions,
    authenticate::Failures,
    client::{Credentials, outgoing},
    contract,
    limits::RateLimiter,
    metrics::CallMetrics,
    overload::Overload,
    served::Served,
    usage::Usage,
};
use tars_proto::timeout;
use tars_runtime::{config::Config, metrics::Metrics, trace::Tracer};
use tokio::sync::mpsc;
use tonic::{body::Body, client::Grpc};
use tower_layer::Layer;

const METHOD: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");

/// What calls the next service, or never answers when it is the last.
#[derive(Clone)]
struct Hop {
    next: Option<Channel>,
    /// The timeouts with which it was called.
    given: Arc<Mutex<Vec<Duration>>>,
    in_flight: Arc<AtomicUsize>,
}

impl Hop {
    fn before(next: Option<Channel>) -> Self {
        Self {
            next,
            given: Arc::default(),
            in_flight: Arc::default(),
        }
    }

    fn given(&self) -> Duration {
        self.given.lock()[0]
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    async fn answer(self) -> Status {
        let Some(next) = self.next else {
            return std::future::pending().await;
        };
        let mut client = Grpc::new(outgoing(next, Credentials::Own));
        let answer = async {
            client.ready().await?;
            let request = tonic::Request::new(Bytes::new());
            client.unary(request, METHOD, Raw).await
        };
        answer.await.expect_err("the last one never answers")
    }
}

impl tonic::codegen::Service<Request<Body>> for Hop {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let given = request.headers()[timeout::HEADER].to_str().unwrap();
        self.given.lock().push(timeout::parse(given).unwrap());
        let hop = self.clone();
        Box::pin(async move {
            let _in_flight = InFlight::new(&hop.in_flight);
            Ok(hop.answer().await.into_http())
        })
    }
}

/// The layers of a service of the mesh.
fn layers() -> Stack {
    let (config, clock, metrics) = (Config::default(), Clock::system(), Metrics::default());
    let (audit, _) = mpsc::channel(1);
    Stack::new(StackOptions {
        service: "door",
        listener: "door",
        config: &config,
        view: View::default(),
        clock: clock.clone(),
        tracer: Tracer::disabled(),
        call_metrics: CallMetrics::new(&metrics),
        failures: Failures::new(&metrics),
        limiter: RateLimiter::new(&config.limits, clock.clone()),
        usage: Usage::detached(clock),
        overload: Overload::new(&config.overload, &metrics),
        audit,
        policy: PolicyHandle::new(Policy::contract(contract().unwrap())),
        served: Served::new(|_| true),
        stop: CancellationToken::new(),
        end_streams: CancellationToken::new(),
    })
}

/// Opens a service, and returns it with a channel to it.
async fn open(root: &TestCa, path: &str, hop: &Hop) -> (TestListener, Channel) {
    let parts = |path| root.parts(path, vec![root.der.clone()]);
    let service = layers().layer(hop.clone());
    let listener = TestListener::serving(parts(path), Timeouts::default(), service).await;
    let identity = Identity::new(parts("/gateway"), &tars_tests::time()).unwrap();
    let expected = SpiffeId::new("tars.local", path).unwrap();
    let target = listener.addr.to_string();
    let options = ChannelOptions::alone(&target, expected, identity, Clock::system());
    (listener, Channel::new(options).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_holds_for_a_chain_of_services_and_cancels_the_work_of_all() {
    let root = TestCa::root("root");
    let third = Hop::before(None);
    let (_third, to_third) = open(&root, "/hypersync", &third).await;
    let second = Hop::before(Some(to_third));
    let (_second, to_second) = open(&root, "/automl", &second).await;
    let first = Hop::before(Some(to_second));
    let (_first, to_first) = open(&root, "/orchestration", &first).await;

    let whole = Duration::from_millis(300);
    let mut request = tonic::Request::new(Bytes::new());
    request.set_timeout(whole);
    let mut client = Grpc::new(to_first);
    client.ready().await.unwrap();
    let late = client.unary(request, METHOD, Raw).await.unwrap_err();

    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let given = [&first, &second, &third].map(Hop::given);
    assert!(given[0] <= whole, "{given:?}");
    assert!(given[1] < given[0] && given[2] < given[1], "{given:?}");
    eventually("nothing works on it any more", || async {
        [&first, &second, &third].iter().all(|hop| hop.is_idle())
    })
    .await;
}
