//! The ladder of a bound agent, with the evidence that a mesh of a test does not gather by itself: a calibration
//! takes windows of real load, and whether a version learned enough is not for a test to say.

use crate::{eventually, governed::text, process::Up};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tars::rest::Rest;
use tars_runtime::db::{Db, Isolation, Query};
use tokio::task::JoinHandle;

/// The REST path of the agent that climbs. Its shield allows whatever it does.
pub const ETHICAL: &str = "/api/v1/orchestration/agents/ethical";

/// A mesh that the agent is bound to, whose version in CANARY answers everybody. A promotion is watched for so many
/// seconds, and no window of measured calls ends meanwhile.
pub fn bound(up: Up, seconds: u64) -> Up {
    up.env("TARS__ORCHESTRATION__ENVIRONMENT", "mesh")
        .env("TARS__ORCHESTRATION__BOUND_AGENTS", r#"["ethical"]"#)
        .env("TARS__ORCHESTRATION__CANARY_PERCENT", "100")
        .env("TARS__ORCHESTRATION__CALIBRATION_SECONDS", "3600")
        .env(
            "TARS__HYPERSYNC__VERIFICATION_SECONDS",
            &seconds.to_string(),
        )
}

/// A step of that agent.
pub async fn step(rest: &Rest) -> Value {
    let state = json!({ "ethical_state": { "state_vector": vec![0.5; 24] } });
    let answer = rest.post("/api/v1/orchestration/step", state).await;
    answer.expect("it answers")["agent_actions"]["ethical"].take()
}

/// Steps until this is dropped or aborted.
pub fn steps(rest: &Rest) -> JoinHandle<()> {
    let rest = rest.clone();
    tokio::spawn(async move {
        loop {
            step(&rest).await;
        }
    })
}

/// Trains the agent, makes the rule `hold` ACTIVE and puts what was trained into SHADOW: version 1, while version 2
/// answers.
pub async fn in_shadow(developer: &Rest) {
    let body = json!({ "steps": "500", "seed": "1" });
    let started = developer.post(&format!("{ETHICAL}/train"), body).await;
    let run = text(&started.expect("it is trained")["run"]["run_id"]);
    let path = format!("/api/v1/orchestration/training/{run}");
    eventually("the run has ended", || async {
        let run = developer.get(&path).await.expect("the run is there")["run"].take();
        run["state"] == "TRAINING_STATE_COMPLETED"
    })
    .await;
    for body in [
        json!({ "rule": "hold" }),
        json!({ "version": "1", "stage": "AGENT_STAGE_SHADOW" }),
    ] {
        let promoted = developer.post(&format!("{ETHICAL}/promote"), body).await;
        promoted.expect("one person may do that");
    }
}

/// Writes that the mesh's model is calibrated, and that version 1 is better than the rule that answers as version 2.
///
/// # Panics
///
/// If the database of the mesh whose data directory this is cannot be written.
pub async fn evidence(data: &Path, now: Duration) {
    let now_us = i64::try_from(now.as_micros()).expect("a time of this age");
    let finding = json!({
        "uncalibrated": null, "from_us": 0, "to_us": 0, "windows": 1, "calls": 1000, "failed": 0, "rejected": 0,
        "tested_to_us": now_us, "tested_calls": 1000, "errors": null, "parameters": [],
    });
    let against = |name: &str| json!({ "name": name, "mean": 0.0, "difference": { "mean": 0.2, "low": 0.1, "high": 0.3 } });
    let comparison = json!({
        "incumbent": { "version": 2, "rule": "hold" }, "calibration": "shipped", "seeds": 30, "first_seed": 1,
        "mean": 0.2, "with_incumbent": against("version 2, the rule hold"), "with_rules": [against("hold")],
    });
    let calibrated = "INSERT INTO calibrations (number, at_us, body) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2 FROM calibrations";
    let compared =
        "INSERT INTO comparisons (agent_id, version, at_us, body) VALUES ('ethical', 1, $1, $2)";
    let insert = |text, body: Value| Query::new(text).bind(now_us).bind(body.to_string());
    write(
        data,
        [insert(calibrated, finding), insert(compared, comparison)],
    )
    .await;
}

/// Writes that version 1 fell from CANARY to SHADOW, as its steps may lead to; for a mesh that does not run.
///
/// # Panics
///
/// As [`evidence`].
pub async fn fall(data: &Path) {
    let places = "UPDATE agents SET shadow = canary, canary = NULL, updated_us = updated_us + 1 \
                  WHERE id = 'ethical' AND canary = 1";
    let why = "UPDATE trials SET fell = 'an action was not finite' WHERE agent_id = 'ethical' AND version = 1";
    write(data, [Query::new(places), Query::new(why)]).await;
}

async fn write(data: &Path, rows: [Query<'_>; 2]) {
    let place = tars_test_db::of_mesh(data, "orchestration");
    let db = Db::attach(place).await.expect("the database is there");
    let begun = db.write("test.ladder", Isolation::Exclusive).await;
    let mut tx = begun.expect("the database is not busy");
    for row in rows {
        let written = tx.execute(row).await.expect("it is written");
        written.one().expect("one row");
    }
    tx.commit().await.expect("it is stored");
}

/// Proposes the next step of a version, and returns the id of the proposal.
pub async fn propose(developer: &Rest, version: u64) -> String {
    let body = json!({ "agent_id": "ethical", "version": version.to_string() });
    let answer = developer.post("/api/v1/sync/promotions", body).await;
    text(&answer.expect("it is proposed")["proposal"]["update_id"])
}
