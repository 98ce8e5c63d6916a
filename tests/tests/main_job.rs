//! The main job and its governance, through the front door.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tars::rest::Rest;
use tars_tests::{
    TestMesh, eventually,
    governed::{POLICY, approve_and_apply, assessed, final_state, finished, proposed, study},
    reason, refusal,
};

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
    for _ in 0..130 {
        let body = json!({ "search_space": space, "n_trials": 1 });
        developer.post("/api/v1/studies", body).await.unwrap();
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

/// Each agent of the mesh with the width of what it observes.
const FOUR: [(&str, usize); 4] = [
    ("policy", 32),
    ("consensus", 16),
    ("ethical", 24),
    ("resource", 20),
];

#[tokio::test(flavor = "multi_thread")]
async fn four_agents_of_the_mesh_learn_act_together_and_are_searched() {
    let mut config = tars_tests::config();
    config.orchestration.environment = "mesh".to_owned();
    let mesh = TestMesh::with(config).await;
    let developer = mesh.user("dev", "developer").await;
    for (agent, width) in FOUR {
        let path = format!("/api/v1/orchestration/agents/{agent}");
        let seen = developer.get(&path).await.unwrap()["agent"].clone();
        let names = seen["observation_names"].as_array().unwrap();
        assert_eq!((&seen["environment"], names.len()), (&json!("mesh"), width));
        let body = json!({ "steps": "3000", "seed": "1" });
        let run = developer
            .post(&format!("{path}/train"), body)
            .await
            .unwrap();
        let run = run["run"]["run_id"].as_str().unwrap();
        let (mut learned, mut ended) = (false, Value::Null);
        let events = format!("/api/v1/orchestration/training/{run}/events");
        let followed = developer.follow(&events, |item| {
            let measured = ["loss", "q", "entropy", "value_loss"];
            learned |= measured
                .iter()
                .any(|name| item["progress"][name].is_number());
            ended = item["ended"].clone();
            true
        });
        followed.await.unwrap();
        assert_eq!(ended["state"], "TRAINING_STATE_COMPLETED", "{ended}");
        assert!(learned, "gradient steps were measured");
    }

    let step = "/api/v1/orchestration/step";
    let states = FOUR.map(|(agent, width)| {
        (
            format!("{agent}_state"),
            json!({ "state_vector": vec![0.25; width] }),
        )
    });
    let states = Value::Object(states.into_iter().collect());
    let acted = developer.post(step, states.clone()).await.unwrap();
    for (agent, choices) in [("policy", 10), ("consensus", 5), ("ethical", 8)] {
        let action = &acted["agent_actions"][agent];
        assert!(action["action"].as_u64().unwrap() < choices, "{acted}");
        assert!(!action["action_name"].as_str().unwrap().is_empty());
    }
    let share = &acted["agent_actions"]["resource"]["continuous_action"][0];
    assert!((0.0..=1.0).contains(&share.as_f64().unwrap()), "{acted}");
    let resolved = &acted["resolved_actions"]["resource"]["continuous_action"][0];
    let share = resolved.as_f64().unwrap();
    assert!(share <= 0.95, "no more than is allowed: {acted}");
    let mut narrow = states;
    narrow["resource_state"]["state_vector"] = json!([0.5]);
    assert_eq!(refusal(developer.post(step, narrow).await).0, 400);

    let search = json!({ "agent_id": "ethical", "n_trials": 2, "steps": "2000", "seed": "5", "pruner_type": "none" });
    let answer = developer.post("/api/v1/optimize", search).await.unwrap();
    let id = answer["optimization_id"].as_str().unwrap();
    let ended = finished(&developer, id).await;
    assert_eq!(ended["state"], "STUDY_STATE_COMPLETED", "{ended}");
    let proposal = proposed(&developer, id).await;
    assert_eq!(proposal["agent_id"], "ethical");
    let proposal = assessed(&developer, proposal["update_id"].as_str().unwrap()).await;
    assert_eq!(proposal["assessment_state"], "ASSESSMENT_STATE_COMPLETED");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_train_reload_act_and_refuse() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let step = "/api/v1/orchestration/step";
    let state =
        json!({ "policy_state": { "agent_type": "dqn", "state_vector": [0.0, 0.1, 0.02, -0.1] } });
    let (status, untrained) = refusal(developer.post(step, state.clone()).await);
    assert_eq!((status, reason(&untrained).as_str()), (400, "UNTRAINED"));

    let run = developer
        .post(
            &format!("{POLICY}/train"),
            json!({ "steps": "200000", "seed": "1" }),
        )
        .await
        .unwrap();
    let run = format!(
        "/api/v1/orchestration/training/{}",
        run["run"]["run_id"].as_str().unwrap()
    );
    let (_, busy) = refusal(developer.post(&format!("{POLICY}/train"), json!({})).await);
    assert_eq!(reason(&busy), "TRAINING_RUNS");
    // A reload reaches the running learner.
    let reload = json!({ "hyperparameters": { "epsilon_decay": 0.9, "tau": 1 }, "reason": "test", "expected_version": "1" });
    let live = developer
        .post(&format!("{POLICY}/reload"), reload.clone())
        .await
        .unwrap();
    assert_eq!(
        (&live["version"], &live["updated_config"]["epsilon_decay"]),
        (&json!("2"), &json!(0.9))
    );
    let (status, stale) = refusal(developer.post(&format!("{POLICY}/reload"), reload).await);
    assert_eq!((status, reason(&stale).as_str()), (409, "VERSION_CHANGED"));
    developer
        .follow(&format!("{run}/events"), |item| {
            item["progress"]["version"] != "2"
        })
        .await
        .expect("the learner follows version 2");
    let cancelled = developer
        .post(&format!("{run}/cancel"), json!({}))
        .await
        .unwrap();
    assert_eq!(cancelled["run"]["state"], "TRAINING_STATE_CANCELLED");

    let short = developer
        .post(&format!("{POLICY}/train"), json!({ "steps": "1000" }))
        .await
        .unwrap();
    let short = format!(
        "/api/v1/orchestration/training/{}",
        short["run"]["run_id"].as_str().unwrap()
    );
    let mut sequences = Vec::new();
    developer
        .follow(&format!("{short}/events"), |item| {
            sequences.push(item["sequence"].as_str().unwrap().parse::<u64>().unwrap());
            true
        })
        .await
        .unwrap();
    assert!(sequences.windows(2).all(|w| w[1] == w[0] + 1) && sequences[0] == 1);
    let mut resumed = Vec::new();
    developer
        .follow(&format!("{short}/events?after_sequence=3"), |item| {
            resumed.push(item["sequence"].as_str().unwrap().parse::<u64>().unwrap());
            true
        })
        .await
        .unwrap();
    assert_eq!(resumed, sequences[3..]);

    for outcome in ["cancelled", "completed"] {
        let line = format!("training_runs_ended_total{{outcome=\"{outcome}\"}} 1");
        until_counted(&mesh, &line).await;
    }

    let acted = developer.post(step, state).await.unwrap();
    let action = &acted["agent_actions"]["policy"];
    assert!(
        ["push_left", "push_right"].contains(&action["action_name"].as_str().unwrap()),
        "{acted}"
    );
    for (body, expected) in [
        (json!({}), 400),
        (json!({ "policy_state": { "state_vector": [1, 2] } }), 400),
        (
            json!({ "policy_state": { "agent_type": "ppo", "state_vector": [0, 0, 0, 0] } }),
            400,
        ),
        (json!({ "ethical_state": { "state_vector": [0] } }), 400),
        (json!({ "resource_state": { "state_vector": [0] } }), 501),
    ] {
        assert_eq!(
            refusal(developer.post(step, body.clone()).await).0,
            expected,
            "{body}"
        );
    }
    for bad in [
        json!({ "hyperparameters": { "gamma": -7 } }),
        json!({ "hyperparameters": { "learning_rate": "99999" } }),
        json!({ "hyperparameters": { "unknown": 1 } }),
        json!({ "hyperparameters": { "gamma": [0.9] } }),
        json!({ "config": { "gamma": 0.9 } }),
        json!({}),
    ] {
        assert_eq!(
            refusal(
                developer
                    .post(&format!("{POLICY}/reload"), bad.clone())
                    .await
            )
            .0,
            400,
            "{bad}"
        );
    }
    assert_eq!(
        refusal(developer.get("/api/v1/orchestration/agents/nobody").await).0,
        404
    );
    assert_eq!(
        refusal(developer.get("/api/v1/orchestration/agents/resource").await).0,
        501
    );
    mesh.mesh.stop().await;
}

/// Trains the policy agent to the end of a run, which makes a version of its weights.
async fn trained(developer: &Rest) -> Value {
    let path = format!("{POLICY}/train");
    let started = developer.post(&path, json!({ "steps": "1000" })).await;
    let run = started.unwrap()["run"]["run_id"].clone();
    let path = format!("/api/v1/orchestration/training/{}", run.as_str().unwrap());
    let ended = async || {
        let run = developer.get(&path).await.unwrap()["run"].take();
        run["state"] == "TRAINING_STATE_COMPLETED"
    };
    eventually("the run has ended", ended).await;
    run
}

/// The version of the weights that answers a step, and the values that the action was chosen by.
async fn stepped(developer: &Rest) -> (u64, Value) {
    let state = json!({ "policy_state": { "state_vector": [0.0, 0.1, 0.02, -0.1] } });
    let answer = developer.post("/api/v1/orchestration/step", state).await;
    let action = answer.expect("no step fails")["agent_actions"]["policy"].take();
    let version = action["weights_version"].as_str().unwrap().parse();
    (version.unwrap(), action["action_values"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_promoted_and_rolled_back_under_steps_that_never_fail_or_mix_them() {
    const CHANGES: u64 = 50;
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let (mut runs, mut policies) = (Vec::new(), Vec::new());
    for version in [1, 2] {
        runs.push(trained(&developer).await);
        let (live, values) = stepped(&developer).await;
        assert_eq!(live, version);
        policies.push(values);
    }
    assert_ne!(policies[0], policies[1]);

    // From here on odd versions have the first policy and even ones the second.
    let stop = Arc::new(AtomicBool::new(false));
    let steppers: Vec<_> = (0..2)
        .map(|_| {
            let (developer, policies, stop) =
                (developer.clone(), policies.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut seen = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let (version, values) = stepped(&developer).await;
                    assert_eq!(values, policies[usize::from(version % 2 == 0)], "{version}");
                    seen.insert(version);
                }
                seen
            })
        })
        .collect();
    for version in 3..3 + CHANGES {
        let expected = (version - 1).to_string();
        let is_first = version % 2 == 1;
        let mut body = json!({ "expected_weights_version": expected, "reason": "test" });
        let method = match version % 4 {
            1 | 2 => "rollback",
            _ => {
                body["version"] = json!(if is_first { "1" } else { "2" });
                "promote"
            }
        };
        let path = format!("{POLICY}/{method}");
        let answer = developer.post(&path, body).await.unwrap();
        assert_eq!(answer["agent"]["weights_version"], version.to_string());
        assert_eq!(answer["pending_replicas"], json!([]));
        assert_eq!(stepped(&developer).await.0, version, "it is live at once");
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = BTreeSet::new();
    for stepper in steppers {
        seen.append(&mut stepper.await.unwrap());
    }
    assert!(seen.len() > 10, "{seen:?}");

    let live = 2 + CHANGES;
    let path = format!("{POLICY}/versions?page_size=500");
    let listed = developer.get(&path).await.unwrap()["versions"].take();
    let newest = &listed[0];
    assert_eq!(newest["version"], live.to_string());
    assert_eq!(
        (&newest["live"], &newest["run_id"]),
        (&json!(true), &runs[1])
    );
    assert_eq!(newest["restored_from"], "2");
    let trained = listed.as_array().unwrap().iter();
    let trained: Vec<&Value> = trained.filter(|v| v["restored_from"].is_null()).collect();
    let of_runs: Vec<&Value> = trained.iter().map(|v| &v["run_id"]).collect();
    assert_eq!(of_runs, [&runs[1], &runs[0]], "no change displaces them");
    assert_eq!(newest["mean_return"], trained[0]["mean_return"]);
    refused_promotions(&mesh, &developer, live).await;
    let agent = developer.get(POLICY).await.unwrap()["agent"].take();
    assert_eq!(agent["weights_version"], live.to_string());
    assert_eq!(agent["last_return"], newest["mean_return"]);
    mesh.mesh.stop().await;
}

async fn refused_promotions(mesh: &TestMesh, developer: &Rest, live: u64) {
    let stale = (live - 1).to_string();
    let agents = "/api/v1/orchestration/agents";
    for (path, body, expected) in [
        (
            "policy/promote",
            json!({ "version": "1", "expected_weights_version": stale }),
            (409, "VERSION_CHANGED"),
        ),
        (
            "policy/rollback",
            json!({ "expected_weights_version": stale }),
            (409, "VERSION_CHANGED"),
        ),
        (
            "policy/promote",
            json!({ "version": "1000" }),
            (404, "NOT_FOUND"),
        ),
        (
            "policy/promote",
            json!({ "version": "18446744073709551615" }),
            (404, "NOT_FOUND"),
        ),
        (
            "policy/promote",
            json!({ "version": "0" }),
            (400, "INVALID_FIELD"),
        ),
        ("policy/promote", json!({}), (400, "INVALID_FIELD")),
        (
            "policy/rollback",
            json!({ "reason": "x".repeat(513) }),
            (400, "INVALID_FIELD"),
        ),
        (
            "ethical/promote",
            json!({ "version": "1" }),
            (404, "NOT_FOUND"),
        ),
        ("ethical/rollback", json!({}), (400, "NO_EARLIER_VERSION")),
        ("resource/rollback", json!({}), (501, "AGENT_NOT_BUILT")),
        ("nobody/rollback", json!({}), (404, "NOT_FOUND")),
    ] {
        let (status, refused) = refusal(developer.post(&format!("{agents}/{path}"), body).await);
        assert_eq!(
            (status, reason(&refused).as_str()),
            expected,
            "{path}: {refused}"
        );
    }
    let viewer = mesh.user("eve", "viewer").await;
    viewer.get(&format!("{POLICY}/versions")).await.unwrap();
    for method in ["promote", "rollback"] {
        let body = json!({ "version": "1" });
        let body = if method == "promote" { body } else { json!({}) };
        let denied = viewer.post(&format!("{POLICY}/{method}"), body).await;
        assert_eq!(refusal(denied).0, 403, "{method}");
    }
}
