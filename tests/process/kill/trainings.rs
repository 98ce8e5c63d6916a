//! Trainings that are killed go on from their checkpoints.

use crate::tars;
use serde_json::{Value, json};
use std::path::Path;
use tars::rest::Rest;
use tars_tests::{
    eventually,
    governed::{self, FOUR},
    process::{Running, Up},
};

/// A mesh whose agents live in the environment of the mesh, and leave checkpoints so many seconds apart.
fn four(data: &Path, seconds: u32) -> Running {
    let up = Up::new(tars(), data).unlimited();
    let up = up.env("TARS__ORCHESTRATION__ENVIRONMENT", "mesh");
    let every = "TARS__ORCHESTRATION__CHECKPOINT_SECONDS";
    up.env(every, &seconds.to_string()).start()
}

/// Starts a training of each agent; returns the paths of the runs.
async fn train_four(rest: &Rest) -> Vec<String> {
    let mut runs = Vec::new();
    for (agent, _) in FOUR {
        let path = format!("/api/v1/orchestration/agents/{agent}/train");
        let body = json!({ "steps": "12000", "seed": "7" });
        let run = rest.post(&path, body).await.unwrap();
        let id = governed::text(&run["run"]["run_id"]);
        runs.push(format!("/api/v1/orchestration/training/{id}"));
    }
    runs
}

/// Follows runs to their ends; returns the numbers of their events.
async fn followed(rest: &Rest, runs: &[String]) -> Vec<usize> {
    let mut counts = Vec::new();
    for run in runs {
        let (mut count, mut ended) = (0, Value::Null);
        let path = format!("{run}/events");
        let follow = rest.follow(&path, |item| {
            count += 1;
            assert_eq!(item["sequence"], count.to_string());
            ended = item["ended"].clone();
            true
        });
        follow.await.unwrap();
        assert_eq!(ended["state"], "TRAINING_STATE_COMPLETED", "{ended}");
        counts.push(count);
    }
    counts
}

/// What each agent has learned: its return, the digest of its weights, and what it thinks of some states.
async fn learned(rest: &Rest) -> Vec<Value> {
    let mut learned = Vec::new();
    for (agent, width) in FOUR {
        let path = format!("/api/v1/orchestration/agents/{agent}");
        let seen = rest.get(&path).await.unwrap()["agent"].clone();
        learned.push(json!([seen["last_return"], seen["weights_version"]]));
        let versions = rest.get(&format!("{path}/versions")).await.unwrap();
        let digest = versions["versions"][0]["digest"].clone();
        assert_eq!(governed::text(&digest).len(), 64, "{versions}");
        learned.push(digest);
        for value in [0.1, 0.6] {
            let state = json!({ "state_vector": vec![value; width] });
            let states = json!({ format!("{agent}_state"): state });
            let acted = rest.post("/api/v1/orchestration/step", states).await;
            learned.push(acted.unwrap()["agent_actions"][agent].clone());
        }
    }
    learned
}

/// Starts a training of all agents together.
async fn train_together(rest: &Rest) -> Vec<String> {
    let body = json!({ "steps": "12000", "seed": "7" });
    let run = rest.post("/api/v1/orchestration/training", body).await;
    let id = governed::text(&run.unwrap()["run"]["run_id"]);
    vec![format!("/api/v1/orchestration/training/{id}")]
}

