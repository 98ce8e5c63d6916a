//! The real binary, killed in the middle of its work: what was acknowledged is there afterwards,
//! and the study goes on.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{path::Path, process::Command};
use tars::rest::Rest;
use tars_test_db::Lock;
use tars_tests::{
    PASSWORD, eventually, governed,
    process::{Running, Up},
};

#[path = "kill/promotions.rs"]
mod promotions;
#[path = "kill/trainings.rs"]
mod trainings;

const ATTENTION: &str = "PROPOSAL_STATE_NEEDS_ATTENTION";

fn tars() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tars"))
}

fn up(data: &Path) -> Running {
    Up::new(tars(), data).unlimited().start()
}

fn completed(trials: &Value) -> Vec<Value> {
    let all = trials["trials"].as_array().unwrap();
    all.iter()
        .filter(|t| t["state"] == "TRIAL_STATE_COMPLETE")
        .cloned()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mesh_goes_on_where_it_was() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path());
    let rest = mesh.admin().await;
    let body = json!({ "username": "ada", "password": "a long password", "roles": ["viewer"] });
    rest.post("/admin/users", body).await.unwrap();
    let key = rest
        .post("/auth/service-token", json!({ "service_name": "gone" }))
        .await
        .unwrap();
    let key_id = key["key_id"].as_str().unwrap().to_owned();
    rest.post(
        &format!("/admin/api-keys/{key_id}/revoke"),
        json!({ "reason": "test" }),
    )
    .await
    .unwrap();
    let reload = json!({ "hyperparameters": { "gamma": 0.97 } });
    rest.post("/api/v1/orchestration/agents/policy/reload", reload)
        .await
        .unwrap();
    let body = json!({ "n_trials": 8, "steps": "6000", "seed": "1", "pruner_type": "none" });
    let study = rest.post("/api/v1/optimize", body).await.unwrap()["optimization_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let trials = format!("/api/v1/studies/{study}/trials");
    tars_tests::eventually("two trials are complete", || async {
        completed(&rest.get(&trials).await.unwrap()).len() >= 2
    })
    .await;
    let before = completed(&rest.get(&trials).await.unwrap());
    mesh.kill();

    let mesh = up(data.path());
    let rest = mesh.admin().await;
    let users = rest.get("/admin/users").await.unwrap();
    assert!(
        users["users"]
            .as_array()
            .unwrap()
            .iter()
            .any(|u| u["username"] == "ada")
    );
    let keys = rest.get("/admin/api-keys").await.unwrap();
    let kept = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|k| k["key_id"] == *key_id)
        .unwrap();
    assert_eq!(kept["is_active"], false, "a revoked key stays revoked");
    let agent = rest
        .get("/api/v1/orchestration/agents/policy")
        .await
        .unwrap()["agent"]
        .clone();
    assert_eq!(
        (&agent["version"], &agent["hyperparameters"]["gamma"]),
        (&json!("2"), &json!(0.97))
    );

    let mut ended = Value::Null;
    rest.follow(&format!("/api/v1/studies/{study}/events"), |item| {
        ended = item["ended"].clone();
        ended.is_null()
    })
    .await
    .unwrap();
    assert_eq!(
        ended["state"], "STUDY_STATE_COMPLETED",
        "resumed with no user's token: {ended}"
    );
    let after = completed(&rest.get(&trials).await.unwrap());
    assert_eq!(after.len(), 8);
    for trial in &before {
        assert!(
            after.contains(trial),
            "an ended trial stays as it was: {trial}"
        );
    }
    let events = rest.get("/admin/audit/logs?page_size=500").await.unwrap();
    let kinds: Vec<&str> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["event_type"].as_str())
        .collect();
    for kind in [
        "user.created",
        "api_key.revoked",
        "admin.agent.reload",
        "study.created",
    ] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
}

async fn people(mesh: &Running) -> (Rest, Rest) {
    let rest = mesh.admin().await;
    let body = json!({ "username": "dev", "password": PASSWORD, "roles": ["developer"] });
    rest.post("/admin/users", body).await.unwrap();
    let gateway = Rest::new(&mesh.ready.gateway);
    let developer = gateway.login("dev", PASSWORD).await.unwrap();
    (rest, developer)
}

/// A proposal that is being verified, with its administrator and its developer.
async fn verifying(mesh: &Running) -> (Rest, Rest, String) {
    let (rest, developer) = people(mesh).await;
    let study = governed::study(&developer, 1).await;
    governed::finished(&developer, &study).await;
    let proposed = governed::proposed(&developer, &study).await;
    let id = governed::text(&proposed["update_id"]);
    governed::approve_and_apply(&rest, &id).await;
    let verifying = governed::in_state(&rest, &id, "PROPOSAL_STATE_VERIFYING").await;
    assert_eq!(verifying["state"], "PROPOSAL_STATE_VERIFYING");
    (rest, developer, id)
}

/// Orchestration's database, locked: until this is dropped no agent is changed.
async fn locked(data: &Path) -> Lock {
    tars_test_db::lock(data, "orchestration").await
}

/// What an agent is: its version, the approved one, whether it is held.
fn standing(agent: &Value) -> (&str, &str, bool) {
    let text = |name: &str| agent[name].as_str().unwrap();
    let held = !agent["hold"].is_null();
    (text("version"), text("approved_version"), held)
}

