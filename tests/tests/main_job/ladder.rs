//! The ladder of an agent that is bound to the live mesh, through the front door.

use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{TestMesh, eventually, reason, refusal};

const CONSENSUS: &str = "/api/v1/orchestration/agents/consensus";
const STEP: &str = "/api/v1/orchestration/step";

/// Trains for a while, which makes a version.
async fn train(developer: &Rest) {
    let started = developer
        .post(&format!("{CONSENSUS}/train"), json!({ "steps": "500" }))
        .await;
    let run = started.unwrap()["run"]["run_id"].clone();
    let path = format!("/api/v1/orchestration/training/{}", run.as_str().unwrap());
    let ended = async || {
        let run = developer.get(&path).await.unwrap()["run"].take();
        run["state"] == "TRAINING_STATE_COMPLETED"
    };
    eventually("the run has ended", ended).await;
}

async fn refused(developer: &Rest, method: &str, body: Value) -> (u16, String) {
    let answer = developer.post(&format!("{CONSENSUS}/{method}"), body).await;
    let (status, body) = refusal(answer);
    (status, reason(&body))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bound_agent_learns_climbs_with_evidence_while_a_rule_answers() {
    let mut config = tars_tests::config();
    config.orchestration.environment = "mesh".to_owned();
    config.orchestration.bound_agents = vec!["consensus".to_owned()];
    config.orchestration.governed_promotion = false;
    let mesh = TestMesh::with(config).await;
    let developer = mesh.user("dev", "developer").await;
    train(&developer).await;
    let state = json!({ "consensus_state": { "state_vector": vec![0.5; 16] } });
    let untrained = refusal(developer.post(STEP, state.clone()).await);
    assert_eq!(
        reason(&untrained.1),
        "UNTRAINED",
        "it has learned, and answers nothing"
    );
    let rule = json!({ "rule": "majority_quorum", "reason": "test" });
    let answer = developer.post(&format!("{CONSENSUS}/promote"), rule).await;
    let agent = answer.unwrap()["agent"].take();
    assert_eq!(
        (&agent["bound"], &agent["rule"]),
        (&json!(true), &json!("majority_quorum"))
    );
    let acted = developer.post(STEP, state).await.unwrap()["agent_actions"]["consensus"].take();
    assert_eq!(
        (&acted["rule"], &acted["weights_version"]),
        (&json!("majority_quorum"), &json!("2"))
    );

    for (body, expected) in [
        (
            json!({ "version": "1", "stage": "AGENT_STAGE_ACTIVE" }),
            (400, "STAGE_ORDER"),
        ),
        (
            json!({ "version": "1", "stage": "AGENT_STAGE_RETIRED" }),
            (400, "INVALID_FIELD"),
        ),
        (
            json!({ "rule": "mpc", "stage": "AGENT_STAGE_CANARY" }),
            (400, "STAGE_ORDER"),
        ),
        (json!({ "rule": "aimd" }), (404, "NOT_FOUND")),
    ] {
        let (status, reason) = refused(&developer, "promote", body.clone()).await;
        assert_eq!((status, reason.as_str()), expected, "{body}");
    }
    let shadow = json!({ "version": "1", "stage": "AGENT_STAGE_SHADOW" });
    let answer = developer
        .post(&format!("{CONSENSUS}/promote"), shadow)
        .await;
    assert_eq!(answer.unwrap()["agent"]["shadow_version"], "1");
    let next = refused(&developer, "promote", json!({ "version": "1" })).await;
    assert_eq!(next, (400, "UNCALIBRATED".to_owned()));
    let listed = developer
        .get(&format!("{CONSENSUS}/versions"))
        .await
        .unwrap();
    let stages: Vec<&Value> = listed["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| &v["stage"])
        .collect();
    assert_eq!(stages, ["AGENT_STAGE_ACTIVE", "AGENT_STAGE_SHADOW"]);
    compared(&developer).await;
    mesh.mesh.stop().await;
}

/// A comparison is stored, whatever it says.
async fn compared(developer: &Rest) {
    let stored = format!("{CONSENSUS}/comparison?version=1");
    assert_eq!(refusal(developer.get(&stored).await).0, 404);
    for (body, status) in [
        (json!({ "version": "1", "seeds": 1 }), 400),
        (json!({ "version": "1", "seeds": 201 }), 400),
        (json!({ "version": "9" }), 404),
    ] {
        assert_eq!(refused(developer, "compare", body).await.0, status);
    }
    let body = json!({ "version": "1", "seeds": 3 });
    let answer = developer.post(&format!("{CONSENSUS}/compare"), body).await;
    let found = answer.unwrap()["comparison"].take();
    assert_eq!(developer.get(&stored).await.unwrap()["comparison"], found);
    assert_eq!(
        (
            &found["seeds"],
            &found["incumbent_version"],
            &found["incumbent_rule"]
        ),
        (&json!(3), &json!("2"), &json!("majority_quorum"))
    );
    let names: Vec<&Value> = found["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert_eq!(names, ["hold", "majority_quorum", "mpc"]);
    for against in found["rules"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&found["incumbent"]])
    {
        let [low, mean, high] = ["low", "difference", "high"].map(|n| against[n].as_f64().unwrap());
        assert!(low <= mean && mean <= high, "{against}");
        let verdict = against["verdict"].as_str().unwrap();
        assert_eq!(verdict == "VERDICT_WORSE", high < 0.0, "{against}");
    }
}
