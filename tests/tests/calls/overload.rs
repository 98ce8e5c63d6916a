//! A mesh that has more to do than it can.

use super::*;
use futures_util::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
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

/// Calls until there is room: workloads have calls in flight as well, and there is room for one.
async fn let_in<T>(call: impl AsyncFn() -> Result<T, RestError>) -> T {
    let let_in = Mutex::new(None);
    eventually("there is room", || async {
        let answer = match call().await {
            Err(RestError::Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..
            }) => return false,
            answered => answered.expect("it is refused for want of room alone"),
        };
        *let_in.lock() = Some(answer);
        true
    })
    .await;
    let_in.into_inner().unwrap()
}

/// Ada, who is made and logged in, and the token of another session of hers.
async fn ada(mesh: &TestMesh, role: &str) -> (Rest, String) {
    user(mesh, "ada", role).await
}

/// The same of another user.
async fn user(mesh: &TestMesh, name: &str, role: &str) -> (Rest, String) {
    let (ready, rest) = (&mesh.mesh.ready, mesh.rest());
    let password = std::fs::read_to_string(&ready.admin_password_file).unwrap();
    let admin = let_in(async || rest.login(&ready.admin_user, &password).await).await;
    let made = json!({ "username": name, "password": PASSWORD, "roles": [role] });
    let_in(async || admin.post("/admin/users", made.clone()).await).await;
    let login = json!({ "username": name, "password": PASSWORD });
    let given = let_in(async || rest.post("/auth/login", login.clone()).await).await;
    let token = given["access_token"].as_str().unwrap().to_owned();
    let rest = let_in(async || rest.login(name, PASSWORD).await).await;
    (rest, token)
}

/// A call of ada's that waits for the database until the lock is dropped, and so is in flight.
async fn in_the_way(mesh: &TestMesh, ada: &Rest) -> (tars_test_db::Lock, JoinHandle<()>) {
    let busy = tars_test_db::lock(mesh.dir.path(), "automl").await;
    let rest = ada.clone();
    let held = tokio::spawn(async move {
        let space = json!([{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }]);
        let study = json!({ "search_space": space });
        // Its answer may be that the database was busy for too long.
        while let Err(RestError::Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..
        }) = rest.post("/api/v1/studies", study.clone()).await
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
    let (rest, token) = ada(&mesh, "developer").await;
    let (busy, held) = in_the_way(&mesh, &rest).await;

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
    // As above, a workload may have a call in flight at any one moment.
    eventually("there is room again", || async {
        in_flight(&mesh).await == 0
    })
    .await;
    eventually("it is as before", || async {
        rest.get("/auth/me").await.is_ok()
    })
    .await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_their_client_leave_room_for_others() {
    const HELD: u64 = 20;
    let mesh = TestMesh::alone(narrow(), Clock::system()).await;
    let (rest, token) = ada(&mesh, "viewer").await;
    let bearer = format!("Bearer {token}");
    // Some send no request, others no end of it, and the last do not read their answer.
    let silent = connect(&mesh, "auth", "/client/silent", 1 << 16).await;
    let deaf = connect(&mesh, "auth", "/client/deaf", 0).await;
    let mut waiting = Vec::new();
    while (waiting.len() as u64) < HELD {
        let (to, body): (_, fn() -> Body) = match waiting.len() % 3 {
            0 => (&silent, || Body::new(Never)),
            1 => (&silent, beginning),
            _ => (&deaf, || message(b"")),
        };
        let (to, bearer) = (to.clone(), bearer.clone());
        let call = tokio::spawn(async move {
            let headers = [("authorization", bearer.as_str())];
            loop {
                let answer = send(&to, ME, &headers, body()).await;
                if fault::code_in(answer.headers()) != Some(Code::Unavailable) {
                    return answer.into_body().collect().await;
                }
            }
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

/// A call whose request comes in pieces, and what it is answered.
async fn held_back(
    to: SendRequest<Body>,
    token: String,
    pieces: tokio::sync::mpsc::Receiver<Bytes>,
) -> Response<Incoming> {
    let pieces = pieces_of(pieces).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    send(&to, ME, &headers, Body::new(StreamBody::new(pieces))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_held_back_is_shed_when_it_comes_at_a_bad_time() {
    let mesh = TestMesh::alone(narrow(), Clock::system()).await;
    let (rest, _) = ada(&mesh, "developer").await;
    let (lea, token) = user(&mesh, "lea", "viewer").await;
    let late = connect(&mesh, "auth", "/client/late", 1 << 16).await;
    let (more, held_back) = loop {
        let (more, pieces) = tokio::sync::mpsc::channel(1);
        let held_back = tokio::spawn(held_back(late.clone(), token.clone(), pieces));
        eventually("it has its place, or was shed for a workload", || async {
            held_back.is_finished() || places(&mesh, "auth", "calls").await == 1
        })
        .await;
        if !held_back.is_finished() {
            break (more, held_back);
        }
    };
    let (busy, held) = in_the_way(&mesh, &rest).await;
    more.send(Bytes::from_static(&[0; 5])).await.unwrap();
    drop(more);
    let answer = held_back.await.unwrap();
    assert!(answer.headers().contains_key("grpc-retry-pushback-ms"));
    assert_eq!(end(answer).await, Code::Unavailable);
    assert!(shed(&mesh, "all").await >= 1);
    drop(busy);
    held.await.expect("the one in flight is done");
    // What was shed is not used. What the same service counts later is known later.
    let (eve, _) = user(&mesh, "eve", "viewer").await;
    for who in [&lea, &eve] {
        let_in(async || who.get("/auth/me").await).await;
    }
    let calls = async |of: &Rest| {
        let own = let_in(async || of.get("/auth/usage").await).await;
        own["months"][0]["calls"].as_str().unwrap().to_owned()
    };
    eventually("eve's counts", || async { calls(&eve).await == "1" }).await;
    assert_eq!(calls(&lea).await, "1");
    mesh.mesh.stop().await;
}

/// What is sent into a channel.
fn pieces_of(mut of: tokio::sync::mpsc::Receiver<Bytes>) -> impl Stream<Item = Bytes> {
    futures_util::stream::poll_fn(move |cx| of.poll_recv(cx))
}
