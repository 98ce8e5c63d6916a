//! A version of a bound agent that climbs by proposals, through the front door.

use serde_json::{Value, json};
use tars::rest::Rest;
use tars_runtime::clock::Clock;
use tars_tests::{
    TestMesh,
    governed::{assessed, final_state, in_state},
    ladder::{ETHICAL, evidence, in_shadow, propose, step, steps},
    reason, refusal,
};

const PROMOTIONS: &str = "/api/v1/sync/promotions";

async fn refused(rest: &Rest, path: &str, body: Value) -> (u16, String) {
    let (status, body) = refusal(rest.post(path, body).await);
    (status, reason(&body))
}

/// A mesh whose ethical agent is bound to it, and answers everybody by its version in CANARY.
async fn bound() -> TestMesh {
    let mut config = tars_tests::config();
    config.orchestration.environment = "mesh".to_owned();
    config.orchestration.bound_agents = vec!["ethical".to_owned()];
    config.orchestration.canary_percent = 100;
    // No window ends during the test.
    config.orchestration.calibration_seconds = 3600;
    config.hypersync.verification_steps = 20;
    config.hypersync.verification_seconds = 3600;
    TestMesh::with(config).await
}

/// Approves and applies a proposal, and steps as often as it takes until it is verified, and no more: each replica
/// stores what it counts 20 steps at a time.
async fn climbs(admin: &Rest, developer: &Rest, id: &str) -> Value {
    let body = json!({ "update_id": id, "reason": "it is as good" });
    admin.post("/api/v1/sync/approve", body).await.unwrap();
    let apply = format!("/api/v1/sync/apply/{id}");
    admin.post(&apply, json!({})).await.unwrap();
    let verifying = in_state(admin, id, "PROPOSAL_STATE_VERIFYING").await;
    assert_eq!(
        verifying["state"], "PROPOSAL_STATE_VERIFYING",
        "{verifying}"
    );
    for _ in 0..100 {
        step(developer).await;
    }
    final_state(admin, id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_climbs_from_shadow_to_active_by_proposals() {
    let mesh = bound().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    in_shadow(&developer).await;
    let promote = format!("{ETHICAL}/promote");
    let next = json!({ "version": "1" });
    let direct = refused(&developer, &promote, next.clone()).await;
    assert_eq!(direct, (400, "GOVERNED".to_owned()));
    let ask = |version: &str, stage: &str| json!({ "agent_id": "ethical", "version": version, "to_stage": stage });
    for (body, expected) in [
        (ask("1", "AGENT_STAGE_CANARY"), (400, "UNCALIBRATED")),
        (ask("1", "AGENT_STAGE_ACTIVE"), (400, "STAGE_ORDER")),
        (ask("1", "AGENT_STAGE_SIM"), (400, "STAGE_ORDER")),
        (ask("2", "AGENT_STAGE_CANARY"), (400, "STAGE_ORDER")),
        (ask("9", "AGENT_STAGE_CANARY"), (404, "NOT_FOUND")),
        (
            json!({ "agent_id": "policy", "version": "1" }),
            (400, "NOT_BOUND"),
        ),
    ] {
        let (status, reason) = refused(&developer, PROMOTIONS, body.clone()).await;
        assert_eq!((status, reason.as_str()), expected, "{body}");
    }

    evidence(&mesh.config.data.dir, Clock::system().now()).await;
    let id = propose(&developer, 1).await;
    let shown = assessed(&admin, &id).await;
    assert_eq!(
        shown["assessment_state"], "ASSESSMENT_STATE_COMPLETED",
        "{shown}"
    );
    let promotion = &shown["promotion"];
    assert_eq!(
        (
            &promotion["from_stage"],
            &promotion["to_stage"],
            &promotion["stage"]
        ),
        (
            &json!("AGENT_STAGE_SHADOW"),
            &json!("AGENT_STAGE_CANARY"),
            &json!("AGENT_STAGE_SHADOW")
        )
    );
    assert_eq!(promotion["incumbent_rule"], "hold");
    assert_eq!(promotion["comparison"]["seeds"], 30);
    assert!(
        shown["new_params"].is_null() && shown["stale"] == false,
        "{shown}"
    );
    let own = json!({ "update_id": id });
    assert_eq!(
        refused(&developer, "/api/v1/sync/approve", own).await.0,
        403
    );
    let twice = refused(&developer, PROMOTIONS, ask("1", "AGENT_STAGE_CANARY")).await;
    assert_eq!(twice, (409, "ALREADY_EXISTS".to_owned()));
    let ended = climbs(&admin, &developer, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    let verification = &ended["promotion"]["verification"];
    let answered: u64 = verification["steps"].as_str().unwrap().parse().unwrap();
    assert!(answered >= 20, "{ended}");
    let agent = developer.get(ETHICAL).await.unwrap()["agent"].take();
    assert_eq!(
        (&agent["canary_version"], &agent["hold"]),
        (&json!("1"), &Value::Null)
    );

    let early = refused(&developer, PROMOTIONS, ask("1", "AGENT_STAGE_ACTIVE")).await;
    assert_eq!(early, (400, "CANARY_UNPROVEN".to_owned()));
    // Each replica stores them 20 at a time.
    for _ in 0..500 {
        assert_eq!(step(&developer).await["stage"], "AGENT_STAGE_CANARY");
    }
    let id = propose(&developer, 1).await;
    assessed(&admin, &id).await;
    let ended = climbs(&admin, &developer, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    assert_eq!(ended["promotion"]["applied_version"], "3");
    let acted = step(&developer).await;
    assert_eq!(
        (
            &acted["stage"],
            &acted["weights_version"],
            acted["rule"].as_str().unwrap_or_default()
        ),
        (&json!("AGENT_STAGE_ACTIVE"), &json!("3"), "")
    );
    // The way back is open to one person.
    let back = developer
        .post(&format!("{ETHICAL}/rollback"), json!({}))
        .await;
    assert_eq!(back.unwrap()["agent"]["rule"], "hold");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_whose_agent_has_changed_is_stale_and_one_that_a_gate_refuses_fails() {
    let mesh = bound().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    in_shadow(&developer).await;
    evidence(&mesh.config.data.dir, Clock::system().now()).await;
    let id = propose(&developer, 1).await;
    assessed(&admin, &id).await;
    let approve = json!({ "update_id": id });
    admin.post("/api/v1/sync/approve", approve).await.unwrap();
    // What answers is replaced, and the version was not compared with that.
    let promote = format!("{ETHICAL}/promote");
    let other = json!({ "rule": "static_quotas" });
    developer.post(&promote, other).await.unwrap();
    let apply = format!("/api/v1/sync/apply/{id}");
    let stale = refused(&admin, &apply, json!({})).await;
    assert_eq!(stale, (400, "STALE".to_owned()));
    let shown = in_state(&admin, &id, "PROPOSAL_STATE_APPROVED").await;
    assert_eq!(shown["stale"], true, "{shown}");
    let withdraw = format!("/api/v1/sync/proposals/{id}/withdraw");
    developer.post(&withdraw, json!({})).await.unwrap();

    // The missing comparison is made as the assessment. Whatever it says, the gates bind when it is applied.
    let id = propose(&developer, 1).await;
    let shown = assessed(&admin, &id).await;
    assert_eq!(shown["promotion"]["incumbent_rule"], "static_quotas");
    assert_eq!(
        shown["assessment_state"], "ASSESSMENT_STATE_COMPLETED",
        "{shown}"
    );
    assert_eq!(shown["promotion"]["comparison"]["seeds"], 30);
    let low = shown["promotion"]["comparison"]["incumbent"]["low"].as_f64();
    let approve = json!({ "update_id": id });
    admin.post("/api/v1/sync/approve", approve).await.unwrap();
    admin
        .post(&format!("/api/v1/sync/apply/{id}"), json!({}))
        .await
        .unwrap();
    let load = steps(&developer);
    let ended = final_state(&admin, &id).await;
    load.abort();
    let agent = developer.get(ETHICAL).await.unwrap()["agent"].take();
    assert_eq!(agent["hold"], Value::Null);
    match ended["state"].as_str().unwrap() {
        "PROPOSAL_STATE_COMPLETED" => {
            assert!(low.is_some_and(|low| low >= 0.0), "a gate bound: {low:?}");
            assert_eq!(agent["canary_version"], "1");
        }
        "PROPOSAL_STATE_FAILED" => {
            let error = ended["error_message"].as_str().unwrap();
            assert!(error.starts_with("NOT_BETTER"), "{ended}");
            assert_eq!(agent["shadow_version"], "1", "nothing has changed");
        }
        other => panic!("{other}: {ended} {low:?}"),
    }
    mesh.mesh.stop().await;
}
