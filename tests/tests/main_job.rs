//! The main job and its governance, through the front door.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use tars_tests::{
    TestMesh, eventually,
    governed::{POLICY, approve_and_apply, assessed, final_state, finished, proposed, study},
    reason, refusal,
};

#[path = "main_job/agents.rs"]
mod agents;
#[path = "main_job/ladder.rs"]
mod ladder;
#[path = "main_job/promotions.rs"]
mod promotions;
#[path = "main_job/sizes.rs"]
mod sizes;
#[path = "main_job/training.rs"]
mod training;

/// Waits until the metrics have a line; with replicas, until theirs add up to it.
async fn until_counted(mesh: &TestMesh, line: &str) {
    let (sample, expected) = line.rsplit_once(' ').unwrap();
    eventually(line, || async {
        let texts = mesh.metrics().await;
        let values = texts.iter().flat_map(|text| text.lines());
        let values = values.filter_map(|l| l.strip_prefix(sample)?.trim().parse::<u64>().ok());
        values.sum::<u64>().to_string() == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn search_propose_approve_apply_verify() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let before = developer.get(POLICY).await.unwrap()["agent"].clone();
    assert_eq!(
        (&before["version"], &before["weights_version"]),
        (&json!("1"), &json!("0"))
    );

    let study_id = study(&developer, 2).await;
    let ended = finished(&developer, &study_id).await;
    assert_eq!(ended["state"], "STUDY_STATE_COMPLETED", "{ended}");
    let trials = developer
        .get(&format!("/api/v1/studies/{study_id}/trials"))
        .await
        .unwrap();
    for trial in trials["trials"].as_array().unwrap() {
        assert_eq!(trial["state"], "TRIAL_STATE_COMPLETE");
        assert!(
            !trial["intermediate_values"].as_array().unwrap().is_empty(),
            "values were streamed"
        );
    }

    let proposal = proposed(&developer, &study_id).await;
    let id = proposal["update_id"].as_str().unwrap();
    assert_eq!(
        proposal["current_params"], before["hyperparameters"],
        "read from the live agent"
    );
    let pending = admin.get("/api/v1/sync/pending").await.unwrap();
    assert_eq!(pending["proposals"][0]["update_id"], id);

    let body = json!({ "update_id": id });
    let apply = format!("/api/v1/sync/apply/{id}");
    let (status, early) = refusal(admin.post(&apply, json!({})).await);
    assert_eq!((status, reason(&early).as_str()), (400, "WRONG_STATE"));
    assert_eq!(
        refusal(developer.post("/api/v1/sync/approve", body.clone()).await).0,
        403
    );
    let measured = assessed(&admin, id).await;
    assert_eq!(
        measured["assessment_state"], "ASSESSMENT_STATE_COMPLETED",
        "{measured}"
    );
    let approved = admin.post("/api/v1/sync/approve", body.clone()).await;
    let approved = approved.unwrap()["proposal"].clone();
    assert_eq!(approved["approved_without_assessment"], false);
    let (status, twice) = refusal(admin.post("/api/v1/sync/approve", body).await);
    assert_eq!((status, reason(&twice).as_str()), (400, "WRONG_STATE"));
    assert_eq!(refusal(developer.post(&apply, json!({})).await).0, 403);

    admin.post(&apply, json!({})).await.unwrap();
    let applied = final_state(&admin, id).await;
    assert_eq!(applied["state"], "PROPOSAL_STATE_COMPLETED", "{applied}");
    let v = &applied["verification"];
    assert!(v["improvement_low"].as_f64().unwrap() > 0.0, "{v}");
    let odd = |s: &Value| s.as_str().unwrap().parse::<u64>().unwrap() % 2 == 1;
    assert!(
        v["seeds"].as_array().unwrap().iter().all(odd),
        "searches use even seeds"
    );

    let after = developer.get(POLICY).await.unwrap()["agent"].clone();
    assert_eq!(after["version"], "2");
    for (name, value) in applied["new_params"].as_object().unwrap() {
        assert_eq!(&after["hyperparameters"][name], value, "{name}");
    }

    until_counted(&mesh, "proposals_ended_total{outcome=\"completed\"} 1").await;
    until_counted(&mesh, "trials_ended_total{outcome=\"complete\"} 2").await;

    // The whole story is in the audit list, and survives a restart with everything else.
    eventually("the audit list has it all", || async {
        let events = admin
            .get("/admin/audit/logs?service=hypersync&page_size=100")
            .await
            .unwrap();
        let kinds: Vec<&str> = events["events"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|e| e["event_type"].as_str())
            .collect();
        [
            "hypersync.proposed",
            "admin.hypersync.approve",
            "hypersync.applying",
            "hypersync.completed",
        ]
        .iter()
        .all(|k| kinds.contains(k))
    })
    .await;
    let mesh = mesh.restart().await;
    let admin = mesh.admin().await;
    assert_eq!(admin.get(POLICY).await.unwrap()["agent"], after);
    assert_eq!(
        final_state(&admin, id).await["state"],
        "PROPOSAL_STATE_COMPLETED"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_improve_is_rolled_back() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let before = admin.get(POLICY).await.unwrap()["agent"].clone();
    // A larger buffer than ever gets full changes nothing: on every seed both learn the same, so that
    // the difference is zero, and luck decides nothing.
    let body = json!({
        "n_trials": 1, "steps": "1000", "seed": "1", "sampler_type": "random",
        "search_space": [{ "name": "buffer_size", "int": { "low": "20000", "high": "30000" } }],
    });
    let study_id =
        developer.post("/api/v1/optimize", body).await.unwrap()["optimization_id"].clone();
    finished(&developer, study_id.as_str().unwrap()).await;
    let id = proposed(&developer, study_id.as_str().unwrap()).await["update_id"]
        .as_str()
        .unwrap()
        .to_owned();
    approve_and_apply(&admin, &id).await;
    let ended = final_state(&admin, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_ROLLED_BACK", "{ended}");
    assert_eq!(ended["verification"]["improvement"], 0.0, "{ended}");
    let after = admin.get(POLICY).await.unwrap()["agent"].clone();
    assert_eq!(after["hyperparameters"], before["hyperparameters"]);
    assert_eq!(after["version"], "3", "applied, then rolled back");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_eyes_see_through_keys_and_races_have_one_winner() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let second = mesh.user("second", "admin").await;
    let study_id = study(&admin, 1).await;
    finished(&admin, &study_id).await;
    let id = proposed(&admin, &study_id).await["update_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = json!({ "update_id": id, "reason": "looks good" });

    let (status, own) = refusal(admin.post("/api/v1/sync/approve", body.clone()).await);
    assert_eq!((status, reason(&own).as_str()), (403, "FOUR_EYES"));
    let key = admin
        .post("/auth/service-token", json!({ "service_name": "robot" }))
        .await
        .unwrap();
    let by_key = tars_proto::hypersync::v1::sync_service_client::SyncServiceClient::new(
        mesh.client("hypersync", "/client/robot"),
    );
    let mut request = tonic::Request::new(tars_proto::hypersync::v1::ApproveProposalRequest {
        update_id: id.clone(),
        ..Default::default()
    });
    let text = key["api_key"].as_str().unwrap();
    request
        .metadata_mut()
        .insert("x-api-key", text.parse().unwrap());
    let refused = by_key.clone().approve_proposal(request).await.unwrap_err();
    assert_eq!(
        tars_proto::fault::reason(&refused).unwrap(),
        "FOUR_EYES",
        "a key counts as its owner"
    );

    assessed(&admin, &id).await;
    let third = mesh.user("third", "admin").await;
    let reject = json!({ "update_id": id, "reason": "no" });
    let (a, b) = tokio::join!(
        second.post("/api/v1/sync/approve", body),
        third.post("/api/v1/sync/reject", reject)
    );
    assert!(a.is_ok() != b.is_ok(), "one winner: {a:?} {b:?}");
    let loser = if a.is_err() { refusal(a) } else { refusal(b) };
    assert!(
        ["WRONG_STATE", "CONFLICT"].contains(&reason(&loser.1).as_str()),
        "{loser:?}"
    );
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_is_cancelled_and_ask_tell_works_without_the_server() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let body = json!({ "n_trials": 500, "steps": "100000" });
    let long = developer.post("/api/v1/optimize", body).await.unwrap()["optimization_id"].clone();
    let path = format!("/api/v1/studies/{}", long.as_str().unwrap());
    let space = json!([{ "name": "x", "float": { "low": -1.0, "high": 1.0 } }]);
    // More studies than have room for their watchers; the one that runs is not forgotten for them.
    for name in ["first", "second", "third"] {
        let other = mesh.user(name, "developer").await;
        for _ in 0..45 {
            let body = json!({ "search_space": space, "n_trials": 1 });
            other.post("/api/v1/studies", body).await.unwrap();
        }
    }
    let cancelled = developer
        .post(&format!("{path}/cancel"), json!({}))
        .await
        .unwrap();
    assert_eq!(cancelled["study"]["state"], "STUDY_STATE_CANCELLED");
    eventually("its trials have ended", || async {
        let trials = developer.get(&format!("{path}/trials")).await.unwrap();
        trials["trials"]
            .as_array()
            .unwrap()
            .iter()
            .all(|t| t["state"] == "TRIAL_STATE_FAILED")
    })
    .await;

    let body = json!({ "search_space": space, "n_trials": 12, "seed": "3" });
    let own = developer.post("/api/v1/studies", body).await.unwrap()["study"].clone();
    let path = format!("/api/v1/studies/{}", own["study_id"].as_str().unwrap());
    for n in 0..12 {
        let trial = developer
            .post(&format!("{path}/ask"), json!({}))
            .await
            .unwrap()["trial"]
            .clone();
        assert_eq!(trial["number"], n);
        let x = trial["parameters"]["x"].as_f64().unwrap();
        let report = json!({ "step": "1", "value": -x * x });
        developer
            .post(&format!("{path}/trials/{n}/report"), report)
            .await
            .unwrap();
        let told = json!({ "state": "TRIAL_STATE_COMPLETE", "score": -x * x });
        developer
            .post(&format!("{path}/trials/{n}/tell"), told.clone())
            .await
            .unwrap();
        developer
            .post(&format!("{path}/trials/{n}/tell"), told)
            .await
            .expect("the same end twice is once");
        let other = json!({ "state": "TRIAL_STATE_PRUNED" });
        let (_, refused) = refusal(
            developer
                .post(&format!("{path}/trials/{n}/tell"), other)
                .await,
        );
        assert_eq!(reason(&refused), "TRIAL_ENDED");
    }
    let ended = developer.get(&path).await.unwrap()["study"].clone();
    assert_eq!(ended["state"], "STUDY_STATE_COMPLETED");
    assert_eq!(ended["n_completed_trials"], 12);
    let (_, full) = refusal(developer.post(&format!("{path}/ask"), json!({})).await);
    assert_eq!(reason(&full), "STUDY_ENDED");
    let (_, none) = refusal(
        developer
            .post(
                "/api/v1/sync/propose",
                json!({ "study_id": own["study_id"] }),
            )
            .await,
    );
    assert_eq!(reason(&none), "NO_AGENT");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_busy_for_a_while_ends_no_study() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let body = json!({ "n_trials": 6, "steps": "1000", "pruner_type": "none" });
    let id = developer.post("/api/v1/optimize", body).await.unwrap()["optimization_id"].clone();
    let held = tars_test_db::lock(mesh.dir.path(), "automl").await;
    // Held until others have waited for it in vain, twice.
    let space = json!([{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }]);
    for _ in 0..2 {
        let body = json!({ "search_space": space, "n_trials": 1 });
        let (status, busy) = refusal(developer.post("/api/v1/studies", body).await);
        assert!([503, 504].contains(&status), "{busy}");
    }
    let path = format!("/api/v1/studies/{}", id.as_str().unwrap());
    let waits = developer.get(&path).await.unwrap()["study"].clone();
    assert_eq!(waits["state"], "STUDY_STATE_RUNNING", "{waits}");
    drop(held);
    let ended = finished(&developer, id.as_str().unwrap()).await;
    assert_eq!(ended["state"], "STUDY_STATE_COMPLETED", "{ended}");
    assert_eq!(ended["n_completed_trials"], 6, "{ended}");
    mesh.mesh.stop().await;
}
