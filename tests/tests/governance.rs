//! What is live changes in the governed way only: attacks on a change under way, and what whoever
//! decides is shown.

#![allow(clippy::unwrap_used)]

#[path = "governance/lost.rs"]
mod lost;

use serde_json::{Value, json};
use tars::rest::{Rest, RestError};
use tars_proto::orchestration::v1::{
    SettleHyperparametersRequest, orchestration_service_client::OrchestrationServiceClient,
};
use tars_tests::{
    TestMesh, eventually,
    governed::{
        POLICY, agent, approve_and_apply, assessed, final_state, finished, in_state, proposal,
        proposed, proposed_with, study, text,
    },
    reason, refusal,
};

const VERIFYING: &str = "PROPOSAL_STATE_VERIFYING";
const ATTENTION: &str = "PROPOSAL_STATE_NEEDS_ATTENTION";

fn gamma(value: f64) -> Value {
    json!({ "hyperparameters": { "gamma": value }, "reason": "a test" })
}

async fn reload(rest: &Rest, value: f64) -> Result<Value, RestError> {
    rest.post(&format!("{POLICY}/reload"), gamma(value)).await
}

/// Refused because of the change, which is named.
fn held_by(result: Result<Value, RestError>, id: &str) {
    let (status, body) = refusal(result);
    assert_eq!(
        (status, reason(&body).as_str()),
        (400, "CHANGE_IN_PROGRESS"),
        "{body}"
    );
    let details = body["details"].as_array().unwrap();
    assert!(
        details.iter().any(|d| d["resource_name"] == id),
        "the change is named: {body}"
    );
}

/// A finished study's proposal that is being verified, on enough seeds for a test to act meanwhile.
async fn verifying(developer: &Rest, admin: &Rest) -> String {
    let study = study(developer, 1).await;
    finished(developer, &study).await;
    let id = text(&proposed(developer, &study).await["update_id"]);
    approve_and_apply(admin, &id).await;
    let now = in_state(admin, &id, VERIFYING).await;
    assert_eq!(now["state"], VERIFYING, "{now}");
    id
}

