//! Who is refused by rate: when to come back, and limits that are replaced while a mesh runs.

use tars::rest::Rest;
use tars_runtime::clock::Clock;
use tars_tests::{TestMesh, config, eventually, reason, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn limits_answer_with_when_to_come_back() {
    let mut settings = config();
    settings.limits.auth_per_minute = 3;
    settings.limits.user_per_minute = 40;
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let admin = mesh.admin().await;
    for _ in 0..2 {
        assert_eq!(
            refusal(
                mesh.rest()
                    .login("nobody", "wrong password")
                    .await
                    .map(drop)
            )
            .0,
            401
        );
    }
    let (status, body) = refusal(mesh.rest().login("admin", "x").await.map(drop));
    assert_eq!((status, reason(&body).as_str()), (429, "RATE_LIMITED"));
    let retry = body["details"]
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["retry_delay"].is_string());
    assert!(retry.is_some(), "{body}");
    let mut refused = 0;
    for _ in 0..20 {
        if admin.get("/auth/me").await.is_err() {
            refused += 1;
        }
    }
    assert!(refused >= 9, "a burst is a quarter of the limit: {refused}");
    mesh.mesh.stop().await;
}

fn limit(name: &str, calls: u32) -> String {
    format!("[limit.{name}]\ncalls = {calls}\nwindow_seconds = 60\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_follow_their_file_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("limits.toml");
    let mut settings = config();
    settings.limits.file = Some(file.clone());
    std::fs::write(&file, limit("identity", 1000)).unwrap();
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let (admin, dev) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let is_refused = async |who: &Rest| {
        let answer = who.get("/auth/me").await;
        answer.is_err_and(|e| refusal::<()>(Err(e)).0 == 429)
    };
    assert!(!is_refused(&admin).await && !is_refused(&dev).await);
    std::fs::write(&file, limit("identity", 1)).unwrap();
    eventually("a lower limit is in force", || is_refused(&admin)).await;
    let own =
        "[[override]]\nuser = \"admin\"\nlimit = \"identity\"\ncalls = 5000\nwindow_seconds = 60\n";
    std::fs::write(&file, limit("identity", 1) + own).unwrap();
    eventually("one user has a limit of their own", || async {
        !is_refused(&admin).await
    })
    .await;
    assert!(is_refused(&dev).await, "what was spent is not forgotten");
    // A limit that could never apply is not taken, nor is anything beside it.
    let never =
        "[[override]]\nkey = \"0198c5b2d3e4\"\nlimit = \"auth\"\ncalls = 1\nwindow_seconds = 60\n";
    std::fs::write(&file, limit("identity", 1000) + never).unwrap();
    let observe = Rest::new(&mesh.mesh.ready.observe);
    let shows = async |text: &str| observe.text("/readyz").await.unwrap().contains(text);
    eventually("the mistake is shown", || {
        shows("the limits file is not usable")
    })
    .await;
    assert!(is_refused(&dev).await, "what was in force stays so");
    let nobody = never.replace("\"auth\"", "\"user\"");
    std::fs::write(&file, limit("identity", 1000) + &nobody).unwrap();
    eventually("it is mended", || async { !is_refused(&dev).await }).await;
    let unknown = "there is no key 0198c5b2d3e4, who has a limit of their own";
    eventually("a key that does not exist is shown", || shows(unknown)).await;
    mesh.mesh.stop().await;
}
