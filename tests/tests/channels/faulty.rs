//! Calls over replicas some of which are dead, slow, flapping, silent, or refuse.

use super::*;
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use std::{convert::Infallible, time::Duration};
use tars_gateway::Raw;
use tonic::{client::Grpc, metadata::MetadataMap};

/// A method that the contract declares idempotent.
const READ: &str = "/tars.auth.v1.AuthService/GetMe";
/// A method that it does not.
const CHANGE: &str = "/tars.auth.v1.AuthService/Login";

/// How a replica answers.
#[derive(Clone)]
enum Mood {
    Well,
    Late(Duration),
    Refusing(Status),
    Silent,
}

/// A replica that answers whatever it is called for, as it is told to.
#[derive(Clone)]
struct Acting {
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

    fn turn(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// An empty message, from this replica.
    fn answer(&self) -> Response<BoxBody<Bytes, Infallible>> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let message = Full::new(Bytes::from_static(&[0; 5]));
        let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
        let answer = Response::builder()
            .header("content-type", "application/grpc")
            .header("replica", self.at);
        answer.body(BoxBody::new(body)).unwrap()
    }
}

impl tonic::codegen::Service<Request<tonic::body::Body>> for Acting {
    type Response = Response<BoxBody<Bytes, Infallible>>;
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
            let _in_flight = in_flight;
            match mood {
                Mood::Well => {}
                Mood::Late(by) => tokio::time::sleep(by).await,
                Mood::Refusing(status) => {
                    return Ok(status.into_http::<Full<Bytes>>().map(BoxBody::new));
                }
                Mood::Silent => std::future::pending().await,
            }
            Ok(own.answer())
        })
    }
}

/// Replicas that act, and a channel to all of them.
struct Cast {
    acting: Vec<Acting>,
    replicas: Replicas,
    channel: Channel,
    revocations: tars_certs::Revocations,
}

impl Cast {
    async fn of(count: usize) -> Self {
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
        let options = replicas.options(&replicas.target());
        let this = Self {
            acting,
            revocations: options.revocations.clone(),
            channel: Channel::new(options).unwrap(),
            replicas,
        };
        eventually("each replica answers", || async {
            this.call(READ).await.unwrap();
            this.acting.iter().all(|acting| acting.seen() > 0)
        })
        .await;
        this
    }

    async fn call(&self, method: &'static str) -> Result<usize, Status> {
        call(self.channel.clone(), method, None).await
    }

    /// Makes calls, some at once; returns how often each replica answered, and how many calls failed.
    async fn load(
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
async fn call(
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

fn unavailable() -> Mood {
    Mood::Refusing(Status::unavailable("not now"))
}

fn pushed_back(by: &str) -> Mood {
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", by.parse().unwrap());
    let status = Status::with_metadata(Code::Unavailable, "not now", metadata);
    Mood::Refusing(status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_refuses_quickly_draws_no_calls() {
    let cast = Cast::of(3).await;
    let before = cast.acting[0].seen();
    cast.acting[0].turn(unavailable());
    let (counts, failed) = cast.load(READ, 500, 8).await;
    assert_eq!((counts[0], failed), (0, 0), "{counts:?}");
    let drawn = cast.acting[0].seen() - before;
    assert!(drawn <= 20, "{drawn} calls went to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_ejection_no_call_fails_even_one_that_may_not_be_repeated() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(unavailable());
    // They are sent at once, before the first of them has failed.
    let (_, failed) = cast.load(CHANGE, 64, 64).await;
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
async fn a_slow_replica_gets_less_than_one_call_in_a_hundred() {
    let cast = Cast::of(3).await;
    let before = cast.acting[2].seen();
    cast.acting[2].turn(Mood::Late(Duration::from_millis(300)));
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
    let cast = Cast::of(2).await;
    let seen = || cast.acting.iter().map(Acting::seen).sum::<usize>();
    for acting in &cast.acting {
        acting.turn(unavailable());
    }
    for (method, times) in [(CHANGE, 1), (READ, 3)] {
        let before = seen();
        let refused = cast.call(method).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unavailable, "not now")
        );
        assert_eq!(seen() - before, times, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_about_sending_again_holds() {
    let cast = Cast::of(2).await;
    let seen = || cast.acting.iter().map(Acting::seen).sum::<usize>();
    for (pushback, times) in [("0", 3), ("1", 3), ("-1", 1), ("later", 1), ("3600000", 1)] {
        for acting in &cast.acting {
            acting.turn(pushed_back(pushback));
        }
        let before = seen();
        cast.call(READ).await.unwrap_err();
        assert_eq!(seen() - before, times, "{pushback}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_codes_are_answers_and_are_not_sent_again() {
    let cast = Cast::of(2).await;
    let seen = || cast.acting.iter().map(Acting::seen).sum::<usize>();
    for code in [
        Code::Internal,
        Code::Unknown,
        Code::Aborted,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::NotFound,
    ] {
        for acting in &cast.acting {
            acting.turn(Mood::Refusing(Status::new(code, "no")));
        }
        let before = seen();
        assert_eq!(cast.call(READ).await.unwrap_err().code(), code);
        assert_eq!(seen() - before, 1, "{code:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_stay_within_a_budget_when_every_replica_fails() {
    let cast = Cast::of(3).await;
    let before: usize = cast.acting.iter().map(Acting::seen).sum();
    for acting in &cast.acting {
        acting.turn(unavailable());
    }
    let (_, failed) = cast.load(READ, 500, 8).await;
    let sent = cast.acting.iter().map(Acting::seen).sum::<usize>() - before;
    assert_eq!(failed, 500);
    // A hundred that were saved, and one for five calls.
    assert!((600..=500 + 100 + 101).contains(&sent), "{sent}");
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
async fn cut_during(method: &'static str) -> (Result<usize, Status>, usize) {
    let cast = Cast::of(2).await;
    let before: Vec<_> = cast.acting.iter().map(Acting::seen).collect();
    for acting in &cast.acting {
        acting.turn(Mood::Silent);
    }
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
    let (answer, asked) = cut_during(CHANGE).await;
    let lost = answer.unwrap_err();
    assert_eq!((lost.code(), asked), (Code::Unavailable, 1), "{lost:?}");
    let (answer, asked) = cut_during(READ).await;
    assert_eq!((answer.is_ok(), asked), (true, 2), "{answer:?}");
}
