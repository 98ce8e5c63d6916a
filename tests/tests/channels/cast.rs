//! Replicas that answer as a test tells them, and a channel to all of them.

use super::*;
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, uri::PathAndQuery};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use std::{convert::Infallible, time::Duration};
use tars_gateway::Raw;
use tars_mesh::ChannelMetrics;
use tars_proto::attempt;
use tars_runtime::metrics::Metrics;
use tonic::{client::Grpc, metadata::MetadataMap};

/// The peer that a metric is about.
pub(super) const DOOR: &str = "peer=\"spiffe://tars.local/door\"";

/// A method that the contract declares idempotent.
pub(super) const READ: &str = "/tars.auth.v1.AuthService/GetMe";
/// A method that it does not.
pub(super) const CHANGE: &str = "/tars.auth.v1.ApiKeyService/CreateApiKey";
/// One that waits in a queue, and that the contract declares idempotent.
pub(super) const QUEUED: &str = "/tars.orchestration.v1.GameService/FindEquilibria";

/// Another one that the contract declares idempotent.
pub(super) const OTHER_READ: &str = "/grpc.health.v1.Health/Check";
/// One whose response is a stream, and that the contract declares idempotent.
pub(super) const STREAM: &str = "/grpc.health.v1.Health/Watch";

/// A message without fields.
const EMPTY: &[u8] = &[0; 5];

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// How a replica answers.
#[derive(Clone)]
pub(super) enum Mood {
    Well,
    Late(Duration),
    Refusing(Status),
    /// Headers, no message, and the status in trailers.
    Trailing(Status),
    /// A message, and the status in trailers.
    Midway(Status),
    /// Headers, and nothing after them.
    Begun,
    Silent,
}

/// A replica that answers whatever it is called for, as it is told to.
#[derive(Clone)]
pub(super) struct Acting {
    at: usize,
    mood: Arc<Mutex<Mood>>,
    seen: Arc<AtomicUsize>,
    in_flight: Arc<AtomicUsize>,
    /// The headers of the newest request.
    heard: Arc<Mutex<HeaderMap>>,
}

impl Acting {
    fn new(at: usize) -> Self {
        Self {
            at,
            mood: Arc::new(Mutex::new(Mood::Well)),
            seen: Arc::default(),
            in_flight: Arc::default(),
            heard: Arc::default(),
        }
    }

