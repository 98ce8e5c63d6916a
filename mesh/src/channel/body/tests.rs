use super::{
    super::{
        health::Health,
        judge::Until,
        metrics::ChannelMetrics,
        slots::StreamSlots,
        trial::tests::{call, of_two},
    },
    *,
};
use crate::replay::Replay;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use tars_runtime::metrics::Metrics;
use tokio::time::advance;
use tonic::Status;

/// What follows the headers of a response.
#[derive(Debug, Clone)]
enum Next {
    Message,
    Trailers(Status),
    /// The connection is lost.
    Lost,
    /// This side refuses it.
    Refused,
}

impl Next {
    fn item(&self) -> Item {
        match self {
            Self::Message => Ok(Frame::data(Bytes::from_static(&[0; 5]))),
            Self::Trailers(status) => {
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers).unwrap();
                Ok(Frame::trailers(trailers))
            }
            Self::Lost => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            Self::Refused => Err(Status::resource_exhausted("it is too long").into()),
        }
    }
}

fn ok() -> Next {
    Next::Trailers(Status::ok(""))
}

fn unavailable() -> Next {
    Next::Trailers(Status::unavailable("not now"))
}

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Item>>>;

fn frames(all: &[Next]) -> Frames {
    let items: Vec<_> = all.iter().map(Next::item).collect();
    StreamBody::new(stream::iter(items))
}

fn body_of<B>(inner: B, slots: &Arc<StreamSlots>) -> ChannelBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let slot = slots.try_take().unwrap();
    ChannelBody::of(Response::new(inner), slot, None).into_body()
}

fn slots() -> Arc<StreamSlots> {
    StreamSlots::new(10)
}

/// A request that was sent, or whose reading failed.
async fn request(fails: bool) -> Replay {
    let end = fails.then(|| Err::<Frame<Bytes>, _>(Status::internal("it broke")));
    let request = Replay::new(tonic::body::Body::new(StreamBody::new(stream::iter(end))));
    request.body().unwrap().collect().await.ok();
    request
}

/// Whether responses that go on like this eject their address.
async fn ejects(until: Until, all: &[Next], request_fails: bool) -> bool {
    let health: Arc<Health> = of_two();
    for _ in 0..5 {
        let mut body = body_of(frames(all), &slots());
        let request = request(request_fails).await;
        body.judge(Judge::new(call(&health), request, until));
        while let Some(Ok(_)) = body.frame().await {}
    }
    health.is_ejected()
}

