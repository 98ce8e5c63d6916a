//! A mesh that has more to do than it can.

use super::*;
use tars_proto::auth::v1::LogoutRequest;
use tars_runtime::config::Overload;
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

async fn shed(mesh: &TestMesh, tier: &str) -> u64 {
    metric(mesh, &format!("overload_shed_total{{tier=\"{tier}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_mesh_sheds_calls_with_a_time_and_answers_what_is_vital() {
    let mesh = TestMesh::alone(narrow(), Clock::system()).await;
    let rest = mesh.user("ada", "viewer").await;
    let token = token(&mesh, "ada").await;
    // A call whose request does not come is in flight.
    let holder = connect(&mesh, "automl", "/client/holder", 1 << 16).await;
    let bearer = format!("Bearer {token}");
    let held = tokio::spawn(async move {
        let path = "/tars.automl.v1.StudyService/ListStudies";
        let headers = [("authorization", bearer.as_str())];
        send(&holder, path, &headers, Body::new(Never)).await
    });
    eventually("the call is in flight", || async {
        metric(&mesh, "overload_in_flight").await == 1
    })
    .await;

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
        code(answer.headers()),
        Some(Code::Unavailable),
        "before it is looked at"
    );
    let (http, body) = refusal(rest.get("/auth/me").await);
    assert_eq!(
        (http, reason(&body).as_str()),
        (503, "OVERLOADED"),
        "never 429"
    );
    assert!(shed(&mesh, "entry").await >= 3);

    let health = HealthClient::new(mesh.client("auth", "/client/x"));
    let checked = health.clone().check(HealthCheckRequest::default()).await;
    assert_eq!(checked.unwrap().get_ref().status(), ServingStatus::Serving);
    let mut logout = tonic::Request::new(LogoutRequest::default());
    let bearer = format!("Bearer {token}").parse().unwrap();
    logout.metadata_mut().insert("authorization", bearer);
    auth.logout(logout)
        .await
        .expect("who wants to leave may leave");

    held.abort();
    eventually("there is room again", || async {
        metric(&mesh, "overload_in_flight").await == 0
    })
    .await;
    rest.get("/auth/me").await.expect("as before");
    mesh.mesh.stop().await;
}
