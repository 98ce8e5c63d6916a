//! What a call may hold and for how long, and what an HTTP/2 client is told that is no good gRPC
//! client: attacks with bare HTTP/2, over real TLS.

#![allow(clippy::unwrap_used)]

#[path = "calls/arrivals.rs"]
mod arrivals;
#[path = "calls/compression.rs"]
mod compression;
#[path = "calls/metadata.rs"]
mod metadata;
#[path = "calls/overload.rs"]
mod overload;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::json;
use std::{
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tars::rest::Rest;
use tars_certs::{Identity, Revocations, SpiffeId, tls};
use tars_proto::{
    auth::v1::{
        GetMeRequest, LoginRequest, WatchCredentialsRequest,
        auth_service_client::AuthServiceClient, credential_service_client::CredentialServiceClient,
    },
    automl::v1::{ListStudiesRequest, study_service_client::StudyServiceClient},
    fault,
    grpc::health::v1::{
        HealthCheckRequest, HealthListRequest, health_check_response::ServingStatus,
        health_client::HealthClient,
    },
};
use tars_runtime::{clock::Clock, config::Config};
use tars_tests::{PASSWORD, TestMesh, eventually, reason, refusal, time};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tonic::{Code, body::Body};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// An HTTP/2 connection of a peer, which opens this much window for each answer.
async fn connect(mesh: &TestMesh, service: &str, peer: &str, window: u32) -> SendRequest<Body> {
    http2(tls_to(mesh, service, peer).await, window).await
}

async fn http2(stream: TlsStream<TcpStream>, window: u32) -> SendRequest<Body> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

async fn tls_to(mesh: &TestMesh, service: &str, peer: &str) -> TlsStream<TcpStream> {
    let expected = SpiffeId::new(&mesh.config.trust.domain, &format!("/{service}")).unwrap();
    tls(&mesh.identity(peer), expected, &mesh.target(service)).await
}

async fn tls(identity: &Identity, expected: SpiffeId, target: &str) -> TlsStream<TcpStream> {
    let config = tls::client(identity, expected, &Revocations::default(), time()).unwrap();
    let tcp = TcpStream::connect(target).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.unwrap()
}

/// A body that never comes.
struct Never;

impl http_body::Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

/// One message, with its frame around it.
fn message(bytes: &[u8]) -> Body {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    let framed = [&[0], length.as_slice(), bytes].concat();
    Body::new(Full::new(Bytes::from(framed)))
}

async fn send(
    to: &SendRequest<Body>,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Response<Incoming> {
    let mut request = Request::post(format!("https://localhost{path}"));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).unwrap();
    to.clone().send_request(request).await.unwrap()
}

/// The code that an answer ends with.
async fn end(response: Response<Incoming>) -> Code {
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned();
    fault::code_in(&head.headers)
        .or_else(|| fault::code_in(&trailers?))
        .expect("a status")
}

async fn metric(mesh: &TestMesh, line: &str) -> u64 {
    let observe = Rest::new(&mesh.mesh.ready.observe);
    let text = observe.text("/metrics").await.unwrap();
    let value = text.lines().find_map(|l| l.strip_prefix(line));
    value.map_or(0, |n| n.trim().parse().unwrap())
}

async fn places(mesh: &TestMesh, service: &str, kind: &str) -> u64 {
    let line = format!("rpc_server_places{{service=\"{service}\",kind=\"{kind}\"}}");
    metric(mesh, &line).await
}

async fn ended(mesh: &TestMesh, method: &str, code: &str) -> u64 {
    let line = format!("rpc_server_calls_total{{method=\"{method}\",code=\"{code}\"}}");
    metric(mesh, &line).await
}

async fn cut(mesh: &TestMesh, reason: &str) -> u64 {
    let line = format!("mesh_streams_cut_total{{reason=\"{reason}\"}}");
    metric(mesh, &line).await
}

fn settings(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = tars_tests::config();
    change(&mut config);
    config
}

async fn token(mesh: &TestMesh, user: &str) -> String {
    let mut client = AuthServiceClient::new(mesh.client("auth", "/client/test"));
    let login = LoginRequest {
        username: user.into(),
        password: PASSWORD.into(),
    };
    client.login(login).await.unwrap().into_inner().access_token
}

async fn study(rest: &Rest) -> String {
    let body = json!({ "search_space": [{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }] });
    let made = rest.post("/api/v1/studies", body).await.unwrap();
    made["study"]["study_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_client_opens_no_window_ends_at_its_deadline() {
    const CALLS: u64 = 40;
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 0).await;
    let mut answers = Vec::new();
    for _ in 0..CALLS {
        let answer = send(&client, CHECK, &[("grpc-timeout", "4S")], message(b"")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answers.push(answer);
    }
    assert_eq!(places(&mesh, "auth", "calls").await, CALLS, "they wait");
    eventually("the places are given back", || async {
        places(&mesh, "auth", "calls").await == 0
    })
    .await;
    let late = ended(&mesh, "grpc.health.v1.Health/Check", "DEADLINE_EXCEEDED").await;
    assert_eq!((late, cut(&mesh, "deadline").await), (CALLS, CALLS));
    for answer in answers {
        assert!(answer.into_body().collect().await.is_err(), "it is reset");
    }
    // The connection is as good as before.
    assert_eq!(send(&client, "/x/Y", &[], message(b"")).await.status(), 200);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_nothing_is_reset_after_a_while() {
    let mesh = TestMesh::with(settings(|c| c.connections.stream_stall_seconds = 1)).await;
    let slow = connect(&mesh, "auth", "/client/slow", 0).await;
    let good = connect(&mesh, "auth", "/client/good", 1 << 16).await;
    let mut kept = send(&good, WATCH, &[], message(b"")).await;
    kept.frame().await.unwrap().unwrap();
    let mut stalled = Vec::new();
    for _ in 0..10 {
        stalled.push(send(&slow, WATCH, &[], message(b"")).await);
    }
    eventually("the stalled streams are over", || async {
        cut(&mesh, "stalled").await == 10 && places(&mesh, "auth", "streams").await == 1
    })
    .await;
    let ended = ended(&mesh, "grpc.health.v1.Health/Watch", "UNAVAILABLE").await;
    assert_eq!(ended, 10, "and a quiet one goes on");
    for stream in stalled {
        assert!(stream.into_body().collect().await.is_err(), "it is reset");
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_ends_with_the_credential_that_opened_it() {
    let mesh = TestMesh::with(settings(|c| c.connections.stream_stall_seconds = 3600)).await;
    let developer = mesh.user("dev", "developer").await;
    let study = study(&developer).await;
    let ask = format!("/api/v1/studies/{study}/ask");
    developer.post(&ask, json!({})).await.unwrap();
    let client = connect(&mesh, "automl", "/client/x", 0).await;
    let bearer = format!("Bearer {}", token(&mesh, "dev").await);
    let request = [&[0x0a, 36], study.as_bytes()].concat();
    let path = "/tars.automl.v1.StudyService/WatchStudy";
    let headers = [("authorization", bearer.as_str())];
    let open = send(&client, path, &headers, message(&request)).await;
    assert_eq!(
        (open.status(), fault::code_in(open.headers())),
        (StatusCode::OK, None)
    );
    assert_eq!(places(&mesh, "automl", "streams").await, 1);
    let admin = mesh.admin().await;
    let disable = admin.post("/admin/users/dev/disable", json!({})).await;
    disable.unwrap();
    eventually("the stream is reset", || async {
        places(&mesh, "automl", "streams").await == 0
    })
    .await;
    assert_eq!(cut(&mesh, "credential").await, 1);
    let method = "tars.automl.v1.StudyService/WatchStudy";
    assert_eq!(ended(&mesh, method, "UNAUTHENTICATED").await, 1);
    assert!(open.into_body().collect().await.is_err());
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_comes_keeps_its_place_for_a_bounded_time() {
    let mesh = TestMesh::with(settings(|c| c.connections.open_seconds = 1)).await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let never = || Body::new(Never);
    let stream = send(&client, WATCH, &[], never()).await;
    assert_eq!(end(stream).await, Code::DeadlineExceeded);
    let call = send(&client, CHECK, &[("grpc-timeout", "300m")], never()).await;
    assert_eq!(end(call).await, Code::DeadlineExceeded);
    // A message that does not come whole is no better.
    let half = Body::new(Full::new(Bytes::from_static(&[0, 0, 0, 0, 9, 1])));
    assert_eq!(
        end(send(&client, CHECK, &[], half).await).await,
        Code::Internal
    );
    for kind in ["calls", "streams"] {
        assert_eq!(places(&mesh, "auth", kind).await, 0, "{kind}");
    }
    mesh.mesh.stop().await;
}

fn quota(status: &tonic::Status) -> (Code, String, String) {
    use tonic_types::StatusExt;
    let details = status.get_details_quota_failure();
    let subject = details.map(|d| d.violations[0].subject.clone());
    let reason = fault::reason(status).unwrap_or_default();
    (status.code(), reason, subject.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificate_cannot_take_the_streams_of_others() {
    let mesh = TestMesh::with(settings(|c| {
        c.limits.streams_by_peer = 8;
        c.connections.max_open_streams = 16;
    }))
    .await;
    let watch = async |peer: &str| {
        let mut client = HealthClient::new(mesh.client("auth", peer));
        let request = HealthCheckRequest::default();
        client.watch(request).await.map(tonic::Response::into_inner)
    };
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(watch("/client/x").await.unwrap());
    }
    for _ in 0..20 {
        let refused = watch("/client/x").await.unwrap_err();
        let told = (Code::ResourceExhausted, "SHARE_FULL".into(), "peer".into());
        assert_eq!(quota(&refused), told, "{refused:?}");
    }
    for n in 0..8 {
        held.push(watch(&format!("/client/{n}")).await.unwrap());
    }
    let refused = watch("/client/late").await.unwrap_err();
    let told = (Code::Unavailable, "OVERLOADED".into(), String::new());
    assert_eq!(quota(&refused), told, "{refused:?}");
    // Calls have places of their own, and so have the workloads' streams: a new service still
    // follows the credentials.
    mesh.user("ada", "viewer").await;
    let mut workload = CredentialServiceClient::new(mesh.client("auth", "/automl"));
    let request = WatchCredentialsRequest { after_sequence: 0 };
    let mut pushed = workload
        .watch_credentials(request)
        .await
        .unwrap()
        .into_inner();
    assert!(pushed.message().await.unwrap().is_some());
    drop(held);
    eventually("the places are given back", || async {
        places(&mesh, "auth", "streams").await == 0
    })
    .await;
    assert!(watch("/client/x").await.is_ok());
    mesh.mesh.stop().await;
}

/// Opens a stream over REST and keeps it.
async fn follow(mesh: &TestMesh, token: &str, study: &str) -> (u16, String, TcpStream) {
    let host = mesh
        .mesh
        .ready
        .gateway
        .trim_start_matches("http://")
        .to_owned();
    let mut tcp = TcpStream::connect(&host).await.unwrap();
    let request = format!(
        "GET /api/v1/studies/{study}/events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    let (mut text, mut buffer) = (String::new(), [0u8; 4096]);
    while !text.contains("\r\n\r\n") {
        let n = tcp.read(&mut buffer).await.unwrap();
        assert!(n > 0, "the gateway answers: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text, tcp)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_cannot_take_the_streams_of_others_behind_the_gateway() {
    let mesh = TestMesh::with(settings(|c| c.limits.streams_by_caller = 4)).await;
    let study = study(&mesh.user("dev", "developer").await).await;
    mesh.user("ada", "viewer").await;
    mesh.user("bob", "viewer").await;
    let (ada, bob) = (token(&mesh, "ada").await, token(&mesh, "bob").await);
    let mut held = Vec::new();
    for _ in 0..4 {
        let (status, text, stream) = follow(&mesh, &ada, &study).await;
        assert_eq!(status, 200, "{text}");
        held.push(stream);
    }
    let (status, text, _) = follow(&mesh, &ada, &study).await;
    assert!(status == 429 && text.contains("retry-after"), "{text}");
    let (status, text, _bob) = follow(&mesh, &bob, &study).await;
    assert_eq!(status, 200, "{text}");
    drop(held);
    eventually("who leaves gives the place back", || async {
        follow(&mesh, &ada, &study).await.0 == 200
    })
    .await;
    mesh.mesh.stop().await;
}

/// Opens so many streams through the gateway, each of which answers.
async fn follow_all(mesh: &TestMesh, token: &str, study: &str, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let (status, text, stream) = follow(mesh, token, study).await;
        assert_eq!(status, 200, "{text}");
        held.push(stream);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_201st_stream_through_the_gateway_does_not_wait_behind_200() {
    let mesh = TestMesh::with(settings(|c| {
        c.limits.streams_by_caller = 1000;
        c.gateway.max_connections_by_address = 1000;
    }))
    .await;
    let study = study(&mesh.user("dev", "developer").await).await;
    let dev = token(&mesh, "dev").await;
    let held = follow_all(&mesh, &dev, &study, 201).await;
    drop(held);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_finds_all_of_the_gateways_connections_full_is_told_at_once() {
    let narrow = settings(|c| {
        c.limits.streams_by_caller = 1000;
        c.connections.max_streams = 2;
    });
    let mesh = TestMesh::alone(narrow, Clock::system()).await;
    let study = study(&mesh.user("dev", "developer").await).await;
    let dev = token(&mesh, "dev").await;
    // Eight connections of two streams.
    let mut held = follow_all(&mesh, &dev, &study, 16).await;
    let (status, text, _) = follow(&mesh, &dev, &study).await;
    assert!(status == 503 && text.contains("retry-after"), "{text}");
    held.pop();
    eventually("a stream that ends makes room", || async {
        follow(&mesh, &dev, &study).await.0 == 200
    })
    .await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_no_grpc_call_is_refused_in_http() {
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    for path in [CHECK, "/no.Such/Method", "/"] {
        for kind in ["application/json", "application/grpc-web", "text/plain"] {
            let answer = send(&client, path, &[("content-type", kind)], message(b"")).await;
            assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        for method in [Method::GET, Method::PUT, Method::OPTIONS] {
            let request = Request::builder().method(method);
            let request = request.uri(format!("https://localhost{path}"));
            let request = request.body(Body::empty()).unwrap();
            let answer = client.clone().send_request(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(answer.headers()["allow"], "POST");
        }
    }
    let headers = [
        ("content-type", "application/grpc+proto"),
        ("te", "trailers"),
    ];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(end(answer).await, Code::Ok);
    // The length alone is enough; nothing of the message has to come.
    let huge = Body::new(Full::new(Bytes::from_static(&[0, 0, 0x20, 0, 0])));
    let answer = send(&client, CHECK, &[], huge).await;
    assert_eq!(end(answer).await, Code::ResourceExhausted);
    mesh.mesh.stop().await;
}

/// A request of an HTTP/2 client that sees how its stream ends.
async fn h2_client(mesh: &TestMesh, peer: &str) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(tls_to(mesh, "auth", peer).await)
        .await
        .unwrap();
    tokio::spawn(async move { connection.await.ok() });
    sender
}

/// Whether a body ends well, without a byte.
async fn is_empty(mut body: h2::RecvStream) -> bool {
    while let Some(data) = body.data().await {
        if !data.is_ok_and(|data| data.is_empty()) {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let mesh = TestMesh::start().await;
    let client = h2_client(&mesh, "/client/x").await;
    for size in [1, 100, 60_000, 2_000_000] {
        let request = Request::post(format!("https://localhost{CHECK}"));
        let request = request.header("content-type", "application/json");
        let request = request.header("content-length", size).body(()).unwrap();
        let mut ready = client.clone().ready().await.unwrap();
        let (answer, mut body) = ready.send_request(request, false).unwrap();
        // It comes behind the end of the body, or a client would stop in the middle.
        let sending = async {
            tokio::task::yield_now().await;
            body.send_data(Bytes::from(vec![b'x'; size]), true).unwrap();
        };
        let (answer, ()) = tokio::join!(answer, sending);
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(is_empty(answer.into_body()).await, "no error of the stream");
    }
    // A refusal of gRPC's own ends the stream by itself; what then is reset is no error either.
    let path = "/tars.auth.v1.AuthService/GetMe";
    let request = Request::post(format!("https://localhost{path}"));
    let request = request.header("content-type", "application/grpc");
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, mut body) = ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(
        fault::code_in(answer.headers()),
        Some(Code::Unauthenticated)
    );
    assert!(answer.body().is_end_stream());
    let reset = futures_util::future::poll_fn(|cx| body.poll_reset(cx)).await;
    assert_eq!(reset.unwrap(), h2::Reason::NO_ERROR);
    // A body that never ends is waited for a while, and then is no error.
    let request = Request::post(format!("https://localhost{CHECK}"));
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, mut body) = ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let answer = answer.await.unwrap().into_body();
    assert!(is_empty(answer).await, "ended, without an error");
    let reset = futures_util::future::poll_fn(|cx| body.poll_reset(cx)).await;
    assert_eq!(reset.unwrap(), h2::Reason::NO_ERROR);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_too_large_are_refused_in_grpcs_words() {
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let large = "a".repeat(17_000);
    let headers = [("x-large", large.as_str())];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        fault::code_in(answer.headers()),
        Some(Code::ResourceExhausted)
    );
    assert_eq!(answer.headers()["x-trace-id"].len(), 32);
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(fault::reason(&status).as_deref(), Some("HEADERS_TOO_LARGE"));
    let fits = "a".repeat(15_000);
    let headers = [("x-large", fits.as_str())];
    let answer = send(&client, CHECK, &headers, message(b"")).await;
    assert_eq!(end(answer).await, Code::Ok);
    mesh.mesh.stop().await;
}

/// How often a new connection of `peer` is refused until it is cut.
async fn refused_until_cut(mesh: &TestMesh, peer: &str) -> Option<u32> {
    let client = connect(mesh, "auth", peer, 1 << 16).await;
    let _held = send(&client, WATCH, &[], message(b"")).await;
    let mut refused = 0;
    while refused < 2000 {
        let request = Request::post(format!("https://localhost{WATCH}"));
        let request = request.header("content-type", "application/grpc");
        let request = request.body(message(b"")).unwrap();
        match client.clone().send_request(request).await {
            Ok(answer) => assert_eq!(
                fault::code_in(answer.headers()),
                Some(Code::ResourceExhausted)
            ),
            Err(_) => return Some(refused),
        }
        refused += 1;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_refused_repeatedly_is_cut_with_enhance_your_calm() {
    let mesh = TestMesh::with(settings(|c| c.limits.streams_by_peer = 1)).await;
    let first = refused_until_cut(&mesh, "/client/greedy").await.unwrap();
    assert!((200..2000).contains(&first), "{first}");
    // A new connection is no new budget, and nobody else is concerned.
    let again = refused_until_cut(&mesh, "/client/greedy").await.unwrap();
    assert!(again < first, "{again} of {first}");
    let other = refused_until_cut(&mesh, "/client/other").await.unwrap();
    assert!(other >= 200, "{other}");
    let line = "mesh_connections_cut_total{reason=\"refusals\"}";
    eventually("it is counted", || async { metric(&mesh, line).await == 3 }).await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_refusals_of_others_with_its_identity() {
    let mesh = TestMesh::with(settings(|c| c.limits.streams_by_peer = 1)).await;
    let quiet = connect(&mesh, "auth", "/client/shared", 1 << 16).await;
    let _held = send(&quiet, WATCH, &[], message(b"")).await;
    for _ in 0..2 {
        let greedy = refused_until_cut(&mesh, "/client/shared").await;
        assert!(greedy.is_some());
        for _ in 0..8 {
            let answer = send(&quiet, WATCH, &[], message(b"")).await;
            assert_eq!(
                fault::code_in(answer.headers()),
                Some(Code::ResourceExhausted)
            );
        }
        let answer = send(&quiet, CHECK, &[], message(b"")).await;
        assert_eq!(end(answer).await, Code::Ok);
    }
    let line = "mesh_connections_cut_total{reason=\"refusals\"}";
    eventually("it is counted", || async { metric(&mesh, line).await == 2 }).await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_its_trace_id() {
    let mesh = TestMesh::start().await;
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{id}-00f067aa0ba902b7-00");
    let elsewhere = "/tars.automl.v1.StudyService/ListStudies";
    for path in [CHECK, WATCH, "/no.Such/Method", elsewhere] {
        let headers = [("traceparent", parent.as_str())];
        let answer = send(&client, path, &headers, message(b"")).await;
        assert_eq!(answer.headers()["x-trace-id"], id, "{path}");
        let answer = send(&client, path, &[], message(b"")).await;
        let fresh = answer.headers()["x-trace-id"].to_str().unwrap().to_owned();
        assert!(fresh.len() == 32 && fresh != id, "{path}: {fresh}");
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_on_the_wrong_port_says_where_it_is_served() {
    let mesh = TestMesh::start().await;
    let mut wrong = StudyServiceClient::new(mesh.client("auth", "/client/x"));
    let refused = wrong.list_studies(ListStudiesRequest::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(fault::reason(&refused).as_deref(), Some("WRONG_SERVICE"));
    let text = refused.message();
    assert!(
        text.contains("automl") && !text.contains("127.0.0.1"),
        "{text}"
    );
    let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let answer = send(&client, "/no.Such/Method", &[], message(b"")).await;
    assert_eq!(fault::code_in(answer.headers()), Some(Code::Unimplemented));
    assert!(!answer.headers()["grpc-message"].is_empty());
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_names_the_permission_and_nobody() {
    let mesh = TestMesh::start().await;
    let viewer = mesh.user("zoe", "viewer").await;
    let denied = refusal(viewer.post("/admin/users/zoe/disable", json!({})).await);
    let (status, body) = denied;
    assert_eq!((status, reason(&body).as_str()), (403, "PERMISSION_DENIED"));
    let text = body.to_string();
    assert!(text.contains("\"permission\":\"users.write\""), "{text}");
    assert!(body["message"].as_str().unwrap().contains("users.write"));
    for secret in ["zoe", "viewer", "user:"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    // A peer that the policy keeps out learns nothing of the policy.
    let mut workload = AuthServiceClient::new(mesh.client("auth", "/automl"));
    let denied = workload.get_me(GetMeRequest {}).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert_eq!(denied.message(), "this peer may not call this method");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_watched_checked_and_listed_as_its_protocol_says() {
    let mesh = TestMesh::start().await;
    let mut client = HealthClient::new(mesh.client("auth", "/client/x"));
    let ask = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut unknown = client.watch(ask("no.Such")).await.unwrap().into_inner();
    let first = unknown.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    assert_eq!(places(&mesh, "auth", "streams").await, 1, "it stays open");
    let refused = client.check(ask("no.Such")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let listed = client
        .list(HealthListRequest {})
        .await
        .unwrap()
        .into_inner();
    let login = "tars.auth.v1.AuthService";
    assert!(listed.statuses.contains_key("") && listed.statuses.contains_key(login));
    let serving = |s: &tars_proto::grpc::health::v1::HealthCheckResponse| {
        s.status() == ServingStatus::Serving
    };
    assert!(listed.statuses.values().all(serving));
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_certificate_alone_is_enough_to_reflect() {
    let mesh = TestMesh::start().await;
    let list = &[0x3a, 0];
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let operator = connect(&mesh, "auth", "/user/ada", 1 << 16).await;
        let answer = send(&operator, &path, &[], message(list)).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("tars.auth.v1.AuthService"), "{text}");
        assert!(text.contains("grpc.health.v1.Health"), "{text}");
        let client = connect(&mesh, "auth", "/client/x", 1 << 16).await;
        let refused = send(&client, &path, &[], message(list)).await;
        assert_eq!(
            fault::code_in(refused.headers()),
            Some(Code::Unauthenticated)
        );
    }
    // It is no user: what asks for a permission still asks for a credential.
    let mut operator = AuthServiceClient::new(mesh.client("auth", "/user/ada"));
    let refused = operator.get_me(GetMeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    mesh.mesh.stop().await;
}
