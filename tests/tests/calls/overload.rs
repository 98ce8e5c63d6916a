//! A mesh that has more to do than it can.

use super::*;
use futures_util::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use std::convert::Infallible;
use tars::rest::RestError;
use tars_proto::auth::v1::LogoutRequest;
use tars_runtime::config::Overload;
use tokio::task::JoinHandle;
use tonic_types::StatusExt;

const ME: &str = "/tars.auth.v1.AuthService/GetMe";

/// Room for one call in the whole process.
fn narrow() -> Config {
    settings(|config| {
        config.overload = Overload {
            floor: 1,
            ceiling: 1,
        };
    })
}

async fn shed(mesh: &TestMesh, full: &str) -> u64 {
    let line = format!("overload_shed_total{{tier=\"entry\",full=\"{full}\"}}");
    metric(mesh, &line).await
}

async fn in_flight(mesh: &TestMesh) -> u64 {
    metric(mesh, "overload_in_flight").await
}

/// A call of ada's that waits for the database until the lock is dropped, and so is in flight.
async fn in_the_way(mesh: &TestMesh) -> (tars_test_db::Lock, JoinHandle<()>) {
    let busy = tars_test_db::lock(mesh.dir.path(), "automl").await;
    let rest = mesh.login("ada").await;
    let held = tokio::spawn(async move {
        // Workloads have calls in flight as well, and there is room for one.
        let space = json!([{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }]);
        let made = || rest.post("/api/v1/studies", json!({ "search_space": space }));
        while let Err(RestError::Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..
        }) = made().await
        {}
    });
    eventually("the call is in flight", || async {
        let holding = places(mesh, "automl", "calls").await;
        (holding, in_flight(mesh).await) == (1, 1)
    })
    .await;
    (busy, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_mesh_sheds_calls_with_a_time_and_answers_what_is_vital() {
    let mesh = TestMesh::alone(narrow(), Clock::system()).await;
    let rest = mesh.user("ada", "developer").await;
    let token = token(&mesh, "ada").await;
    let (busy, held) = in_the_way(&mesh).await;

    let mut auth = AuthServiceClient::new(mesh.client("auth", "/client/x"));
    let as_ada = || {
        let mut request = tonic::Request::new(GetMeRequest {});
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    };
    let status = auth.get_me(as_ada()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(fault::reason(&status).as_deref(), Some("OVERLOADED"));
    let delay = status
        .get_details_retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert_eq!(pushback.to_str().unwrap(), delay.as_millis().to_string());
    let raw = connect(&mesh, "auth", "/client/x", 1 << 16).await;
    let answer = send(&raw, ME, &[], message(b"")).await;
    assert_eq!(
        fault::code_in(answer.headers()),
        Some(Code::Unavailable),
        "before it is looked at"
    );
    let (http, body) = refusal(rest.get("/auth/me").await);
    assert_eq!(
        (http, reason(&body).as_str()),
        (503, "OVERLOADED"),
        "never 429"
    );
    assert!(shed(&mesh, "all").await >= 3);

    let health = HealthClient::new(mesh.client("auth", "/client/x"));
    let checked = health.clone().check(HealthCheckRequest::default()).await;
    assert_eq!(checked.unwrap().get_ref().status(), ServingStatus::Serving);
    let mut logout = tonic::Request::new(LogoutRequest::default());
    let bearer = format!("Bearer {token}").parse().unwrap();
    logout.metadata_mut().insert("authorization", bearer);
    auth.logout(logout)
        .await
        .expect("who wants to leave may leave");

    drop(busy);
    held.await.expect("what was let in is done");
    assert_eq!(in_flight(&mesh).await, 0, "there is room again");
    rest.get("/auth/me").await.expect("as before");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_their_client_leave_room_for_others() {
    const HELD: u64 = 20;
    let mesh = TestMesh::alone(narrow(), Clock::system()).await;
    let rest = mesh.user("ada", "viewer").await;
    let bearer = format!("Bearer {}", token(&mesh, "ada").await);
    // Some send no request, others no end of it, and the last do not read their answer.
    let silent = connect(&mesh, "auth", "/client/silent", 1 << 16).await;
    let deaf = connect(&mesh, "auth", "/client/deaf", 0).await;
    let mut waiting = Vec::new();
    while (waiting.len() as u64) < HELD {
        let (to, body) = match waiting.len() % 3 {
            0 => (&silent, Body::new(Never)),
            1 => (&silent, beginning()),
            _ => (&deaf, message(b"")),
        };
        let (to, bearer) = (to.clone(), bearer.clone());
        let call = tokio::spawn(async move {
            let headers = [("authorization", bearer.as_str())];
            send(&to, ME, &headers, body)
                .await
                .into_body()
                .collect()
                .await
        });
        waiting.push(call);
        eventually("it has its place", || async {
            places(&mesh, "auth", "calls").await == waiting.len() as u64
        })
        .await;
    }
    eventually("none of them is any work", || async {
        in_flight(&mesh).await == 0
    })
    .await;
    assert_eq!(places(&mesh, "auth", "calls").await, HELD);
    eventually("there is room", || async {
        rest.get("/auth/me").await.is_ok()
    })
    .await;
    for call in waiting {
        call.abort();
    }
    mesh.mesh.stop().await;
}

/// A request whose end does not come.
fn beginning() -> Body {
    let piece = Bytes::from_static(&[0, 0, 0, 0, 9, 1]);
    let begun = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(piece))]);
    Body::new(StreamBody::new(
        begun.chain(futures_util::stream::pending()),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_held_back_is_shed_when_it_comes_at_a_bad_time() {
    let mesh = TestMesh::alone(narrow(), Clock::system()).await;
    mesh.user("ada", "developer").await;
    let bearer = format!("Bearer {}", token(&mesh, "ada").await);
    let (more, rest) = tokio::sync::mpsc::channel(1);
    let late = connect(&mesh, "auth", "/client/late", 1 << 16).await;
    let held_back = tokio::spawn(async move {
        let pieces = pieces_of(rest).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        let headers = [("authorization", bearer.as_str())];
        send(&late, ME, &headers, Body::new(StreamBody::new(pieces))).await
    });
    eventually("it has its place", || async {
        places(&mesh, "auth", "calls").await == 1
    })
    .await;
    let (busy, held) = in_the_way(&mesh).await;
    more.send(Bytes::from_static(&[0; 5])).await.unwrap();
    drop(more);
    let answer = held_back.await.unwrap();
    assert!(answer.headers().contains_key("grpc-retry-pushback-ms"));
    assert_eq!(end(answer).await, Code::Unavailable);
    assert!(shed(&mesh, "all").await >= 1);
    drop(busy);
    held.await.expect("the one in flight is done");
    mesh.mesh.stop().await;
}

/// What is sent into a channel.
fn pieces_of(mut of: tokio::sync::mpsc::Receiver<Bytes>) -> impl Stream<Item = Bytes> {
    futures_util::stream::poll_fn(move |cx| of.poll_recv(cx))
}
