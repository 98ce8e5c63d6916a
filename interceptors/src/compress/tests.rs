use super::{gzip::tests::gzip, *};
use crate::fixtures::{ME, by_peer};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use tars_certs::PeerClass;
use tower::{ServiceExt, service_fn};

const MAX: usize = 64 << 10;
const LOGIN: &str = "/tars.auth.v1.AuthService/Login";

fn framed(flags: u8, payload: &[u8]) -> Bytes {
    [&messages::header(flags, payload.len())[..], payload]
        .concat()
        .into()
}

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|n| b"reward: 1.0\n"[n % 12]).collect()
}

/// What became of a call to a handler that answers with what it was sent.
struct Outcome {
    headers: HeaderMap,
    body: Result<Bytes, Code>,
}

impl Outcome {
    fn code(&self) -> Option<Code> {
        fault::code_in(&self.headers)
    }
}

async fn echoed(method: &str, headers: &[(&str, &str)], body: Bytes) -> Outcome {
    let echo = service_fn(|request: Request<Body>| async move {
        assert!(
            request
                .headers()
                .get(ENCODING)
                .is_none_or(|e| e == IDENTITY)
        );
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let mut request = Request::new(Body::new(Full::new(body)));
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let call = by_peer(method, PeerClass::Client, "/client/a");
    request.extensions_mut().insert(call);
    let response = CompressLayer { max: MAX }.layer(echo).oneshot(request);
    let (head, body) = response.await.unwrap().into_parts();
    let body = body.collect().await.map_err(|status| status.code());
    Outcome {
        headers: head.headers,
        body: body.map(http_body_util::Collected::to_bytes),
    }
}

#[tokio::test]
async fn packed_messages_reach_the_handler_unpacked() {
    let sent = [
        framed(1, &gzip(&text(5000))),
        framed(0, b"plain"),
        framed(1, &gzip(b"")),
        framed(1, &gzip(&text(MAX))),
    ];
    let seen = [
        framed(0, &text(5000)),
        framed(0, b"plain"),
        framed(0, b""),
        framed(0, &text(MAX)),
    ];
    let outcome = echoed(ME, &[("grpc-encoding", "gzip")], sent.concat().into()).await;
    assert_eq!(outcome.body.unwrap(), seen.concat());
    assert!(
        !outcome.headers.contains_key(ENCODING),
        "nobody asked for it"
    );
}

#[tokio::test]
async fn a_message_over_the_limit_or_that_cannot_be_unpacked_ends_the_call() {
    for (message, code) in [
        (framed(1, &gzip(&text(MAX + 1))), Code::ResourceExhausted),
        (
            framed(1, &gzip(&vec![0; 1000 * MAX])),
            Code::ResourceExhausted,
        ),
        (framed(1, b"not gzip"), Code::Internal),
        (framed(1, b""), Code::Internal),
        (framed(1, &gzip(&text(5000))[..40]), Code::Internal),
    ] {
        let outcome = echoed(ME, &[("grpc-encoding", "gzip")], message).await;
        assert_eq!(outcome.body.unwrap_err(), code);
    }
}

#[tokio::test]
async fn an_encoding_that_is_not_known_is_unimplemented_and_says_what_is() {
    let message = framed(1, &gzip(b"x"));
    for headers in [
        &[("grpc-encoding", "deflate")][..],
        &[("grpc-encoding", "zstd")],
        &[("grpc-encoding", "GZIP")],
        &[("grpc-encoding", "")],
        &[("grpc-encoding", "gzip,identity")],
        &[("grpc-encoding", "gzip"), ("grpc-encoding", "gzip")],
    ] {
        let outcome = echoed(ME, headers, message.clone()).await;
        assert_eq!(outcome.code(), Some(Code::Unimplemented), "{headers:?}");
        assert_eq!(outcome.headers[ACCEPTED], "identity,gzip");
    }
}

#[tokio::test]
async fn a_method_with_a_secret_neither_accepts_nor_sends_packed_messages() {
    let message = framed(0, &text(20_000));
    let outcome = echoed(LOGIN, &[("grpc-encoding", "gzip")], message.clone()).await;
    assert_eq!(outcome.code(), Some(Code::Unimplemented));
    assert_eq!(outcome.headers[ACCEPTED], "identity");
    for encoding in [&[][..], &[("grpc-encoding", "identity")]] {
        let asked = [&[("grpc-accept-encoding", "gzip")], encoding].concat();
        let outcome = echoed(LOGIN, &asked, message.clone()).await;
        assert!(!outcome.headers.contains_key(ENCODING));
        assert_eq!(outcome.body.unwrap(), message);
    }
}

#[tokio::test]
async fn large_answers_are_packed_for_those_who_accept_it() {
    let sent = [framed(0, &text(20_000)), framed(0, b"small")].concat();
    for accepted in ["gzip", "identity,gzip", "identity, deflate, gzip"] {
        let headers = [("grpc-accept-encoding", accepted)];
        let outcome = echoed(ME, &headers, sent.clone().into()).await;
        assert_eq!(outcome.headers[ENCODING], GZIP);
        let mut messages = Messages::default();
        messages.add(&outcome.body.unwrap());
        let (large, small) = (messages.next().unwrap(), messages.next().unwrap());
        assert!(large.packed && large.payload.len() < 2000);
        assert_eq!(small.into_frames().concat(), framed(0, b"small"));
    }
    for not in ["", "identity", "deflate", "gzip2", "x-gzip"] {
        let headers = [("grpc-accept-encoding", not)];
        let outcome = echoed(ME, &headers, sent.clone().into()).await;
        assert!(!outcome.headers.contains_key(ENCODING), "{not}");
        assert_eq!(outcome.body.unwrap(), sent);
    }
}

#[tokio::test]
async fn an_unfinished_message_is_passed_on_as_it_is() {
    let cut = framed(1, &gzip(&text(5000))).slice(..50);
    let outcome = echoed(ME, &[("grpc-encoding", "gzip")], cut.clone()).await;
    assert_eq!(outcome.body.unwrap(), cut);
}
