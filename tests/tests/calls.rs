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
#[path = "calls/refused.rs"]
mod refused;
#[path = "calls/streams.rs"]
mod streams;

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