/// Lets go of the agent as HyperSync does before it writes the end of a proposal.
async fn let_go(mesh: &TestMesh, id: &str) {
    let mut agents = OrchestrationServiceClient::new(mesh.client("orchestration", "/hypersync"));
    let request = SettleHyperparametersRequest {
        agent_id: "policy".to_owned(),
        change_id: id.to_owned(),
        ..SettleHyperparametersRequest::default()
    };
    agents.settle_hyperparameters(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_proposal_is_verified_nobody_else_changes_the_agent() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let other = study(&developer, 2).await;
    finished(&developer, &other).await;
    let waiting = text(&proposed(&developer, &other).await["update_id"]);
    let body = json!({ "update_id": waiting, "without_assessment": true });
    admin.post("/api/v1/sync/approve", body).await.unwrap();

    let id = verifying(&developer, &admin).await;
    held_by(reload(&developer, 0.91).await, &id);
    held_by(reload(&admin, 0.99).await, &id);
    held_by(
        developer.post(&format!("{POLICY}/train"), json!({})).await,
        &id,
    );
    let path = format!("/api/v1/sync/apply/{waiting}");
    let (_, second) = refusal(admin.post(&path, json!({})).await);
    assert_eq!(
        reason(&second),
        "STALE",
        "the other was made against another version: {second}"
    );
    let third = study(&developer, 1).await;
    finished(&developer, &third).await;
    let body = json!({ "study_id": third });
    held_by(developer.post("/api/v1/sync/propose", body).await, &id);
    let held = agent(&developer).await;
    assert_eq!(held["hold"]["change_id"], id.as_str());
    assert_eq!(
        held["approved_version"], "1",
        "nothing is approved yet: {held}"
    );

    let ended = final_state(&admin, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    let free = agent(&developer).await;
    assert_eq!(
        (&free["hold"], &free["drift"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&free["version"], &free["approved_version"]),
        (&json!("2"), &json!("2"))
    );

    // A direct reload is drift from what was approved.
    reload(&developer, 0.91).await.unwrap();
    let drifted = agent(&developer).await;
    assert_eq!(
        drifted["drift"]["parameters"],
        json!([{ "name": "gamma", "approved": 0.99, "live": 0.91 }])
    );
    assert_eq!(drifted["approved_version"], "2");
    eventually("the drift is in the audit list", || async {
        let path = "/admin/audit/logs?service=orchestration&page_size=100";
        let events = admin.get(path).await.unwrap();
        let mut all = events["events"].as_array().unwrap().iter();
        all.any(|e| e["event_type"] == "agent.drift" && e["details"]["parameters"] == "gamma")
    })
    .await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approver_is_shown_the_measurement_and_whether_it_is_stale() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let other = mesh.user("other", "developer").await;
    let viewer = mesh.user("eve", "viewer").await;
    let study = study(&developer, 1).await;
    finished(&developer, &study).await;
    // On fewer seeds it may look worse by chance.
    let body = json!({ "study_id": study, "verification_seeds": 16, "note": "learns faster" });
    let made = developer
        .post("/api/v1/sync/propose", body.clone())
        .await
        .unwrap();
    let id = text(&made["proposal"]["update_id"]);
    assert_eq!(
        made["proposal"]["assessment_state"],
        "ASSESSMENT_STATE_PENDING"
    );
    let early = json!({ "update_id": id });
    let (status, early) = refusal(admin.post("/api/v1/sync/approve", early).await);
    assert_eq!(
        (status, reason(&early).as_str()),
        (400, "ASSESSMENT_PENDING")
    );
    assert!(text(&early["message"]).contains("without_assessment"));
    let shown = assessed(&admin, &id).await;
    assert_eq!(shown["assessment_state"], "ASSESSMENT_STATE_COMPLETED");
    let a = &shown["assessment"];
    let number = |name: &str| a[name].as_f64().unwrap();
    assert!(
        number("baseline_return") < number("candidate_return"),
        "{a}"
    );
    let difference = number("candidate_return") - number("baseline_return");
    assert!((number("improvement") - difference).abs() < 1e-9, "{a}");
    assert!(number("improvement_low") <= difference && difference <= number("improvement_high"));
    assert_eq!(a["seeds"].as_array().unwrap().len(), 16);
    let planned = shown["verification_seeds"].as_array().unwrap();
    assert_eq!(planned.len(), 16);
    assert!(
        planned
            .iter()
            .all(|s| !a["seeds"].as_array().unwrap().contains(s))
    );
    assert_eq!(
        (&shown["stale"], &shown["live_version"]),
        (&json!(false), &json!("1"))
    );
    assert_eq!(shown["note"], "learns faster");
    let change = |shown: &Value| {
        let changes = shown["changes"].as_array().unwrap().clone();
        changes.into_iter().find(|c| c["name"] == "gamma").unwrap()
    };
    let expected = json!({ "name": "gamma", "current": 0.95, "live": 0.95, "proposed": 0.99 });
    assert_eq!(change(&shown), expected);

    // The same trial is not proposed twice while one is open; the open one is named.
    let (status, twice) = refusal(developer.post("/api/v1/sync/propose", body.clone()).await);
    assert_eq!((status, reason(&twice).as_str()), (409, "ALREADY_EXISTS"));
    assert!(twice.to_string().contains(&id), "{twice}");
    let racing = (0..8).map(|_| developer.post("/api/v1/sync/propose", body.clone()));
    for raced in futures_util::future::join_all(racing).await {
        assert_eq!(refusal(raced).0, 409);
    }

    // The agent moves away: stale, before anybody decides.
    reload(&developer, 0.91).await.unwrap();
    let stale = proposal(&viewer, &id).await;
    assert_eq!(
        (&stale["stale"], &stale["live_version"]),
        (&json!(true), &json!("2"))
    );
    assert_eq!(change(&stale)["live"], 0.91);
    let listed = admin.get("/api/v1/sync/pending").await.unwrap();
    assert_eq!(listed["proposals"][0]["stale"], true);
    let approve = json!({ "update_id": id });
    let (status, refused) = refusal(admin.post("/api/v1/sync/approve", approve).await);
    assert_eq!((status, reason(&refused).as_str()), (400, "STALE"));

    // Its proposer takes it back, or who may approve; nobody else.
    let withdraw = format!("/api/v1/sync/proposals/{id}/withdraw");
    assert_eq!(refusal(viewer.post(&withdraw, json!({})).await).0, 403);
    let (status, foreign) = refusal(other.post(&withdraw, json!({})).await);
    assert_eq!((status, reason(&foreign).as_str()), (403, "NOT_YOURS"));
    let gone = developer
        .post(&withdraw, json!({ "reason": "stale" }))
        .await
        .unwrap();
    assert_eq!(gone["proposal"]["state"], "PROPOSAL_STATE_WITHDRAWN");
    let (_, again) = refusal(developer.post(&withdraw, json!({})).await);
    assert_eq!(reason(&again), "WRONG_STATE");
    let anew = proposed_with(&developer, &study, 64).await;
    let id = text(&anew["update_id"]);
    // Who does not wait for the assessment says so, and it stays with the proposal.
    let body = json!({ "update_id": id, "without_assessment": true });
    let hasty = admin.post("/api/v1/sync/approve", body).await.unwrap();
    assert_eq!(hasty["proposal"]["approved_without_assessment"], true);
    eventually("the audit list says it", || async {
        let path = "/admin/audit/logs?event_type=admin.hypersync.approve";
        let events = admin.get(path).await.unwrap();
        let newest = events["events"][0].clone();
        newest["resource"] == id.as_str() && newest["details"]["assessment"] == "pending"
    })
    .await;
    // What is stale once it is approved is not applied.
    reload(&developer, 0.92).await.unwrap();
    let (_, refused) = refusal(
        admin
            .post(&format!("/api/v1/sync/apply/{id}"), json!({}))
            .await,
    );
    assert_eq!(reason(&refused), "STALE");
    let withdraw = format!("/api/v1/sync/proposals/{id}/withdraw");
    let gone = admin.post(&withdraw, json!({})).await;
    let gone = gone.expect("who may approve closes it")["proposal"].clone();
    assert_eq!(gone["assessment_state"], "ASSESSMENT_STATE_NOT_MADE");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_does_not_wait_behind_long_trainings_and_searches() {
    let mesh = TestMesh::start().await;
    let (admin, developer) = (mesh.admin().await, mesh.user("dev", "developer").await);
    let study = study(&developer, 1).await;
    finished(&developer, &study).await;
    let id = text(&proposed(&developer, &study).await["update_id"]);
    let mut long = Vec::new();
    for _ in 0..4 {
        let body = json!({ "n_trials": 100, "steps": "10000000", "pruner_type": "none" });
        let started = developer.post("/api/v1/optimize", body).await.unwrap();
        long.push(text(&started["optimization_id"]));
    }
    let train = json!({ "steps": "10000000" });
    let run = developer
        .post(&format!("{POLICY}/train"), train)
        .await
        .unwrap();
    let run = text(&run["run"]["run_id"]);
    let running = format!("/api/v1/orchestration/training/{run}");
    eventually("the training has a learner", || async {
        developer.get(&running).await.unwrap()["run"]["state"] == "TRAINING_STATE_RUNNING"
    })
    .await;
    approve_and_apply(&admin, &id).await;
    let ended = final_state(&admin, &id).await;
    assert!(ended["verification"].is_object(), "{ended}");
    let still = developer.get(&running).await.unwrap();
    assert_eq!(still["run"]["state"], "TRAINING_STATE_RUNNING");
    let cancelled = developer
        .post(&format!("{running}/cancel"), json!({}))
        .await
        .unwrap();
    assert_eq!(cancelled["run"]["state"], "TRAINING_STATE_CANCELLED");
    for study in long {
        let path = format!("/api/v1/studies/{study}/cancel");
        developer.post(&path, json!({})).await.unwrap();
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_not_zero_and_no_zero_means_a_default() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let space = json!([{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }]);
    let game = json!({ "players": [
        { "name": "a", "actions": ["l", "r"], "payoffs": [1, 0, 0, 1] },
        { "name": "b", "actions": ["l", "r"], "payoffs": [1, 0, 0, 1] },
    ] });
    let nash = |options: Value| {
        let mut body = game.clone();
        body["options"] = options;
        body
    };
    let uuid = "0197a4c8-0000-7000-8000-000000000000";
    let optimize = "/api/v1/optimize";
    let studies = "/api/v1/studies";
    let train = format!("{POLICY}/train");
    let reloads = format!("{POLICY}/reload");
    let step = "/api/v1/orchestration/step";
    let state = json!({ "agent_type": "", "state_vector": [0, 0, 0, 0] });
    let rank = "/api/v1/orchestration/nash/rank";
    for (path, body, field) in [
        (optimize, json!({ "n_trials": 0 }), "n_trials"),
        (optimize, json!({ "n_trials": 1001 }), "n_trials"),
        (optimize, json!({ "steps": "0" }), "steps"),
        (optimize, json!({ "agent_id": "" }), "agent_id"),
        (optimize, json!({ "agent_type": "" }), "agent_type"),
        (optimize, json!({ "sampler_type": "" }), "sampler_type"),
        (optimize, json!({ "pruner_type": "" }), "pruner_type"),
        (
            studies,
            json!({ "search_space": space, "n_trials": 0 }),
            "n_trials",
        ),
        (
            studies,
            json!({ "search_space": space, "sampler_type": "" }),
            "sampler_type",
        ),
        (&train, json!({ "steps": "0" }), "steps"),
        (
            &reloads,
            json!({ "hyperparameters": { "gamma": 0.9 }, "expected_version": "0" }),
            "expected_version",
        ),
        (
            step,
            json!({ "policy_state": state }),
            "policy_state.agent_type",
        ),
        (
            "/api/v1/sync/propose",
            json!({ "study_id": uuid, "verification_seeds": 0 }),
            "verification_seeds",
        ),
        (
            "/api/v1/sync/propose",
            json!({ "study_id": uuid, "verification_seeds": 1 }),
            "verification_seeds",
        ),
        (
            "/api/v1/orchestration/nash",
            nash(json!({ "rounds": "0" })),
            "options.rounds",
        ),
        (rank, json!({ "game": game, "population": 0 }), "population"),
        (rank, json!({ "game": game, "intensity": 0 }), "intensity"),
    ] {
        let (status, refused) = refusal(developer.post(path, body.clone()).await);
        assert_eq!(status, 400, "{path} {body}");
        assert!(
            refused.to_string().contains(field),
            "{path} {body}: {refused}"
        );
    }
    assert_eq!(
        agent(&developer).await["version"],
        "1",
        "nothing of it was done"
    );

    // A seed that nobody gave is drawn and shown; one that was given is what it is.
    let made = |seed: Value| {
        let mut body = json!({ "search_space": space, "n_trials": 1 });
        if !seed.is_null() {
            body["seed"] = seed;
        }
        let developer = &developer;
        async move { developer.post("/api/v1/studies", body).await.unwrap()["study"].clone() }
    };
    let point = |study: Value| {
        let path = format!("/api/v1/studies/{}/ask", text(&study["study_id"]));
        let developer = &developer;
        async move {
            developer.post(&path, json!({})).await.unwrap()["trial"]["parameters"]["x"].clone()
        }
    };
    let (one, two) = (made(Value::Null).await, made(Value::Null).await);
    assert_ne!(one["seed"], two["seed"]);
    assert_ne!(point(one).await, point(two).await);
    let (zero, again) = (made(json!("0")).await, made(json!("0")).await);
    assert_eq!((&zero["seed"], &again["seed"]), (&json!("0"), &json!("0")));
    assert_eq!(point(zero).await, point(again).await);
    let most = made(json!("18446744073709551615")).await;
    assert_eq!(most["seed"], "18446744073709551615");
    assert_eq!(most["n_trials"], 1);
    assert!(
        most.get("steps").is_none_or(Value::is_null),
        "the caller runs the trials"
    );

    // The page's size alone has a default for zero.
    let listed = developer.get("/api/v1/studies?page_size=0").await.unwrap();
    assert_eq!(listed["studies"].as_array().unwrap().len(), 5);
    mesh.mesh.stop().await;
}