#[tokio::test(start_paused = true)]
async fn a_stream_fails_its_address_that_ends_badly_before_a_message() {
    use Next::{Lost, Message, Refused};
    for (follows, fails) in [
        (vec![Lost], true),
        (vec![], true),
        (vec![unavailable()], true),
        (vec![ok()], false),
        (vec![Refused], false),
        (vec![Message, Lost], false),
        (vec![Message, unavailable()], false),
    ] {
        let ejected = ejects(Until::Message, &follows, false).await;
        assert_eq!(ejected, fails, "{follows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_of_one_message_fails_its_address_that_ends_badly_at_all() {
    use Next::{Lost, Message, Refused};
    for (follows, fails) in [
        (vec![Message, Lost], true),
        (vec![Message], true),
        (vec![Message, unavailable()], true),
        (vec![Message, Message, ok()], false),
        (vec![Message, Refused], false),
    ] {
        let ejected = ejects(Until::End, &follows, false).await;
        assert_eq!(ejected, fails, "{follows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_callers_own_request_broke_says_nothing() {
    for until in [Until::Message, Until::End] {
        assert!(!ejects(until, &[Next::Lost], true).await, "{until:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_its_caller_drops_does_not_fail_its_address() {
    let health = of_two();
    for _ in 0..5 {
        let mut body = body_of(frames(&[Next::Message, Next::Lost]), &slots());
        body.judge(Judge::new(call(&health), request(false).await, Until::End));
        body.frame().await.unwrap().unwrap();
    }
    assert!(!health.is_ejected());
}

#[tokio::test]
async fn the_slot_of_a_stream_is_held_until_its_end() {
    for last in [vec![ok()], vec![Next::Lost], vec![]] {
        let slots = slots();
        let all: Vec<_> = [Next::Message].into_iter().chain(last).collect();
        let mut body = body_of(frames(&all), &slots);
        body.frame().await.unwrap().unwrap();
        assert_eq!(slots.taken(), 1, "{all:?}");
        body.frame().await;
        assert_eq!(slots.taken(), 0, "{all:?}");
    }
}

/// A response that never ends, and what is shared with it as long as it is not dropped.
fn endless() -> (impl Body<Data = Bytes, Error = Infallible> + Unpin, Arc<()>) {
    let held = Arc::new(());
    let in_body = Arc::clone(&held);
    let nothing = stream::poll_fn(move |_| {
        let _ = &in_body;
        Poll::<Option<Result<Frame<Bytes>, Infallible>>>::Pending
    });
    (StreamBody::new(nothing), held)
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_response_and_its_stream() {
    let ((inner, held), slots, health) = (endless(), slots(), of_two());
    let limit = Duration::from_secs(60);
    let (slot, end) = (slots.try_take().unwrap(), Instant::now() + limit);
    let mut body = ChannelBody::of(Response::new(inner), slot, Some(end)).into_body();
    body.judge(Judge::new(call(&health), request(false).await, Until::End));
    let early = tokio::time::timeout(limit - Duration::from_millis(10), body.frame());
    assert!(early.await.is_err());
    assert_eq!((Arc::strong_count(&held), slots.taken()), (2, 1));
    advance(Duration::from_millis(10)).await;
    let last = body.frame().await.unwrap().unwrap();
    let code = last.trailers_ref().and_then(code_in);
    assert_eq!(code, Some(Code::DeadlineExceeded));
    assert_eq!((Arc::strong_count(&held), slots.taken()), (1, 0));
    assert!(body.frame().await.is_none() && body.is_end_stream());
}

#[tokio::test]
async fn what_was_read_ahead_comes_first_and_counts_as_unread() {
    let mut body = body_of(frames(&[Next::Message, ok()]), &slots());
    body.read_first().await;
    assert!(body.first_trailers().is_none() && body.take_failure().is_none());
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().lower(), 5);
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.data_ref().map(Bytes::len), Some(5));
    assert_eq!(body.size_hint().lower(), 0);
    assert!(body.frame().await.unwrap().unwrap().is_trailers());

    let mut body = body_of(frames(&[unavailable()]), &slots());
    body.read_first().await;
    let first = body.first_trailers().and_then(code_in);
    assert_eq!(first, Some(Code::Unavailable));
}

#[tokio::test]
async fn details_that_cannot_be_read_are_dropped_from_headers_and_trailers() {
    let with_details = |details: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-status-details-bin", details.parse().unwrap());
        headers
    };
    for (details, read) in [("!", &[][..]), ("AQ", &[1])] {
        let end = stream::iter([Ok::<_, BoxError>(Frame::trailers(with_details(details)))]);
        let mut response = Response::new(StreamBody::new(end));
        *response.headers_mut() = with_details(details);
        let slot = slots().try_take().unwrap();
        let (head, mut body) = ChannelBody::of(response, slot, None).into_parts();
        let last = body.frame().await.unwrap().unwrap();
        for headers in [&head.headers, last.trailers_ref().unwrap()] {
            let status = Status::from_header_map(headers).unwrap();
            assert_eq!((status.code(), status.details()), (Code::NotFound, read));
        }
    }
}

#[tokio::test]
async fn a_call_is_counted_with_the_code_that_its_body_ends_with() {
    for (follows, code) in [
        (vec![Next::Message, ok()], "OK"),
        (
            vec![Next::Message, Next::Trailers(Status::not_found("no"))],
            "NOT_FOUND",
        ),
        (vec![Next::Message, Next::Lost], "UNAVAILABLE"),
        (vec![Next::Message], "UNKNOWN"),
    ] {
        let registry = Metrics::default();
        let metrics = ChannelMetrics::new(&registry).of("spiffe://tars.local/auth");
        let mut body = body_of(frames(&follows), &slots());
        body.count(Counted::new(&metrics, None, Instant::now()));
        body.frame().await.unwrap().unwrap();
        let count = || {
            let text = registry.open_metrics().unwrap();
            let calls = text
                .lines()
                .filter(|l| l.starts_with("rpc_client_calls_total") && !l.ends_with(" 0"));
            calls.map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(count().is_empty(), "it has not ended");
        body.frame().await;
        let [counted] = &count()[..] else {
            panic!("{:?}", count());
        };
        assert!(counted.contains(&format!("code=\"{code}\"")), "{counted}");
    }
}

#[test]
fn what_this_side_refuses_is_counted_with_the_code_of_the_refusal() {
    for (last, code) in [
        (Next::Refused, Code::ResourceExhausted),
        (Next::Lost, Code::Unavailable),
        (unavailable(), Code::Unavailable),
        (ok(), Code::Ok),
    ] {
        assert_eq!(code_of(Some(&last.item())), code, "{last:?}");
    }
    assert_eq!(code_of(None), Code::Unknown);
}
