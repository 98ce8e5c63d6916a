//! The agents through the front door: trained, stepped, reloaded, promoted.

use crate::until_counted;
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
    governed::{FOUR, POLICY, assessed, finished, proposed},
    reason, refusal,
};

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
                .any(|name| item["progress"]["agents"][0][name].is_number());
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
            item["progress"]["agents"][0]["version"] != "2"
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
            (400, "INVALID_FIELD"),
        ),
        (
            "policy/promote",
            json!({ "version": "0" }),
            (400, "INVALID_FIELD"),
        ),
        ("policy/promote", json!({}), (400, "INVALID_FIELD")),
        (
            "policy/promote",
            json!({ "version": "1", "rule": "aimd" }),
            (400, "INVALID_FIELD"),
        ),
        (
            "policy/promote",
            json!({ "rule": "aimd" }),
            (404, "NOT_FOUND"),
        ),
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
