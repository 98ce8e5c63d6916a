//! Calls over replicas some of which are dead, slow, flapping, silent, or refuse.

use super::*;
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, uri::PathAndQuery};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use std::{convert::Infallible, time::Duration};
use tars_gateway::Raw;
use tars_mesh::ChannelMetrics;
use tars_runtime::metrics::Metrics;
use tonic::{client::Grpc, metadata::MetadataMap};

/// A method that the contract declares idempotent.
pub(super) const READ: &str = "/tars.auth.v1.AuthService/GetMe";
/// A method that it does not.
pub(super) const CHANGE: &str = "/tars.auth.v1.AuthService/Login";

/// One whose response is a stream, and that the contract declares idempotent.
const STREAM: &str = "/grpc.health.v1.Health/Watch";

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
}

impl Acting {
    fn new(at: usize) -> Self {
        Self {
            at,
            mood: Arc::new(Mutex::new(Mood::Well)),
            seen: Arc::default(),
            in_flight: Arc::default(),
        }
    }

    pub(super) fn turn(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
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

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let (own, in_flight) = (self.clone(), InFlight::new(&self.in_flight));
        let mood = self.mood.lock().clone();
        Box::pin(async move {
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
    revocations: tars_certs::Revocations,
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

    /// Makes calls until one of the replicas is ejected; returns how many of them failed.
    pub(super) async fn until_ejected(&self, method: &'static str) -> usize {
        let failures = AtomicUsize::new(0);
        eventually("one is ejected", || async {
            // So many at once that one that is slow gets some of them.
            let (_, failed) = self.load(method, 64, 64).await;
            failures.fetch_add(failed, Ordering::Relaxed);
            self.value("mesh_client_addresses_ejected", "") == 1
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
}

/// Calls once; returns which replica answered.
pub(super) async fn call(
    channel: Channel,
    method: &'static str,
    timeout: Option<Duration>,
) -> Result<usize, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let mut request = tonic::Request::new(Bytes::new());
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let path = PathAndQuery::from_static(method);
    let answer = client.unary(request, path, Raw).await?;
    let replica = answer.metadata().get("replica").unwrap();
    Ok(replica.to_str().unwrap().parse().unwrap())
}

pub(super) fn unavailable() -> Mood {
    Mood::Refusing(Status::unavailable("not now"))
}

/// The same with the status in trailers, after headers.
fn trailing() -> Mood {
    Mood::Trailing(Status::unavailable("not now"))
}

pub(super) fn pushed_back(by: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", by.parse().unwrap());
    Status::with_metadata(Code::Unavailable, "not now", metadata)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_refuses_quickly_draws_no_calls() {
    for refusing in [unavailable(), trailing()] {
        let cast = Cast::of(3).await;
        let before = cast.acting[0].seen();
        cast.acting[0].turn(refusing);
        let (counts, failed) = cast.load(READ, 500, 8).await;
        assert_eq!((counts[0], failed), (0, 0), "{counts:?}");
        let drawn = cast.acting[0].seen() - before;
        assert!(drawn <= 20, "{drawn} calls went to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_ejection_no_call_fails_even_one_that_may_not_be_repeated() {
    for refusing in [unavailable(), trailing()] {
        no_call_fails_after_the_ejection(refusing).await;
    }
}

async fn no_call_fails_after_the_ejection(refusing: Mood) {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(refusing);
    let failed = cast.until_ejected(CHANGE).await;
    assert!(failed >= 5, "{failed}");
    let (counts, failed) = cast.load(CHANGE, 300, 8).await;
    assert_eq!((counts[1], failed), (0, 0), "{counts:?}");
    // A call that may be repeated finds out that the replica works again.
    cast.acting[1].turn(Mood::Well);
    eventually("it is back", || async {
        cast.call(READ).await.unwrap() == 1
    })
    .await;
    eventually("it gets all calls", || async {
        cast.call(CHANGE).await.unwrap() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_probe_of_a_replica_that_is_still_silent() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(Mood::Silent);
    eventually("it is ejected", || async {
        let limit = Some(Duration::from_secs(1));
        let calls = stream::iter(0..64).map(|_| call(cast.channel.clone(), READ, limit));
        calls.buffer_unordered(64).count().await;
        cast.value("mesh_client_addresses_ejected", "") == 1
    })
    .await;
    let failed = || {
        let labels = ",from=\"half_open\",to=\"open\"";
        cast.value("mesh_client_breaker_transitions_total", labels)
    };
    eventually("two probes fail", || async {
        // Without a deadline, the probe itself would never end.
        assert_ne!(cast.call(READ).await.unwrap(), 1);
        failed() >= 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replica_gets_less_than_one_call_in_a_hundred() {
    let cast = Cast::of(3).await;
    let before = cast.acting[2].seen();
    // Slower than the others by far, also where the machine is busy.
    cast.acting[2].turn(Mood::Late(Duration::from_secs(2)));
    let (counts, failed) = cast.load(READ, 1000, 4).await;
    let drawn = cast.acting[2].seen() - before;
    assert!(drawn < 10 && failed == 0, "{drawn} of {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_while_one_replica_is_dead_one_slow_and_one_flaps() {
    let mut cast = Cast::of(4).await;
    cast.replicas.close(0).await;
    cast.acting[1].turn(Mood::Late(Duration::from_millis(20)));
    let flapping = cast.acting[2].clone();
    let flaps = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut rhythm = tokio::time::interval(Duration::from_millis(50));
        for at in 0.. {
            rhythm.tick().await;
            flapping.turn(if at % 2 == 0 {
                unavailable()
            } else {
                Mood::Well
            });
        }
    }));
    let (counts, failed) = cast.load(READ, 1000, 8).await;
    assert_eq!((failed, counts[0]), (0, 0), "{counts:?}");
    drop(flaps);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_call_that_may_be_repeated_is_sent_again() {
    for (refusing, replicas) in [
        (unavailable(), 2),
        (unavailable(), 1),
        (trailing(), 2),
        (trailing(), 1),
    ] {
        let cast = Cast::of(replicas).await;
        cast.turn(&refusing);
        for (method, times) in [(CHANGE, 1), (READ, 3)] {
            let before = cast.seen();
            let refused = cast.call(method).await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.message()),
                (Code::Unavailable, "not now")
            );
            assert_eq!(cast.seen() - before, times, "{method} of {replicas}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_again_after_a_message_or_the_headers_of_a_stream() {
    let late = Mood::Midway(Status::unavailable("not now"));
    for (method, mood) in [(READ, late.clone()), (STREAM, late), (STREAM, trailing())] {
        let cast = Cast::of(2).await;
        cast.turn(&mood);
        let before = cast.seen();
        let refused = cast.call(method).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert_eq!(cast.seen() - before, 1, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_before_a_message_eject_and_those_that_end_later_do_not() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(trailing());
    let failed = cast.until_ejected(STREAM).await;
    assert!(failed >= 5, "{failed}");
    cast.acting[1].turn(Mood::Well);
    eventually("it is back", || async {
        cast.call(STREAM).await.unwrap() == 1
    })
    .await;
    cast.acting[1].turn(Mood::Midway(Status::unavailable("not now")));
    let (_, failed) = cast.load(STREAM, 300, 8).await;
    assert!(failed > 20, "{failed}");
    assert_eq!(cast.value("mesh_client_addresses_ejected", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_lost_before_its_message_is_asked_for_again() {
    let (answer, asked) = cut_during(READ, Mood::Begun).await;
    assert_eq!((answer.is_ok(), asked), (true, 2), "{answer:?}");
    let (answer, asked) = cut_during(CHANGE, Mood::Begun).await;
    assert_eq!((answer.is_err(), asked), (true, 1), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_about_sending_again_holds() {
    for replicas in [1, 2] {
        let cast = Cast::of(replicas).await;
        for (pushback, times) in [("0", 3), ("1", 3), ("-1", 1), ("later", 1), ("3600000", 1)] {
            let status = pushed_back(pushback);
            for mood in [Mood::Refusing(status.clone()), Mood::Trailing(status)] {
                cast.turn(&mood);
                let before = cast.seen();
                cast.call(READ).await.unwrap_err();
                assert_eq!(cast.seen() - before, times, "{pushback} of {replicas}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_codes_are_answers_and_are_not_sent_again() {
    let cast = Cast::of(2).await;
    for code in [
        Code::Internal,
        Code::Unknown,
        Code::Aborted,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::NotFound,
    ] {
        let status = Status::new(code, "no");
        for mood in [Mood::Refusing(status.clone()), Mood::Trailing(status)] {
            cast.turn(&mood);
            let before = cast.seen();
            assert_eq!(cast.call(READ).await.unwrap_err().code(), code);
            assert_eq!(cast.seen() - before, 1, "{code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_stay_within_a_budget_when_every_replica_fails() {
    for refusing in [unavailable(), trailing()] {
        let cast = Cast::of(3).await;
        let before = cast.seen();
        cast.turn(&refusing);
        let (_, failed) = cast.load(READ, 500, 8).await;
        let sent = cast.seen() - before;
        assert_eq!(failed, 500);
        // A hundred that were saved, and one for five calls.
        assert!((600..=500 + 100 + 101).contains(&sent), "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_does_not_hold_a_call_beyond_its_deadline() {
    let cast = Cast::of(1).await;
    cast.acting[0].turn(Mood::Silent);
    let timeout = Some(Duration::from_millis(100));
    let late = call(cast.channel.clone(), READ, timeout).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(
        fault::reason(&late).as_deref(),
        Some(reason::DEADLINE_EXCEEDED)
    );
    eventually("its work is cancelled", || async {
        cast.acting[0].in_flight() == 0
    })
    .await;
}

/// Calls, and cuts the connection to the replica that has the request; the other one answers. Returns the
/// answer, and how many replicas had the request.
async fn cut_during(method: &'static str, mood: Mood) -> (Result<usize, Status>, usize) {
    let cast = Cast::of(2).await;
    let before: Vec<_> = cast.acting.iter().map(Acting::seen).collect();
    cast.turn(&mood);
    let sent = tokio::spawn(call(cast.channel.clone(), method, None));
    let holds = || cast.acting.iter().position(|acting| acting.in_flight() > 0);
    eventually("one has the request", || async { holds().is_some() }).await;
    let holder = holds().unwrap();
    cast.acting[1 - holder].turn(Mood::Well);
    let listener = cast.replicas.listener(holder);
    revoke(&cast.replicas.root, &cast.revocations, listener);
    let answer = sent.await.unwrap();
    let asked = cast.acting.iter().zip(before);
    let asked = asked.filter(|(acting, before)| acting.seen() > *before);
    (answer, asked.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_have_been_processed_is_sent_again_only_if_it_may_be_repeated() {
    let (answer, asked) = cut_during(CHANGE, Mood::Silent).await;
    let lost = answer.unwrap_err();
    assert_eq!((lost.code(), asked), (Code::Unavailable, 1), "{lost:?}");
    let (answer, asked) = cut_during(READ, Mood::Silent).await;
    assert_eq!((answer.is_ok(), asked), (true, 2), "{answer:?}");
}