/// Killed before the change is live: the next process applies it, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_while_it_applies_goes_on_applying() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path());
    let (rest, developer) = people(&mesh).await;
    let study = governed::study(&developer, 1).await;
    governed::finished(&developer, &study).await;
    let proposed = governed::proposed(&developer, &study).await;
    let id = governed::text(&proposed["update_id"]);
    let lock = locked(data.path()).await;
    governed::approve_and_apply(&rest, &id).await;
    let applying = governed::in_state(&rest, &id, "PROPOSAL_STATE_APPLYING").await;
    assert_eq!(applying["state"], "PROPOSAL_STATE_APPLYING", "{applying}");
    assert_eq!(standing(&governed::agent(&rest).await), ("1", "1", false));
    mesh.kill();
    drop(lock);

    let mesh = up(data.path());
    let rest = mesh.admin().await;
    let ended = governed::final_state(&rest, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    assert_eq!(standing(&governed::agent(&rest).await), ("2", "2", false));
}

/// Killed while the change that did not improve is still live: the next process takes it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_while_it_rolls_back_goes_on_rolling_back() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path());
    let (rest, developer) = people(&mesh).await;
    let before = governed::agent(&rest).await;
    // A larger buffer than ever gets full: on every seed both sides learn the same.
    let body = json!({
        "n_trials": 1, "steps": "3000", "seed": "1", "sampler_type": "random",
        "search_space": [{ "name": "buffer_size", "int": { "low": "20000", "high": "30000" } }],
    });
    let study = developer.post("/api/v1/optimize", body).await.unwrap();
    let study = governed::text(&study["optimization_id"]);
    governed::finished(&developer, &study).await;
    let proposed = governed::proposed(&developer, &study).await;
    let id = governed::text(&proposed["update_id"]);
    governed::approve_and_apply(&rest, &id).await;
    // The first evaluation writes, to remember whose work it is; those that follow only read.
    let path = format!("/api/v1/sync/proposals/{id}/events?with_progress=true");
    let first = rest.follow(&path, |item| {
        let verifying = item["proposal"]["state"] == "PROPOSAL_STATE_VERIFYING";
        !verifying || item["progress"]["runs_ended"].as_u64().unwrap_or(0) == 0
    });
    first.await.unwrap();
    let lock = locked(data.path()).await;
    let back = governed::in_state(&rest, &id, "PROPOSAL_STATE_ROLLING_BACK").await;
    assert_eq!(back["state"], "PROPOSAL_STATE_ROLLING_BACK", "{back}");
    assert_eq!(standing(&governed::agent(&rest).await), ("2", "1", true));
    mesh.kill();
    drop(lock);

    let mesh = up(data.path());
    let rest = mesh.admin().await;
    let ended = governed::final_state(&rest, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_ROLLED_BACK", "{ended}");
    let after = governed::agent(&rest).await;
    assert_eq!(after["hyperparameters"], before["hyperparameters"]);
    assert_eq!(standing(&after), ("3", "1", false), "set back once");
}

/// Killed while what it applied is being verified: the agent is still held afterwards, and the saga
/// goes on to its end by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_while_it_verifies_goes_on_verifying() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path());
    let (_, _, id) = verifying(&mesh).await;
    mesh.kill();

    let mesh = up(data.path());
    let rest = mesh.admin().await;
    let held = governed::agent(&rest).await;
    assert_eq!(held["hold"]["change_id"], id.as_str(), "{held}");
    let reload = json!({ "hyperparameters": { "gamma": 0.91 } });
    let path = format!("{}/reload", governed::POLICY);
    let (_, refused) = tars_tests::refusal(rest.post(&path, reload.clone()).await);
    assert_eq!(tars_tests::reason(&refused), "CHANGE_IN_PROGRESS");
    let ended = governed::final_state(&rest, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    let after = governed::agent(&rest).await;
    assert_eq!(
        (
            &after["version"],
            &after["approved_version"],
            &after["hold"]
        ),
        (&json!("2"), &json!("2"), &Value::Null),
        "applied once"
    );
    rest.post(&path, reload).await.expect("the agent is free");
}

/// Killed while a person is asked: the agent is held as before, and only the decision ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_while_it_asks_a_person_holds_the_agent_until_the_decision() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path());
    let (rest, developer, id) = verifying(&mesh).await;
    let reload = json!({ "hyperparameters": { "gamma": 0.91 } });
    let release = json!({ "change_id": id, "reason": "a test" });
    let at = |what: &str| format!("{}/{what}", governed::POLICY);
    rest.post(&at("release"), release.clone()).await.unwrap();
    developer.post(&at("reload"), reload.clone()).await.unwrap();
    let asks = governed::in_state(&rest, &id, ATTENTION).await;
    assert_eq!(asks["state"], ATTENTION, "{asks}");
    mesh.kill();

    let mesh = up(data.path());
    let rest = mesh.admin().await;
    assert_eq!(governed::proposal(&rest, &id).await["state"], ATTENTION);
    for (what, body, why) in [
        ("reload", &reload, "CHANGE_IN_PROGRESS"),
        ("release", &release, "NEEDS_ATTENTION"),
    ] {
        let (_, refused) = tars_tests::refusal(rest.post(&at(what), body.clone()).await);
        assert_eq!(tars_tests::reason(&refused), why, "{refused}");
    }
    let keep = json!({ "resolution": "RESOLUTION_KEEP_LIVE", "reason": "it is good" });
    let path = format!("/api/v1/sync/proposals/{id}/resolve");
    // On a database that could be shared the decision waits until the killed process's lease has ended. It
    // may be taken after its call's deadline, and is then refused the next time.
    eventually("the decision is taken", || async {
        rest.post(&path, keep.clone()).await.is_ok()
            || governed::proposal(&rest, &id).await["state"] == "PROPOSAL_STATE_KEPT"
    })
    .await;
    let kept = governed::final_state(&rest, &id).await;
    assert_eq!(kept["state"], "PROPOSAL_STATE_KEPT", "{kept}");
    rest.post(&at("reload"), reload)
        .await
        .expect("the agent is free");
}
