//! Versions that somebody else moved, and proposals that are lost.

use super::*;
use tars_proto::orchestration::v1::HoldAgentRequest;

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_lost_asks_a_person_and_the_candidate_does_not_stay() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let before = agent(&admin).await["hyperparameters"].clone();
    let id = verifying(&developer, &admin).await;

    // Only a person who may release the agent gets past the hold, and only by naming the change.
    let release = format!("{POLICY}/release");
    let body = |change: &str| json!({ "change_id": change, "reason": "a test" });
    assert_eq!(refusal(developer.post(&release, body(&id)).await).0, 403);
    let (_, wrong) = refusal(admin.post(&release, body("another")).await);
    assert_eq!(reason(&wrong), "NOT_HELD");
    admin.post(&release, body(&id)).await.unwrap();
    reload(&developer, 0.91).await.unwrap();

    let asks = in_state(&admin, &id, ATTENTION).await;
    assert_eq!(asks["state"], ATTENTION, "{asks}");
    assert!(
        text(&asks["attention"]).contains("RESOLUTION_ROLL_BACK"),
        "{asks}"
    );
    let resolve = format!("/api/v1/sync/proposals/{id}/resolve");
    let roll_back = json!({ "resolution": "RESOLUTION_ROLL_BACK", "reason": "as it was" });
    assert_eq!(
        refusal(developer.post(&resolve, roll_back.clone()).await).0,
        403
    );
    for bad in [json!({}), json!({ "resolution": "RESOLUTION_ROLL_BACK" })] {
        assert_eq!(
            refusal(admin.post(&resolve, bad.clone()).await).0,
            400,
            "{bad}"
        );
    }
    // It is still the change of this agent: nothing else begins, and nobody releases it. That is so
    // after a restart, too, and where the stop came between the letting go and the end.
    let held = agent(&admin).await["hold"].clone();
    assert_eq!(
        (&held["change_id"], &held["awaits_person"]),
        (&json!(id), &json!(true))
    );
    let_go(&mesh, &id).await;
    assert_eq!(agent(&admin).await["hold"], Value::Null);
    let mesh = mesh.restart().await;
    let (admin, developer) = (mesh.admin().await, mesh.login("dev").await);
    eventually("the hold is taken again", || async {
        agent(&admin).await["hold"]["awaits_person"] == true
    })
    .await;
    held_by(reload(&developer, 0.92).await, &id);
    held_by(
        developer.post(&format!("{POLICY}/train"), json!({})).await,
        &id,
    );
    let other = study(&developer, 1).await;
    finished(&developer, &other).await;
    let body_of = json!({ "study_id": other });
    held_by(developer.post("/api/v1/sync/propose", body_of).await, &id);
    let (_, kept) = refusal(admin.post(&release, body(&id)).await);
    assert_eq!(reason(&kept), "NEEDS_ATTENTION", "{kept}");
    let (_, kept) = refusal(release_lost(&admin, &id).await);
    assert_eq!(reason(&kept), "NOT_LOST", "{kept}");
    admin.post(&resolve, roll_back.clone()).await.unwrap();
    let ended = final_state(&admin, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_ROLLED_BACK", "{ended}");
    let after = agent(&admin).await;
    assert_eq!(after["hyperparameters"], before);
    assert_eq!(
        (&after["hold"], &after["drift"]),
        (&Value::Null, &Value::Null)
    );
    let (_, again) = refusal(admin.post(&resolve, roll_back).await);
    assert_eq!(reason(&again), "WRONG_STATE");
    mesh.mesh.stop().await;
}

/// Asks HyperSync to let go of the agent, as if the proposal were lost.
async fn release_lost(rest: &Rest, id: &str) -> Result<Value, RestError> {
    let body = json!({ "agent_id": "policy", "reason": "a test" });
    rest.post(&format!("/api/v1/sync/proposals/{id}/release"), body)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_waits_for_a_person_about_a_lost_proposal_is_released() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let [lost, other] = [1, 2].map(|n| format!("0190a1b2-0000-7000-8000-00000000000{n}"));
    let mut agents = OrchestrationServiceClient::new(mesh.client("orchestration", "/hypersync"));
    let hold = HoldAgentRequest {
        agent_id: "policy".to_owned(),
        change_id: lost.clone(),
        fencing_token: 1,
        ..HoldAgentRequest::default()
    };
    agents.hold_agent(hold).await.unwrap();
    held_by(reload(&developer, 0.92).await, &lost);
    let body = json!({ "change_id": lost, "reason": "a test" });
    let (_, kept) = refusal(admin.post(&format!("{POLICY}/release"), body).await);
    assert_eq!(reason(&kept), "NEEDS_ATTENTION", "{kept}");

    let (status, _) = refusal(release_lost(&developer, &lost).await);
    assert_eq!(status, 403);
    let (_, not_held) = refusal(release_lost(&admin, &other).await);
    assert_eq!(reason(&not_held), "NOT_HELD", "{not_held}");
    release_lost(&admin, &lost).await.unwrap();
    assert_eq!(agent(&admin).await["hold"], Value::Null);
    reload(&developer, 0.92).await.unwrap();
    let (_, again) = refusal(release_lost(&admin, &lost).await);
    assert_eq!(reason(&again), "NOT_HELD", "{again}");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_still_live_is_taken_back_whoever_moved_the_version() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let before = agent(&admin).await["hyperparameters"].clone();
    let id = verifying(&developer, &admin).await;
    let body = json!({ "change_id": id, "reason": "a test" });
    admin
        .post(&format!("{POLICY}/release"), body)
        .await
        .unwrap();
    let body = json!({ "hyperparameters": { "epsilon_end": 0.05 } });
    developer
        .post(&format!("{POLICY}/reload"), body)
        .await
        .unwrap();

    let ended = final_state(&admin, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_ROLLED_BACK", "{ended}");
    let after = agent(&admin).await["hyperparameters"].clone();
    for (name, value) in before.as_object().unwrap() {
        let expected = if name == "epsilon_end" {
            &json!(0.05)
        } else {
            value
        };
        assert_eq!(&after[name], expected, "{name}");
    }
    mesh.mesh.stop().await;
}