    pub(super) fn turn(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    pub(super) fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// What the newest request says of earlier attempts.
    pub(super) fn heard(&self) -> [Option<String>; 2] {
        let heard = self.heard.lock();
        [attempt::PREVIOUS, attempt::CHARGED].map(|name| {
            let value = heard.get(name)?.to_str().unwrap();
            Some(value.to_owned())
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What this replica answers: a message, and how the call ended.
    fn answer(&self, message: &'static [u8], end: &Status) -> Answer {
        let mut trailers = HeaderMap::new();
        end.add_header(&mut trailers).unwrap();
        let message = Full::new(Bytes::from_static(message));
        let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
        self.respond(BoxBody::new(body))
    }

    /// Headers, and nothing after them.
    fn begin(&self, in_flight: InFlight) -> Answer {
        let nothing = stream::poll_fn(move |_| {
            let _ = &in_flight;
            Poll::<Option<Result<Frame<Bytes>, Infallible>>>::Pending
        });
        self.respond(BoxBody::new(StreamBody::new(nothing)))
    }

    fn respond(&self, body: BoxBody<Bytes, Infallible>) -> Answer {
        let answer = Response::builder()
            .header("content-type", "application/grpc")
            .header("replica", self.at);
        answer.body(body).unwrap()
    }
}

impl tonic::codegen::Service<Request<tonic::body::Body>> for Acting {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        *self.heard.lock() = request.headers().clone();
        self.seen.fetch_add(1, Ordering::Relaxed);
        let (own, in_flight) = (self.clone(), InFlight::new(&self.in_flight));
        let mood = self.mood.lock().clone();
        Box::pin(async move {
            request.into_body().collect().await.ok();
            Ok(match mood {
                Mood::Well => own.answer(EMPTY, &Status::ok("")),
                Mood::Late(by) => {
                    tokio::time::sleep(by).await;
                    own.answer(EMPTY, &Status::ok(""))
                }
                Mood::Refusing(status) => status.into_http::<Full<Bytes>>().map(BoxBody::new),
                Mood::Trailing(status) => own.answer(&[], &status),
                Mood::Midway(status) => own.answer(EMPTY, &status),
                Mood::Begun => own.begin(in_flight),
                Mood::Silent => std::future::pending().await,
            })
        })
    }
}

/// Replicas that act, and a channel to all of them.
pub(super) struct Cast {
    pub(super) acting: Vec<Acting>,
    pub(super) replicas: Replicas,
    pub(super) channel: Channel,
    pub(super) metrics: Metrics,
    pub(super) revocations: tars_certs::Revocations,
}

impl Cast {
    pub(super) async fn of(count: usize) -> Self {
        let mut replicas = Replicas {
            root: TestCa::root("root"),
            listeners: Vec::new(),
            addrs: Vec::new(),
        };
        let acting: Vec<_> = (0..count).map(Acting::new).collect();
        for acting in &acting {
            let parts = replicas
                .root
                .parts("/door", vec![replicas.root.der.clone()]);
            let listener = TestListener::serving(parts, Timeouts::default(), acting.clone()).await;
            replicas.addrs.push(listener.addr);
            replicas.listeners.push(Some(listener));
        }
        let metrics = Metrics::default();
        let options = ChannelOptions {
            metrics: ChannelMetrics::new(&metrics),
            ..replicas.options(&replicas.target())
        };
        let this = Self {
            acting,
            revocations: options.revocations.clone(),
            channel: Channel::new(options).unwrap(),
            metrics,
            replicas,
        };
        eventually("each replica answers", || async {
            this.call(READ).await.unwrap();
            this.acting.iter().all(|acting| acting.seen() > 0)
        })
        .await;
        this
    }

    /// Turns the mood of all of them.
    pub(super) fn turn(&self, mood: &Mood) {
        for acting in &self.acting {
            acting.turn(mood.clone());
        }
    }

    /// How many requests all of them have seen.
    pub(super) fn seen(&self) -> usize {
        self.acting.iter().map(Acting::seen).sum()
    }

    pub(super) async fn call(&self, method: &'static str) -> Result<usize, Status> {
        call(self.channel.clone(), method, None).await
    }

    /// Opens a stream; returns it once its response has begun.
    pub(super) async fn open(&self) -> Streaming<Bytes> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = PathAndQuery::from_static(STREAM);
        let request = tonic::Request::new(Bytes::new());
        let answer = client.server_streaming(request, path, Raw).await;
        answer.unwrap().into_inner()
    }

    /// How many replicas are ejected now.
    pub(super) fn ejected(&self) -> u64 {
        self.value("mesh_client_addresses_ejected", "")
    }

    /// How often a breaker went from one state to another.
    pub(super) fn steps(&self, from: &str, to: &str) -> u64 {
        let labels = format!(",from=\"{from}\",to=\"{to}\"");
        self.value("mesh_client_breaker_transitions_total", &labels)
    }

    /// Makes calls until one of the replicas is ejected; returns how many of them failed.
    pub(super) async fn until_ejected(&self, method: &'static str) -> usize {
        let failures = AtomicUsize::new(0);
        eventually("one is ejected", || async {
            // So many at once that one that is slow gets some of them.
            let (_, failed) = self.load(method, 64, 64).await;
            failures.fetch_add(failed, Ordering::Relaxed);
            self.ejected() == 1
        })
        .await;
        failures.into_inner()
    }

    /// Makes calls, some at once; returns how often each replica answered, and how many calls failed.
    pub(super) async fn load(
        &self,
        method: &'static str,
        calls: usize,
        at_once: usize,
    ) -> (Vec<usize>, usize) {
        let answers = stream::iter(0..calls).map(|_| self.call(method));
        let answers: Vec<_> = answers.buffer_unordered(at_once).collect().await;
        let (mut counts, mut failed) = (vec![0; self.acting.len()], 0);
        for answer in answers {
            match answer {
                Ok(at) => counts[at] += 1,
                Err(_) => failed += 1,
            }
        }
        (counts, failed)
    }

    /// The value of a sample with these labels besides the peer; 0 where there is none.
    pub(super) fn value(&self, name: &str, labels: &str) -> u64 {
        let text = self.metrics.open_metrics().unwrap();
        let line = format!("{name}{{{DOOR}{labels}}} ");
        let found = text.lines().find_map(|l| l.strip_prefix(line.as_str()));
        found.map_or(0, |value| value.parse().unwrap())
    }
}

/// Calls once; returns which replica answered.
pub(super) async fn call(
    channel: Channel,
    method: &'static str,
    timeout: Option<Duration>,
) -> Result<usize, Status> {
    let mut request = tonic::Request::new(Bytes::new());
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    send(channel, method, request).await
}

/// Sends a request; returns which replica answered.
pub(super) async fn send(
    channel: Channel,
    method: &'static str,
    request: tonic::Request<Bytes>,
) -> Result<usize, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static(method);
    let answer = client.unary(request, path, Raw).await?;
    let replica = answer.metadata().get("replica").unwrap();
    Ok(replica.to_str().unwrap().parse().unwrap())
}

pub(super) fn unavailable() -> Mood {
    Mood::Refusing(Status::unavailable("not now"))
}

/// The same with the status in trailers, after headers.
pub(super) fn trailing() -> Mood {
    Mood::Trailing(Status::unavailable("not now"))
}

pub(super) fn pushed_back(by: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", by.parse().unwrap());
    Status::with_metadata(Code::Unavailable, "not now", metadata)
}