/// Waits until a run has taken some steps.
async fn under_way(rest: &Rest, run: &str, steps: u64) {
    eventually("the run is under way", || async {
        let shown = rest.get(run).await.unwrap()["run"].clone();
        let done = governed::text(&shown["steps_done"]);
        done.parse::<u64>().unwrap() >= steps
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trainings_that_are_killed_end_as_undisturbed_ones() {
    let data = tempfile::tempdir().unwrap();
    let undisturbed = four(data.path(), 3600);
    let rest = undisturbed.admin().await;
    let runs = train_four(&rest).await;
    let events = followed(&rest, &runs).await;
    let expected = learned(&rest).await;
    drop(undisturbed);

    let data = tempfile::tempdir().unwrap();
    let mut mesh = four(data.path(), 0);
    let mut rest = mesh.admin().await;
    let runs = train_four(&rest).await;
    // The first two run at once, and the others after them.
    for run in [&runs[0], &runs[2]] {
        under_way(&rest, run, 1_000).await;
        // Dropped before the next one: it ends what its data directory says is running.
        drop(mesh);
        mesh = four(data.path(), 0);
        rest = mesh.admin().await;
    }
    assert_eq!(followed(&rest, &runs).await, events, "no report twice");
    assert_eq!(learned(&rest).await, expected);
    let audit = rest.get("/admin/audit/logs?page_size=500").await.unwrap();
    assert!(audit.to_string().contains("training.resumed"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joint_training_that_is_killed_twice_ends_as_an_undisturbed_one() {
    let data = tempfile::tempdir().unwrap();
    let undisturbed = four(data.path(), 3600);
    let rest = undisturbed.admin().await;
    let runs = train_together(&rest).await;
    let events = followed(&rest, &runs).await;
    let expected = learned(&rest).await;
    drop(undisturbed);

    let data = tempfile::tempdir().unwrap();
    let mut mesh = four(data.path(), 1);
    let mut rest = mesh.admin().await;
    let runs = train_together(&rest).await;
    for steps in [1_000, 5_000] {
        under_way(&rest, &runs[0], steps).await;
        drop(mesh);
        mesh = four(data.path(), 1);
        rest = mesh.admin().await;
    }
    assert_eq!(followed(&rest, &runs).await, events, "no report twice");
    assert_eq!(learned(&rest).await, expected);
    let audit = rest.get("/admin/audit/logs?event_type=training.resumed&page_size=500");
    let resumed = audit.await.unwrap()["events"].as_array().unwrap().len();
    assert!(resumed >= 8, "a record for each agent and kill: {resumed}");
}

/// Trains all agents together for a while, so that each has a policy of its own.
async fn train_first(rest: &Rest) {
    let body = json!({ "steps": "2000", "seed": "3" });
    let run = rest.post("/api/v1/orchestration/training", body).await;
    let id = governed::text(&run.unwrap()["run"]["run_id"]);
    followed(rest, &[format!("/api/v1/orchestration/training/{id}")]).await;
}

/// Starts a training of some agents against the others as they are.
async fn train_against(rest: &Rest, agents: &[&str]) -> Vec<String> {
    let body = json!({ "agents": agents, "others": "OTHERS_LIVE", "steps": "12000", "seed": "7" });
    let run = rest.post("/api/v1/orchestration/training", body).await;
    let id = governed::text(&run.unwrap()["run"]["run_id"]);
    vec![format!("/api/v1/orchestration/training/{id}")]
}

/// The digest of the newest weights of an agent.
async fn digest(rest: &Rest, agent: &str) -> String {
    let path = format!("/api/v1/orchestration/agents/{agent}/versions");
    let versions = rest.get(&path).await.unwrap();
    governed::text(&versions["versions"][0]["digest"])
}

/// The digests of all agents' newest weights, after those agents were trained against the others as they are. Where
/// the mesh is killed, what is live of another agent changes meanwhile: the run goes on with what it began with.
async fn digests_against_live_ones(agents: &[&str], kills: &[u64]) -> Vec<String> {
    let data = tempfile::tempdir().unwrap();
    let seconds = if kills.is_empty() { 3600 } else { 1 };
    let mut mesh = four(data.path(), seconds);
    let mut rest = mesh.admin().await;
    train_first(&rest).await;
    let runs = train_against(&rest, agents).await;
    let shown = rest.get(&runs[0]).await.unwrap();
    assert_eq!(shown["run"]["others"], "OTHERS_LIVE", "{shown}");
    for steps in kills {
        under_way(&rest, &runs[0], *steps).await;
        drop(mesh);
        mesh = four(data.path(), seconds);
        rest = mesh.admin().await;
        let rule = json!({ "rule": "hold" });
        let path = "/api/v1/orchestration/agents/ethical/promote";
        rest.post(path, rule).await.unwrap();
    }
    followed(&rest, &runs).await;
    let audit = rest.get("/admin/audit/logs?event_type=training.resumed&page_size=500");
    let resumed = audit.await.unwrap()["events"].as_array().unwrap().len();
    assert!(resumed >= kills.len() * agents.len(), "{resumed}");
    let mut digests = Vec::new();
    for agent in agents {
        digests.push(digest(&rest, agent).await);
    }
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_against_live_others_that_is_killed_ends_as_an_undisturbed_one() {
    for agents in [&["resource"][..], &["policy", "consensus"]] {
        let expected = digests_against_live_ones(agents, &[]).await;
        assert!(
            expected.iter().all(|digest| digest.len() == 64),
            "{expected:?}"
        );
        let killed = digests_against_live_ones(agents, &[1_000, 5_000]).await;
        assert_eq!(killed, expected, "{agents:?}");
    }
}
