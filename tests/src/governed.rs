//! The governed loop, driven over REST.

use serde_json::{Value, json};
use tars::rest::Rest;

/// The REST path of the agent that all tests change.
pub const POLICY: &str = "/api/v1/orchestration/agents/policy";

/// Each agent of the mesh with the number of components that it observes there.
pub const FOUR: [(&str, usize); 4] = [
    ("policy", 32),
    ("consensus", 16),
    ("ethical", 24),
    ("resource", 20),
];

/// A search with a known winner: one parameter set learns, the default does not.
pub async fn study(rest: &Rest, trials: u32) -> String {
    let fixed =
        |name: &str, value: Value| json!({ "name": name, "categorical": { "values": [value] } });
    let body = json!({
        "n_trials": trials, "steps": "4000", "seed": "5", "sampler_type": "random", "pruner_type": "none",
        "search_space": [
            fixed("learning_rate", json!(0.003)), fixed("tau", json!(1)), fixed("target_update", json!(5)),
            fixed("gamma", json!(0.99)), fixed("batch_size", json!(16)),
            { "name": "epsilon_decay", "float": { "low": 0.95, "high": 0.97 } },
        ],
    });
    let answer = rest.post("/api/v1/optimize", body).await;
    let answer = answer.expect("the search starts");
    text(&answer["optimization_id"])
}

/// A study once it has ended.
pub async fn finished(rest: &Rest, study: &str) -> Value {
    let mut ended = Value::Null;
    let path = format!("/api/v1/studies/{study}/events");
    let followed = rest.follow(&path, |item| {
        ended = item["ended"].clone();
        ended.is_null()
    });
    followed.await.expect("the study is followed");
    ended
}

/// A proposal that is measured on so many seeds that one which happens to learn, or not to, decides
/// nothing.
pub async fn proposed(rest: &Rest, study: &str) -> Value {
    proposed_with(rest, study, 16).await
}

/// A proposal of a study's best trial that is verified on so many seeds.
pub async fn proposed_with(rest: &Rest, study: &str, seeds: u32) -> Value {
    let body = json!({ "study_id": study, "verification_seeds": seeds });
    let answer = rest.post("/api/v1/sync/propose", body).await;
    answer.expect("the trial is proposed")["proposal"].clone()
}

/// A proposal once its assessment has ended.
pub async fn assessed(rest: &Rest, id: &str) -> Value {
    let mut last = Value::Null;
    let path = format!("/api/v1/sync/proposals/{id}/events");
    let followed = rest.follow(&path, |item| {
        last = item["proposal"].clone();
        last["assessment_state"] == "ASSESSMENT_STATE_PENDING"
    });
    followed.await.expect("the proposal is followed");
    last
}

/// Approves a proposal without waiting for its assessment, and starts applying it.
pub async fn approve_and_apply(admin: &Rest, id: &str) {
    let body = json!({ "update_id": id, "without_assessment": true });
    let approved = admin.post("/api/v1/sync/approve", body);
    approved.await.expect("it is approved");
    let path = format!("/api/v1/sync/apply/{id}");
    admin.post(&path, json!({})).await.expect("it is applied");
}

/// A proposal as soon as it is in a state, or has ended.
pub async fn in_state(rest: &Rest, id: &str, state: &str) -> Value {
    let mut last = Value::Null;
    let path = format!("/api/v1/sync/proposals/{id}/events");
    let followed = rest.follow(&path, |item| {
        last = item["proposal"].clone();
        last["state"] != state
    });
    followed.await.expect("the proposal is followed");
    last
}

/// A proposal once it has ended.
pub async fn final_state(rest: &Rest, id: &str) -> Value {
    in_state(rest, id, "").await
}

/// A proposal as it is now.
pub async fn proposal(rest: &Rest, id: &str) -> Value {
    let answer = rest.get(&format!("/api/v1/sync/proposals/{id}")).await;
    answer.expect("the proposal is there")["proposal"].clone()
}

/// The agent as it is live now.
pub async fn agent(rest: &Rest) -> Value {
    rest.get(POLICY).await.expect("the agent is there")["agent"].clone()
}

/// A JSON string; empty for anything else.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
