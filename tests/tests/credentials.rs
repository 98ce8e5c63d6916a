//! Credentials as administrators and their owners change them, over real sockets: what each process
//! believes afterwards, and whose session goes on.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{PASSWORD, TestMesh, fleet::services_over_tls, races::Races, reason, refusal};

const ROUNDS: usize = 100;
const NEW: &str = "another password of tests";

#[tokio::test(flavor = "multi_thread")]
async fn racing_administrators_leave_every_service_with_what_the_database_says() {
    let mesh = TestMesh::start().await;
    let services: Vec<_> = services_over_tls()
        .map(|s| (s, mesh.client(s, "/client/racer")))
        .collect();
    let races = Races::new(mesh.rest(), mesh.admin().await, services);
    let mut races = races.await.unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..ROUNDS {
        outcomes.push(races.round().await.unwrap());
    }
    let count =
        |of: fn(&tars_tests::races::Outcome) -> bool| outcomes.iter().filter(|o| of(o)).count();
    assert!(
        count(|o| o.revoked) >= ROUNDS / 2,
        "two of three rounds revoke"
    );
    mesh.mesh.stop().await;
}

async fn login(mesh: &TestMesh, name: &str, password: &str) -> (Rest, String) {
    let body = json!({ "username": name, "password": password });
    let answer = mesh.rest().post("/auth/login", body).await.unwrap();
    let text = |field: &str| answer[field].as_str().unwrap().to_owned();
    (
        mesh.rest().with_token(&text("access_token")),
        text("refresh_token"),
    )
}

async fn refresh(mesh: &TestMesh, token: &str) -> Result<Value, tars::rest::RestError> {
    let body = json!({ "refresh_token": token });
    mesh.rest().post("/auth/refresh", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_every_session_but_the_one_that_changed_it() {
    let mesh = TestMesh::start().await;
    mesh.user("dev", "developer").await;
    let (mine, my_refresh) = login(&mesh, "dev", PASSWORD).await;
    let (other, other_refresh) = login(&mesh, "dev", PASSWORD).await;
    for rest in [&mine, &other] {
        rest.get("/api/v1/studies").await.unwrap();
    }
    let wrong = json!({ "current_password": "not this one", "new_password": NEW });
    assert_eq!(refusal(mine.post("/auth/password", wrong).await).0, 401);
    let body = json!({ "current_password": PASSWORD, "new_password": NEW });
    mine.post("/auth/password", body.clone()).await.unwrap();
    // In Auth at once, elsewhere a moment later.
    assert_eq!(refusal(other.get("/auth/me").await).0, 401);
    tars_tests::eventually("the other session has ended everywhere", || async {
        other.get("/api/v1/studies").await.is_err()
            && other.get("/api/v1/sync/pending").await.is_err()
    })
    .await;
    for path in ["/auth/me", "/api/v1/studies", "/api/v1/sync/pending"] {
        mine.get(path).await.unwrap();
    }
    assert_eq!(refusal(refresh(&mesh, &other_refresh).await).0, 401);
    refresh(&mesh, &my_refresh).await.unwrap();
    assert!(mesh.rest().login("dev", PASSWORD).await.is_err());
    mesh.rest().login("dev", NEW).await.unwrap();
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_changes_nothing_ends_no_session() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let dev = mesh.user("dev", "developer").await;
    for _ in 0..2 {
        let enabled = admin
            .post("/admin/users/dev/enable", json!({}))
            .await
            .unwrap();
        assert_eq!(enabled["user"]["disabled"], false);
        let roles = json!({ "roles": ["developer"] });
        admin.put("/admin/users/dev/roles", roles).await.unwrap();
        for path in ["/auth/me", "/api/v1/studies", "/api/v1/sync/pending"] {
            dev.get(path).await.unwrap();
        }
    }
    admin
        .post("/admin/users/dev/disable", json!({}))
        .await
        .unwrap();
    assert_eq!(refusal(dev.get("/auth/me").await).0, 401);
    admin
        .post("/admin/users/dev/enable", json!({}))
        .await
        .unwrap();
    assert_eq!(
        refusal(dev.get("/auth/me").await).0,
        401,
        "old sessions stay ended"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_is_refused_where_absence_means_a_default() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    for (path, body) in [
        (
            "/admin/api-keys",
            json!({ "service_name": "x", "expires_in_days": 0 }),
        ),
        (
            "/admin/join-tokens",
            json!({ "path": "/client/x", "ttl_seconds": 0 }),
        ),
    ] {
        let (status, answer) = refusal(admin.post(path, body).await);
        assert_eq!(
            (status, reason(&answer).as_str()),
            (400, "INVALID_FIELD"),
            "{answer}"
        );
    }
    let token = json!({ "path": "/client/x" });
    let made = admin.post("/admin/join-tokens", token).await.unwrap();
    assert!(made["expires_at"].is_string(), "{made}");
    let key = json!({ "service_name": "x", "scopes": [] });
    admin.post("/admin/api-keys", key).await.unwrap();
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_too_long_is_refused_with_the_field() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let password = "p".repeat(100_000);
    for (path, body) in [
        (
            "/auth/login",
            json!({ "username": "x", "password": password }),
        ),
        (
            "/admin/users",
            json!({ "username": "x", "password": password, "roles": ["viewer"] }),
        ),
        (
            "/admin/api-keys",
            json!({ "service_name": password, "scopes": [] }),
        ),
    ] {
        let (status, answer) = refusal(admin.post(path, body).await);
        assert_eq!(
            (status, reason(&answer).as_str()),
            (400, "INVALID_FIELD"),
            "{path}: {answer}"
        );
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_cannot_log_its_owner_out() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let asked = json!({ "service_name": "x", "scopes": ["session.self"] });
    let made = admin.post("/admin/api-keys", asked).await.unwrap();
    let by_key = mesh.rest().with_key(made["api_key"].as_str().unwrap());
    let (status, answer) = refusal(by_key.post("/auth/logout", json!({})).await);
    assert_eq!(
        (status, reason(&answer).as_str()),
        (403, "EXCEEDS_CALLER"),
        "{answer}"
    );
    admin.get("/auth/me").await.unwrap();
    mesh.mesh.stop().await;
}
