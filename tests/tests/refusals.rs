//! Who is not let in behind the handshake: by peer policy, by credential, by limit.

#![allow(clippy::unwrap_used)]

#[path = "refusals/limits.rs"]
mod limits;

use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;
use tars::rest::Rest;
use tars_certs::{Authority, ca::Lifetimes};
use tars_interceptors::client::{Credentials, outgoing};
use tars_proto::auth::v1::{
    GetMeRequest, LoginRequest, WatchCredentialsRequest, auth_service_client::AuthServiceClient,
    credential_service_client::CredentialServiceClient,
};
use tars_runtime::{clock::Clock, config::Limits};
use tars_tests::{
    PASSWORD, TestMesh, config, eventually,
    fleet::services_over_tls,
    issue,
    raw::{RawCall, read_method},
    reason, refusal,
};
use tonic::{Code, Request};

const MINUTES: Duration = Duration::from_secs(60);

/// A mesh whose wall can be set, with the limits of the defaults, half an hour old.
async fn settable() -> (TestMesh, Clock) {
    let clock = Clock::settable();
    let mut settings = config();
    settings.limits = Limits::default();
    let mesh = TestMesh::alone(settings, clock.clone()).await;
    clock.step_forward(30 * MINUTES);
    (mesh, clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_refuses_nobody_who_was_let_in() {
    let (mesh, clock) = settable().await;
    let developer = mesh.user("dev", "developer").await;
    let state = "/api/v1/orchestration/agents/state";
    let calls = |n: usize| {
        let developer = developer.clone();
        async move {
            for _ in 0..n {
                developer.get(state).await.unwrap();
            }
        }
    };
    calls(60).await;
    clock.step_back(10 * MINUTES);
    calls(20).await;
    let reload = json!({ "hyperparameters": { "gamma": 0.97 } });
    let path = "/api/v1/orchestration/agents/policy/reload";
    developer.post(path, reload).await.unwrap();
    mesh.rest().login("dev", PASSWORD).await.unwrap();
    let operator = mesh.client("orchestration", "/user/ada");
    let mut health = tars_proto::grpc::health::v1::health_client::HealthClient::new(operator);
    let whole = tars_proto::grpc::health::v1::HealthCheckRequest::default();
    health.check(whole).await.unwrap();
    clock.step_forward(12 * MINUTES);
    calls(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_lets_in_nobody_who_is_refused() {
    let (mesh, clock) = settable().await;
    let guess = || async {
        let answer = mesh.rest().login("nobody", "guess").await.map(drop);
        let (status, body) = refusal(answer);
        (status, reason(&body))
    };
    let mut guesses = 0;
    let refused = loop {
        let (status, why) = guess().await;
        if status == 429 {
            break why;
        }
        guesses += 1;
        assert!(guesses <= 10, "ten a minute");
    };
    for step in [Clock::step_forward, Clock::step_back, Clock::step_back] {
        step(&clock, 10 * MINUTES);
        assert_eq!(guess().await, (429, refused.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_does_not_outlive_its_certificates_on_a_clock_that_is_set() {
    let (mesh, clock) = settable().await;
    let mut client = AuthServiceClient::new(mesh.client("auth", "/user/ada"));
    let login = LoginRequest {
        username: "admin".into(),
        password: "x".into(),
    };
    client.login(login).await.unwrap_err();
    let open = || {
        let page = mesh.mesh.process().connections();
        page.to_string().contains("/user/ada")
    };
    assert!(open());
    clock.step_forward(60 * MINUTES);
    eventually("it is closed", || async { !open() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_authority_with_the_wrong_id_grants_nothing() {
    let mesh = TestMesh::start().await;
    // Its class is unknown: it is let in, and denied everything.
    let nobody = AuthServiceClient::new(mesh.client("auth", "/nobody"));
    let login = LoginRequest {
        username: "admin".into(),
        password: "x".into(),
    };
    let denied = nobody.clone().login(login).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    // A person's certificate is no workload's.
    let mut operator = CredentialServiceClient::new(mesh.client("auth", "/user/ada"));
    let denied = operator
        .watch_credentials(WatchCredentialsRequest { after_sequence: 0 })
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    // A client that means another workload does not talk to this one.
    let options = tars_mesh::ChannelOptions::alone(
        &mesh.target("auth"),
        "spiffe://tars.local/automl".parse().unwrap(),
        mesh.identity("/client/x"),
        Clock::system(),
    );
    let channel = tars_mesh::Channel::new(options).unwrap();
    let mut misled = AuthServiceClient::new(outgoing(channel, Credentials::Own));
    let refused = misled.get_me(GetMeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("other_id"), "{refused:?}");
    // Nor does one whose identity is of another mesh.
    let dir = tempfile::tempdir().unwrap();
    let other = Authority::init(
        dir.path(),
        "tars.local",
        Lifetimes::default(),
        Clock::system().now(),
    )
    .unwrap();
    let mut foreign = AuthServiceClient::new(outgoing(
        mesh.channel_as("auth", issue(&other, "/client/x")),
        Credentials::Own,
    ));
    assert_eq!(
        foreign.get_me(GetMeRequest {}).await.unwrap_err().code(),
        Code::Unavailable
    );
    mesh.mesh.stop().await;
}

fn with(name: &'static str, value: &str) -> Request<GetMeRequest> {
    let mut request = Request::new(GetMeRequest {});
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_refused_without_a_hint_and_headers_make_nobody() {
    let mesh = TestMesh::start().await;
    mesh.user("ada", "viewer").await;
    let mut client = AuthServiceClient::new(mesh.client("auth", "/client/test"));
    let login = LoginRequest {
        username: "ada".into(),
        password: PASSWORD.into(),
    };
    let token = client.login(login).await.unwrap().into_inner().access_token;
    let bearer = format!("Bearer {token}");
    assert_eq!(
        client
            .get_me(with("authorization", &bearer))
            .await
            .unwrap()
            .get_ref()
            .username,
        "ada"
    );

    let (head, rest) = token.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let forged = [
        String::new(),
        "Bearer".into(),
        "Bearer x".into(),
        format!("Basic {token}"),
        format!("Bearer {head}.{body}."),
        format!(
            "Bearer {head}.{body}.{}",
            signature.replace(&signature[..4], "AAAA")
        ),
        format!("Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiYWJjZGVmZ2gifQ.{body}."),
        format!("Bearer {token}, {bearer}"),
        format!("Bearer {}", "x".repeat(5000)),
    ];
    let mut answers = Vec::new();
    for value in &forged {
        let refused = client
            .get_me(with("authorization", value))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{value}");
        answers.push(refused.message().to_owned());
    }
    let missing = client.get_me(GetMeRequest {}).await.unwrap_err();
    answers.push(missing.message().to_owned());
    answers.push(
        client
            .get_me(with("x-api-key", "tars_live_svc_x"))
            .await
            .unwrap_err()
            .message()
            .to_owned(),
    );
    answers.dedup();
    assert_eq!(
        answers.len(),
        1,
        "one answer for every refusal: {answers:?}"
    );

    let mut both = with("authorization", &bearer);
    both.metadata_mut()
        .insert("x-api-key", "k".parse().unwrap());
    assert_eq!(
        client.get_me(both).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut twice = with("authorization", &bearer);
    twice
        .metadata_mut()
        .append("authorization", bearer.parse().unwrap());
    assert_eq!(
        client.get_me(twice).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    // Headers that claim an identity are nobody's.
    for name in [
        "x-tars-principal",
        "x-user-id",
        "x-forwarded-client-cert",
        "x-tars-client-addr",
    ] {
        let refused = client.get_me(with(name, "admin")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{name}");
    }
    mesh.mesh.stop().await;
}

/// Follows a study's events until the stream ends; returns once it is open, which its first event
/// shows.
async fn open_stream(
    rest: &tars::rest::Rest,
    study: &str,
) -> tokio::task::JoinHandle<Result<(), tars::rest::RestError>> {
    let opened = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (watching, seen) = (rest.clone(), std::sync::Arc::clone(&opened));
    let path = format!("/api/v1/studies/{study}/events");
    let stream = tokio::spawn(async move {
        let each = |_: &serde_json::Value| {
            seen.store(true, std::sync::atomic::Ordering::Relaxed);
            true
        };
        watching.follow(&path, each).await
    });
    let ask = format!("/api/v1/studies/{study}/ask");
    eventually("the stream is open", || async {
        rest.post(&ask, json!({})).await.unwrap();
        opened.load(std::sync::atomic::Ordering::Relaxed)
    })
    .await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_credential_is_refused_by_every_service_within_a_second() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let developer = mesh.user("dev", "developer").await;
    let key = admin
        .post("/auth/service-token", json!({ "service_name": "robot" }))
        .await
        .unwrap();
    let text = key["api_key"].as_str().unwrap().to_owned();
    let read = |service: &'static str| {
        let channel = mesh.client(service, "/client/robot");
        let text = text.clone();
        async move {
            let call = RawCall {
                method: read_method(service),
                header: Some(("x-api-key", &text)),
                message: Bytes::new(),
                timeout: Duration::from_secs(5),
            };
            let refused = call.send(channel).await.err();
            refused.map_or(Code::Ok, |status| status.code())
        }
    };
    for service in services_over_tls() {
        eventually("the new key works", || async {
            read(service).await == Code::Ok
        })
        .await;
    }
    let path = format!("/admin/api-keys/{}/revoke", key["key_id"].as_str().unwrap());
    admin
        .post(&path, json!({ "reason": "lost" }))
        .await
        .unwrap();
    let revoked = tokio::time::Instant::now();
    for service in services_over_tls() {
        eventually("the revoked key is refused", || async {
            read(service).await == Code::Unauthenticated
        })
        .await;
    }
    // The aim is one second; the bound here only catches "never".
    println!("revoked everywhere after {:?}", revoked.elapsed());

    assert!(developer.get("/api/v1/studies").await.is_ok());
    // A stream that is open ends with the credential that opened it.
    let body = json!({ "search_space": [{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }] });
    let study = developer.post("/api/v1/studies", body).await.unwrap()["study"]["study_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let stream = open_stream(&developer, &study).await;
    admin
        .post("/admin/users/dev/disable", json!({}))
        .await
        .unwrap();
    for path in [
        "/auth/me",
        "/api/v1/studies",
        "/api/v1/sync/pending",
        "/api/v1/orchestration/agents/state",
    ] {
        eventually("a disabled user is refused", || async {
            matches!(&developer.get(path).await, Err(tars::rest::RestError::Refused { status, .. }) if status.as_u16() == 401)
        })
        .await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), stream)
        .await
        .unwrap()
        .unwrap();
    assert!(ended.unwrap_err().to_string().contains("no longer valid"));
    let again = mesh.rest().login("dev", PASSWORD).await;
    assert_eq!(refusal(again.map(drop)).0, 401);
    let last = refusal(admin.post("/admin/users/admin/disable", json!({})).await);
    assert_eq!((last.0, reason(&last.1).as_str()), (400, "LAST_ADMIN"));
    mesh.mesh.stop().await;
}

/// A caller's records of calls, newest first.
async fn recorded(admin: &Rest, kind: &str, caller: &str) -> Vec<Value> {
    let path = format!("/admin/audit/logs?page_size=500&event_type={kind}&caller={caller}");
    let listed = admin.get(&path).await.unwrap();
    listed["events"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_refusals_do_not_fill_the_audit_list() {
    const DENIED: &str = "authz.access.denied";
    let mesh = TestMesh::alone(config(), Clock::system()).await;
    let (viewer, developer) = (
        mesh.user("eve", "viewer").await,
        mesh.user("dev", "developer").await,
    );
    let agent = "/api/v1/orchestration/agents/policy";
    let reload = json!({ "hyperparameters": { "gamma": 0.97 } });
    for _ in 0..100 {
        let refused = viewer
            .post(&format!("{agent}/reload"), reload.clone())
            .await;
        assert_eq!(refusal(refused).0, 403);
    }
    // One for which nothing may be done twice, and one that is out of bounds.
    for _ in 0..20 {
        let body = json!({ "change_id": "none", "reason": "a test" });
        let denied = developer.post(&format!("{agent}/release"), body).await;
        assert_eq!(refusal(denied).0, 403);
        let wrong = json!({ "hyperparameters": { "gamma": -7 } });
        let wrong = developer.post(&format!("{agent}/reload"), wrong).await;
        assert_eq!(refusal(wrong).0, 400);
        let done = developer
            .post(&format!("{agent}/reload"), reload.clone())
            .await;
        done.unwrap();
    }
    let admin = mesh.admin().await;
    eventually("the first is there at once", || async {
        recorded(&admin, DENIED, "user:eve").await.len() == 1
    })
    .await;
    // What a change did is recorded once a change, and so is the call.
    eventually("every change is there", || async {
        let changes = recorded(&admin, "admin.agent.reload", "user:dev").await;
        let calls = recorded(&admin, "call", "user:dev").await;
        let done = calls.iter().filter(|c| c["result"] == "OK").count();
        let refused = calls.iter().filter(|c| c["result"] == "INVALID_ARGUMENT");
        changes.len() == 20 && done == 20 && refused.count() == 1
    })
    .await;

    // Those that followed are counted, at the latest when the process stops.
    let mesh = mesh.restart().await;
    let admin = mesh.admin().await;
    for (kind, caller, method, times) in [
        (DENIED, "user:eve", "ReloadAgent", 100),
        (DENIED, "user:dev", "ReleaseAgent", 20),
        ("call", "user:dev", "ReloadAgent", 20),
    ] {
        eventually("the others are counted", || async {
            let all = recorded(&admin, kind, caller).await;
            let refused: Vec<_> = all.iter().filter(|r| r["result"] != "OK").collect();
            let count = |r: &Value| match &r["details"]["count"] {
                Value::String(n) => n.parse::<u64>().unwrap(),
                _ => 1,
            };
            let ours = |r: &&Value| r["method"].as_str().unwrap().ends_with(method);
            let owned = |r: &&Value| r["details"]["owner"].is_string();
            assert!(refused.len() <= 5 && refused.iter().all(|r| ours(r) && owned(r)));
            refused.iter().map(|r| count(r)).sum::<u64>() == times
        })
        .await;
    }
    mesh.mesh.stop().await;
}
