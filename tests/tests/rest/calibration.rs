//! The calibration of the mesh's model to real load: what is said of it, and when.

use serde_json::Value;
use tars::rest::Rest;
use tars_runtime::clock::Clock;
use tars_tests::{TestMesh, config, eventually, reason, refusal};
use tokio::task::JoinSet;

const LATEST: &str = "/api/v1/orchestration/calibration";
const ALL: &str = "/api/v1/orchestration/calibrations";
const UNCALIBRATED: &str = "CALIBRATION_STATE_UNCALIBRATED";

/// 64-bit numbers are texts in JSON.
fn count(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

async fn latest(rest: &Rest) -> Value {
    rest.get(LATEST).await.unwrap()["latest"].take()
}

/// Calls from several callers at once, until the set is dropped.
fn load(rest: &Rest) -> JoinSet<()> {
    let mut calls = JoinSet::new();
    for _ in 0..4 {
        let rest = rest.clone();
        calls.spawn(async move {
            loop {
                let listed = rest.get("/api/v1/orchestration/environments").await;
                listed.unwrap();
            }
        });
    }
    calls
}

fn parameter<'a>(calibration: &'a Value, name: &str) -> &'a Value {
    let mut all = calibration["parameters"].as_array().unwrap().iter();
    let found = all.find(|parameter| parameter["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {calibration}"))
}

fn check_shipped(shipped: &Value) {
    assert_eq!(shipped["name"], "shipped");
    assert_eq!(shipped["state"], "CALIBRATION_STATE_ASSUMED");
    let mut parameters = shipped["parameters"].as_array().unwrap().iter();
    assert!(parameters.all(|parameter| parameter["fitted"] == false));
}

/// Whether this machine's times fit the model is not for a test to say; that the verdict agrees with what
/// was found is.
fn check_fitted(fitted: &Value) {
    assert!(count(&fitted["calls"]) >= 1_000 && count(&fitted["tested_calls"]) >= 100);
    let errors = fitted["errors"].as_object().unwrap();
    assert_eq!(errors.len(), 4, "{errors:?}");
    let time = parameter(fitted, "orchestration.service_time");
    let seconds = time["value"].as_f64().unwrap();
    assert!(
        time["fitted"] == true && seconds > 0.0 && seconds < 10.0,
        "{time}"
    );
    let rate = parameter(fitted, "caller_1.rate");
    assert!(rate["value"].as_f64().unwrap() > 1.0, "{rate}");
    assert_eq!(parameter(fitted, "changes.available")["fitted"], false);
    let uncalibrated = fitted["state"] == UNCALIBRATED;
    let reason = fitted["reason"].as_str().unwrap();
    assert_eq!(
        reason.contains("95th percentile of the errors") || reason.contains("median error"),
        uncalibrated,
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_calibrated_to_the_calls_that_are_served_once_there_are_enough() {
    let mut settings = config();
    settings.orchestration.calibration_seconds = 2;
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let developer = mesh.user("dev", "developer").await;
    check_shipped(&developer.get(LATEST).await.unwrap()["shipped"]);
    eventually("an idle mesh is uncalibrated", || async {
        latest(&developer).await["state"] == UNCALIBRATED
    })
    .await;
    let idle = latest(&developer).await;
    assert!(
        idle["reason"]
            .as_str()
            .unwrap()
            .starts_with("too few calls"),
        "{idle}"
    );
    assert!(idle["errors"].is_null() && idle["parameters"].as_array().unwrap().is_empty());

    let calls = load(&developer);
    eventually("there are enough calls to fit to", || async {
        latest(&developer).await["errors"].is_object()
    })
    .await;
    drop(calls);
    let page = developer
        .get(&format!("{ALL}?page_size=500"))
        .await
        .unwrap();
    let all = page["calibrations"].as_array().unwrap();
    assert_eq!(
        all.last().unwrap()["name"],
        "calls-1",
        "the newest are first"
    );
    check_fitted(all.iter().find(|c| c["errors"].is_object()).unwrap());

    let anybody = refusal(mesh.rest().get(LATEST).await);
    assert_eq!(anybody.0, 401, "{anybody:?}");
    for query in ["page_size=501", "page_token=x"] {
        let (status, body) = refusal(developer.get(&format!("{ALL}?{query}")).await);
        assert_eq!(status, 400, "{query}: {}", reason(&body));
    }
    mesh.mesh.stop().await;
}
