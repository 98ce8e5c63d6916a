//! Training runs of several agents through the front door.

use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{TestMesh, eventually, governed::FOUR, reason, refusal};

const TRAINING: &str = "/api/v1/orchestration/training";

/// Follows a run to its end; returns its progress, and the run as it ended.
async fn followed(rest: &Rest, run: &Value) -> (Vec<Value>, Value) {
    let (mut progress, mut ended) = (Vec::new(), Value::Null);
    let run = run["run"]["run_id"].as_str().unwrap();
    let events = format!("{TRAINING}/{run}/events");
    let followed = rest.follow(&events, |item| {
        if item["progress"].is_object() {
            progress.push(item["progress"].clone());
        }
        ended = item["ended"].clone();
        true
    });
    followed.await.unwrap();
    (progress, ended)
}

async fn weights_versions(rest: &Rest) -> Vec<Value> {
    let mut versions = Vec::new();
    for (agent, _) in FOUR {
        let path = format!("/api/v1/orchestration/agents/{agent}");
        let seen = rest.get(&path).await.unwrap();
        versions.push(seen["agent"]["weights_version"].clone());
    }
    versions
}

/// The values of a field of each item of a list.
fn each<'a>(items: &'a Value, field: &str) -> Vec<&'a Value> {
    items
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i[field])
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_agents_learn_together_and_one_against_the_frozen_others() {
    let mut config = tars_tests::config();
    config.orchestration.environment = "mesh".to_owned();
    let mesh = TestMesh::with(config).await;
    let developer = mesh.user("dev", "developer").await;
    let names: Vec<&str> = FOUR.iter().map(|(agent, _)| *agent).collect();

    let body = json!({ "steps": "3000", "seed": "1" });
    let run = developer.post(TRAINING, body).await.unwrap();
    refused(&developer).await;
    let (progress, ended) = followed(&developer, &run).await;
    assert_eq!(ended["state"], "TRAINING_STATE_COMPLETED", "{ended}");
    for item in &progress {
        assert_eq!(each(&item["agents"], "agent_id"), names);
    }
    for (at, measured) in ["q", "entropy", "kl", "q"].into_iter().enumerate() {
        let is_measured = |item: &Value| item["agents"][at][measured].is_number();
        assert!(progress.iter().any(is_measured), "{at}: {measured}");
    }
    assert_eq!(weights_versions(&developer).await, ["1"; 4]);
    assert_eq!(each(&ended["members"], "agent_id"), names);
    assert_eq!(each(&ended["members"], "weights_version"), ["1"; 4]);
    assert_eq!(ended["final_return"], ended["members"][0]["final_return"]);
    assert_eq!(
        (&ended["environment"], &ended["agent_id"]),
        (&json!("mesh"), &json!("policy"))
    );
    assert_eq!(ended["calibration"], "shipped");
    let algorithms = each(&ended["members"], "algorithm");
    assert_eq!(algorithms, ["dqn", "a2c", "ppo", "ddpg"]);

    let body = json!({ "steps": "1000", "seed": "2", "others": "OTHERS_LIVE" });
    let train = "/api/v1/orchestration/agents/ethical/train";
    let run = developer.post(train, body).await.unwrap();
    assert_eq!(run["run"]["others"], "OTHERS_LIVE");
    let (progress, ended) = followed(&developer, &run).await;
    assert_eq!(ended["state"], "TRAINING_STATE_COMPLETED", "{ended}");
    for item in &progress {
        assert_eq!(each(&item["agents"], "agent_id"), ["ethical"]);
    }
    assert_eq!(each(&ended["members"], "agent_id"), ["ethical"]);
    assert_eq!(weights_versions(&developer).await, ["1", "1", "2", "1"]);
    let listed = developer.get(TRAINING).await.unwrap();
    let listed: Vec<usize> = each(&listed["runs"], "members")
        .iter()
        .map(|members| members.as_array().unwrap().len())
        .collect();
    assert_eq!(listed, [1, 4]);
    paused_and_resumed(&developer, ended["run_id"].as_str().unwrap()).await;
    mesh.mesh.stop().await;
}

/// A run is paused, which frees its agents, and goes on afterwards.
async fn paused_and_resumed(developer: &Rest, completed: &str) {
    let body = json!({ "agents": ["policy", "resource"], "steps": "10000000" });
    let run = developer.post(TRAINING, body).await.unwrap();
    let path = format!("{TRAINING}/{}", run["run"]["run_id"].as_str().unwrap());
    let run = path;
    let is_in = async |state: &str| {
        let shown = developer.get(&run).await.unwrap();
        shown["run"]["state"] == state
    };
    eventually("it runs", async || is_in("TRAINING_STATE_RUNNING").await).await;
    post(developer, &run, "pause").await;
    eventually("it is paused", async || {
        is_in("TRAINING_STATE_PAUSED").await
    })
    .await;
    post(developer, &run, "pause").await;
    let body = json!({ "steps": "100" });
    let train = "/api/v1/orchestration/agents/policy/train";
    let other = developer.post(train, body).await.unwrap();
    followed(developer, &other).await;
    post(developer, &run, "resume").await;
    eventually("it goes on", async || is_in("TRAINING_STATE_RUNNING").await).await;
    post(developer, &run, "cancel").await;
    eventually("it ends", async || is_in("TRAINING_STATE_CANCELLED").await).await;
    for (run, code, why) in [
        (completed, 400, "WRONG_STATE"),
        (&run[TRAINING.len() + 1..], 400, "WRONG_STATE"),
        ("00000000-0000-0000-0000-000000000000", 404, "NOT_FOUND"),
        ("7", 400, "INVALID_FIELD"),
    ] {
        for what in ["pause", "resume"] {
            let path = format!("{TRAINING}/{run}/{what}");
            let answer = developer.post(&path, json!({}));
            let (status, body) = refusal(answer.await);
            assert_eq!(
                (status, &*reason(&body)),
                (code, why),
                "{what} {run}: {body}"
            );
        }
    }
}

async fn post(developer: &Rest, run: &str, what: &str) {
    let answer = developer.post(&format!("{run}/{what}"), json!({})).await;
    answer.unwrap();
}

/// While all agents are in training.
async fn refused(developer: &Rest) {
    for (agents, code, why) in [
        (json!([]), 400, "TRAINING_RUNS"),
        (json!(["ethical", "policy"]), 400, "TRAINING_RUNS"),
        (json!(["policy", "nobody"]), 404, "NOT_FOUND"),
        (json!(["policy", "policy"]), 400, "INVALID_FIELD"),
        (json!(["Policy"]), 400, "INVALID_FIELD"),
        (json!(vec!["policy"; 17]), 400, "INVALID_FIELD"),
    ] {
        let answer = developer.post(TRAINING, json!({ "agents": agents })).await;
        let (status, body) = refusal(answer);
        assert_eq!((status, &*reason(&body)), (code, why), "{agents}: {body}");
    }
    for body in [
        json!({ "others": "OTHERS_SOME" }),
        json!({ "steps": "0" }),
        json!({ "steps": "10000001" }),
    ] {
        let (status, answer) = refusal(developer.post(TRAINING, body).await);
        assert_eq!(status, 400, "{answer}");
    }
}
