//! What could not be stored is refused where it is asked for.

use serde_json::{Value, json};
use tars_tests::{TestMesh, governed::POLICY, refusal};

/// The fields that a refusal names.
fn fields(body: &Value) -> Vec<String> {
    let details = body["details"].as_array().into_iter().flatten();
    let violations = details.filter_map(|d| d["field_violations"].as_array());
    violations
        .flatten()
        .map(|v| v["field"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_and_a_training_whose_state_could_not_be_stored_are_refused() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let large = |steps: u64| {
        json!({
            "n_trials": 1,
            "steps": steps,
            "search_space": [{ "name": "buffer_size", "int": { "low": 1_000, "high": 10_000_000 } }],
        })
    };
    let (status, body) = refusal(developer.post("/api/v1/optimize", large(10_000_000)).await);
    assert_eq!(status, 400, "{body}");
    assert_eq!(fields(&body), ["hyperparameters[buffer_size]"], "{body}");
    assert!(body.to_string().contains("MiB"), "{body}");
    let studies = developer.get("/api/v1/studies").await.unwrap();
    assert_eq!(studies["studies"], json!([]), "nothing is left");
    // Its trials do not fill what they may have.
    let study = developer
        .post("/api/v1/optimize", large(1_000))
        .await
        .unwrap();
    assert!(study["optimization_id"].is_string(), "{study}");

    let reload = json!({ "hyperparameters": { "buffer_size": 10_000_000 } });
    let path = format!("{POLICY}/reload");
    developer.post(&path, reload).await.unwrap();
    let long = json!({ "steps": "10000000" });
    let (status, body) = refusal(developer.post(&format!("{POLICY}/train"), long).await);
    assert_eq!(status, 400, "{body}");
    assert_eq!(fields(&body), ["hyperparameters[buffer_size]"], "{body}");
    let runs = developer
        .get("/api/v1/orchestration/training")
        .await
        .unwrap();
    assert_eq!(runs["runs"], json!([]), "{runs}");
}
