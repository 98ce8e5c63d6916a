//! Sessions over the wire: the four agents step a world of the mesh, and how far they are from an equilibrium.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{TestMesh, config, eventually, reason, refusal};

const SESSIONS: &str = "/api/v1/orchestration/sessions";
const STEP: &str = "/api/v1/orchestration/step";
const AGENTS: [&str; 4] = ["consensus", "ethical", "policy", "resource"];

async fn mesh() -> TestMesh {
    let mut config = config();
    config.orchestration.environment = "mesh".to_owned();
    TestMesh::with(config).await
}

async fn create(rest: &Rest) -> String {
    let created = rest.post(SESSIONS, json!({ "seed": "11" })).await.unwrap();
    let id = created["session"]["session_id"].as_str();
    id.unwrap().to_owned()
}

fn step_of(session: &str) -> Value {
    json!({ "session_id": session })
}

async fn step(rest: &Rest, body: Value) -> Value {
    rest.post(STEP, body).await.unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_living_agents_step_a_world_and_are_rewarded() {
    let mesh = mesh().await;
    let ada = mesh.user("ada", "developer").await;
    let id = create(&ada).await;
    let path = format!("{SESSIONS}/{id}");
    let session = ada.get(&path).await.unwrap()["session"].clone();
    assert_eq!(
        (&session["environment"], &session["seed"]),
        (&json!("mesh"), &json!("11"))
    );
    assert_eq!(session["calibration"], "shipped");
    let seen = session["observations"].as_object().unwrap();
    assert!(seen.keys().eq(AGENTS));
    let widths = AGENTS.map(|agent| seen[agent]["values"].as_array().unwrap().len());
    assert_eq!(widths, [16, 24, 32, 20]);

    let stepped = step(&ada, step_of(&id)).await;
    let world = &stepped["world"];
    assert_eq!(
        (&world["step"], &world["episode_step"]),
        (&json!("1"), &json!("1"))
    );
    assert_eq!(
        (&world["terminated"], &world["truncated"]),
        (&json!(false), &json!(false))
    );
    for agent in AGENTS {
        let outcome = &world["agents"][agent];
        assert_eq!(outcome["reward"], stepped["agent_rewards"][agent]);
        let action = &stepped["agent_actions"][agent];
        assert_ne!(action["rule"], "", "nobody is trained yet");
        assert_eq!(action["weights_version"], "0");
    }
    let total = &world["global_reward"];
    assert_eq!(total["value"], stepped["global_reward"]);
    let parts = total["contributions"].as_object().unwrap().values();
    let sum: f64 = parts.map(number).sum();
    assert!((sum - number(&total["weighted_sum"])).abs() < 1e-9);
    let game = &world["game"];
    assert_eq!(
        (&game["joint_actions"], &game["rollouts"]),
        (&json!("625"), &json!(8))
    );
    let distance = &stepped["nash_convergence_distance"];
    assert!(number(&distance["low"]) <= number(&distance["value"]));
    for player in game["players"].as_array().unwrap() {
        let actions = player["actions"].as_array().unwrap();
        assert!(
            actions.contains(&player["own_action"]) && actions.contains(&player["hold_action"])
        );
    }

    // Measuring a game takes a permission that a viewer does not hold.
    let viewer = mesh.user("vic", "viewer").await;
    let own = create(&viewer).await;
    let unmeasured = step(&viewer, step_of(&own)).await;
    assert_eq!(unmeasured["world"]["step"], "1");
    assert!(unmeasured["world"]["game"].is_null(), "{unmeasured}");

    let quick = json!({ "session_id": id, "game": "STEP_GAME_ACTION_VALUES", "expected_steps": "1",
        "reward": { "normalise": true, "causal_impact": 0.5 } });
    let second = step(&ada, quick.clone()).await;
    assert_eq!(second["world"]["step"], "2");
    assert_eq!(second["world"]["global_reward"]["causal_modifier"], 1.5);
    for absent in [
        &second["nash_convergence_distance"],
        &second["world"]["game"],
    ] {
        assert!(absent.is_null(), "{absent}");
    }
    let (status, refused) = refusal(ada.post(STEP, quick).await);
    assert_eq!((status, reason(&refused).as_str()), (409, "CONFLICT"));
    let listed = ada.get(&format!("{path}/steps")).await.unwrap();
    let ids = [&second["step_id"], &stepped["step_id"]];
    let steps = listed["steps"].as_array().unwrap();
    assert!(steps.iter().map(|one| &one["step_id"]).eq(ids));

    follows(&ada, &id).await;
    mesh.mesh.stop().await;
}

/// A watcher gets each step, and its stream ends with the session.
async fn follows(ada: &Rest, id: &str) {
    let path = format!("{SESSIONS}/{id}");
    let mut seen = Vec::new();
    let events = format!("{path}/events");
    let followed = ada.follow(&events, |item| {
        seen.push(item["sequence"].clone());
        !item["ended"].is_object()
    });
    let steps = async {
        let body = json!({ "session_id": id, "game": "STEP_GAME_ACTION_VALUES" });
        step(ada, body).await;
        ada.post(&format!("{path}/close"), json!({})).await.unwrap();
    };
    let (followed, ()) = tokio::join!(followed, steps);
    followed.unwrap();
    assert_eq!(seen, ["1", "2", "3", "4"]);
    let (status, refused) = refusal(ada.post(STEP, step_of(id)).await);
    assert_eq!((status, reason(&refused).as_str()), (400, "SESSION_CLOSED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_others_and_impossible_steps_are_refused() {
    let mesh = mesh().await;
    let (ada, eve) = (
        mesh.user("ada", "viewer").await,
        mesh.user("eve", "developer").await,
    );
    let id = create(&ada).await;
    let path = format!("{SESSIONS}/{id}");
    for path in [
        path.clone(),
        format!("{path}/steps"),
        format!("{path}/events"),
    ] {
        let (status, body) = refusal(eve.get(&path).await);
        assert_eq!(
            (status, reason(&body).as_str()),
            (404, "NOT_FOUND"),
            "{path}"
        );
    }
    let measure = "/api/v1/orchestration/nash/agents";
    for (path, body) in [
        (STEP, step_of(&id)),
        (measure, step_of(&id)),
        (&format!("{path}/close"), json!({})),
    ] {
        let (status, _) = refusal(eve.post(path, body).await);
        assert_eq!(status, 404, "{path}");
    }
    assert_eq!(eve.get(SESSIONS).await.unwrap()["sessions"], json!([]));
    let (status, _) = refusal(ada.post(measure, json!({})).await);
    assert_eq!(status, 403, "a viewer measures nothing");

    let with = |field: &str, value: Value| {
        let mut body = step_of(&id);
        body[field] = value;
        body
    };
    for (field, value) in [
        ("policy_state", json!({ "state_vector": [0.0] })),
        ("reward", json!({ "confidence": { "policy": 1.5 } })),
        ("reward", json!({ "confidence": { "nobody": 0.5 } })),
        ("reward", json!({ "causal_impact": 0.6 })),
        ("regret_tolerance", json!(-0.1)),
        ("game", json!("STEP_GAME_UNKNOWN")),
        ("session_id", json!("mine")),
    ] {
        let (status, body) = refusal(ada.post(STEP, with(field, value)).await);
        assert_eq!(status, 400, "{field}: {body}");
    }
    let alone = json!({ "policy_state": { "state_vector": vec![0.0; 32] }, "expected_steps": "0" });
    assert_eq!(refusal(ada.post(STEP, alone).await).0, 400);
    for (field, value) in [("environment", "nowhere"), ("environment", "cartpole")] {
        let (status, _) = refusal(ada.post(SESSIONS, json!({ field: value })).await);
        assert_eq!(status, 400, "{value}");
    }
    assert_eq!(ada.get(&path).await.unwrap()["session"]["steps"], "0");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_distance_from_an_equilibrium_is_measured_and_exported() {
    let mesh = mesh().await;
    let developer = mesh.user("dev", "developer").await;
    let name = "nash_convergence_distance{";
    let exported = async || {
        let all = mesh.metrics().await;
        all.iter().any(|text| text.contains(name))
    };
    assert!(!exported().await, "nothing was measured yet");
    let other = json!({ "seed": "5", "warm_up_steps": 10, "rollouts": 4 });
    let measured = developer.post("/api/v1/orchestration/nash/agents", other);
    assert_eq!(measured.await.unwrap()["game"]["rollouts"], 4);
    assert!(!exported().await, "it is another game at each measurement");
    let asked = json!({ "seed": "1", "warm_up_steps": 60, "rollouts": 8 });
    let measured = developer.post("/api/v1/orchestration/nash/agents", asked);
    let measured = measured.await.unwrap();
    assert_eq!(
        (&measured["environment"], &measured["seed"]),
        (&json!("mesh"), &json!("1"))
    );
    let (game, found) = (&measured["game"], &measured["equilibrium"]);
    assert_eq!(game["rollouts"], 8);
    let named = [&measured["calibration"], &game["calibration"]];
    assert_eq!(named, ["shipped", "shipped"], "{measured}");
    assert_eq!(found["converged"], true, "{found}");
    for agent in AGENTS {
        let mix = found["strategy_profile"][agent]["probabilities"].as_array();
        let sum: f64 = mix.unwrap().iter().map(number).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
    let regrets = game["players"].as_array().unwrap().iter();
    let regrets: f64 = regrets.map(|player| number(&player["regret"])).sum();
    let distance = number(&game["nash_convergence_distance"]["value"]);
    assert!((regrets - distance).abs() < 1e-6);
    eventually("it is exported", exported).await;
    let all = "/api/v1/orchestration/metrics/training/nash/visualization?all=true";
    let history = developer.get(all).await.unwrap()["convergence_history"].take();
    let history = history.as_array().unwrap();
    assert!(history.len() >= 2 && history.iter().all(|of| of["calibration"] == "shipped"));
    let agents = developer.get("/api/v1/orchestration/agents/state").await;
    let agents = agents.unwrap()["agents"].take();
    let mut agents = agents.as_array().unwrap().iter();
    assert!(agents.all(|agent| agent["calibration"] == "shipped"));

    let id = create(&developer).await;
    let both = json!({ "session_id": id, "seed": "1" });
    let refused = developer.post("/api/v1/orchestration/nash/agents", both);
    assert_eq!(refusal(refused.await).0, 400);
    mesh.mesh.stop().await;
}
