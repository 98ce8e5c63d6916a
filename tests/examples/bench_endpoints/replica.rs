//! A replica of a service, which takes a while for each call and may be made to fail.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tars_runtime::config::Timeouts;
use tars_tests::{test_ca::TestCa, test_listener::TestListener};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// How long a healthy replica takes for a call.
pub(crate) const WORK: Duration = Duration::from_millis(2);
/// How many times as long a slow one takes.
pub(crate) const SLOWER: u32 = 10;
/// How many times as long one takes that is hardly noticed.
pub(crate) const LITTLE_SLOWER: u32 = 3;
/// How long a flapping one works, and then fails.
pub(crate) const FLAP: Duration = Duration::from_millis(300);

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// What is wrong with a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nothing listens at its address any more.
    Dead,
    /// It takes connections and requests, and never answers.
    Hung,
    Slow,
    LittleSlow,
    /// It works and fails in turns: with a status in headers alone, and the next time in trailers.
    Flapping,
}

/// What answers the calls of a replica.
#[derive(Clone)]
struct Worker {
    fault: Fault,
    fails: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
}

impl Worker {
    async fn answer(self) -> Answer {
        let at = self.seen.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            let status = Status::unavailable("not now");
            return match at % 2 {
                0 => status.into_http::<Full<Bytes>>().map(BoxBody::new),
                _ => respond(&[], &status),
            };
        }
        tokio::time::sleep(match self.fault {
            Fault::Slow => WORK * SLOWER,
            Fault::LittleSlow => WORK * LITTLE_SLOWER,
            Fault::None | Fault::Dead | Fault::Hung | Fault::Flapping => WORK,
        })
        .await;
        if self.fault == Fault::Hung {
            std::future::pending::<()>().await;
        }
        respond(&[0; 5], &Status::ok(""))
    }
}

fn respond(message: &'static [u8], end: &Status) -> Answer {
    let mut trailers = HeaderMap::new();
    let written = end.add_header(&mut trailers);
    written.expect("a plain message is a header");
    let message = Full::new(Bytes::from_static(message));
    let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    let answer = Response::builder().header("content-type", "application/grpc");
    answer.body(BoxBody::new(body)).expect("a response")
}

impl tonic::codegen::Service<Request<tonic::body::Body>> for Worker {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move { Ok(own.answer().await) })
    }
}

/// A listener with a worker behind it.
pub(crate) struct Replica {
    pub(crate) listener: TestListener,
    seen: Arc<AtomicU64>,
    _flaps: Option<AbortOnDropHandle<()>>,
}

impl Replica {
    pub(crate) async fn start(root: &TestCa, fault: Fault) -> Self {
        let parts = root.parts("/door", vec![root.der.clone()]);
        let (fails, seen) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let worker = Worker {
            fault,
            fails: Arc::clone(&fails),
            seen: Arc::clone(&seen),
        };
        let listener = TestListener::serving(parts, Timeouts::default(), worker).await;
        let flapping =
            (fault == Fault::Flapping).then(|| AbortOnDropHandle::new(tokio::spawn(flap(fails))));
        Self {
            listener,
            seen,
            _flaps: flapping,
        }
    }

    /// How many calls it has had.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

async fn flap(fails: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(FLAP).await;
        fails.fetch_xor(true, Ordering::Relaxed);
    }
}
