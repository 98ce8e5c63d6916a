//! The metrics of training: what is said of an agent before it has learned anything, and after.

use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{TestMesh, refusal};

const METRICS: &str = "/api/v1/orchestration/metrics/training";

async fn train(rest: &Rest, agent: &str) -> String {
    let path = format!("/api/v1/orchestration/agents/{agent}/train");
    let body = json!({ "steps": "6000", "seed": "1" });
    let run = rest.post(&path, body).await.unwrap()["run"]["run_id"].take();
    let id = run.as_str().unwrap().to_owned();
    let events = format!("/api/v1/orchestration/training/{id}/events");
    rest.follow(&events, |_| true).await.unwrap();
    id
}

async fn get(rest: &Rest, path: &str) -> Value {
    rest.get(&format!("{METRICS}/{path}")).await.unwrap()
}

fn names(series: &Value) -> Vec<&str> {
    let all = series.as_array().unwrap().iter();
    all.map(|series| series["name"].as_str().unwrap()).collect()
}

fn points(of: &Value) -> &Vec<Value> {
    of.as_array().unwrap()
}

/// Nothing is made up for an agent that has not learned.
async fn check_untrained(rest: &Rest) {
    let rewards = get(rest, "policy/rewards").await;
    assert_eq!(rewards["trend"], "TREND_UNSPECIFIED");
    assert!(points(&rewards["rewards"]).is_empty());
    let summary = get(rest, "policy/performance-summary").await;
    assert!(summary["returns"].is_null() && summary["last_return"].is_null());
    assert_eq!(summary["means"], json!({}));
    assert!(summary["statistics"].is_null() && summary["exploration"].is_null());
    let all = get(rest, "all").await;
    for agent in points(&all["agents"]) {
        assert!(points(&agent["series"]).is_empty(), "{agent}");
    }
    let distances = get(rest, "nash/visualization").await;
    assert!(points(&distances["convergence_history"]).is_empty());
}

async fn check_rewards(rest: &Rest, run: &str) {
    let all = get(rest, "policy/rewards?limit=1000&window=2").await;
    let all = points(&all["rewards"]);
    assert!(all.len() >= 20 && all.iter().all(|point| point["run_id"] == run));
    let number = |point: &Value, name: &str| point[name].as_f64().unwrap();
    for pair in all.windows(2) {
        let (a, b) = (number(&pair[0], "reward"), number(&pair[1], "reward"));
        assert!((number(&pair[1], "rolling_mean") - (a + b) / 2.0).abs() < 1e-9);
        assert!((number(&pair[1], "rolling_std") - (a - b).abs() / 2.0).abs() < 1e-9);
    }
    let few = get(rest, "policy/rewards?limit=1000&window=2&max_points=5").await;
    let few = points(&few["rewards"]);
    assert_eq!(
        (few.len(), &few[0], &few[4]),
        (5, &all[0], &all[all.len() - 1])
    );
    assert!(few.iter().all(|point| all.contains(point)));
    let newest = get(rest, "policy/rewards?limit=3&window=2").await;
    assert_eq!(points(&newest["rewards"])[..], all[all.len() - 3..]);
    assert_ne!(
        newest["trend"], "TREND_UNSPECIFIED",
        "it needs no limit of 20"
    );

    let summary = get(rest, "policy/performance-summary?window=1000").await;
    let returns = &summary["returns"];
    assert_eq!(returns["count"], all.len());
    let rewards = || all.iter().map(|point| number(point, "reward"));
    assert_eq!(number(returns, "max"), rewards().fold(f64::MIN, f64::max));
    let mean = rewards().sum::<f64>() / all.len() as f64;
    assert!((number(returns, "mean") - mean).abs() < 1e-9);
    assert!((0.0..=1.0).contains(&number(returns, "stability")));
    assert_eq!(summary["total_steps"], "6000");
    assert!(summary["means"]["td_loss"].is_number() && summary["last_return"].is_number());
    let statistics = &summary["statistics"];
    assert_eq!(statistics["buffer_size"], "6000");
    assert!(number(statistics, "max_reward") >= number(returns, "max"));
    assert!(statistics["current_loss"].is_number() && summary["exploration"].is_number());
}

/// Each algorithm under its own words.
async fn check_names(rest: &Rest) {
    let few = get(rest, "policy/losses?max_points=4").await;
    assert_eq!(
        (&few["agent_type"], names(&few["losses"])),
        (&json!("dqn"), vec!["td_loss"])
    );
    assert_eq!(points(&few["losses"][0]["points"]).len(), 4);
    let losses = get(rest, "consensus/losses").await;
    assert_eq!(names(&losses["losses"]), ["policy_loss", "value_loss"]);
    for (agent, name) in [("policy", "epsilon"), ("consensus", "entropy")] {
        let explored = get(rest, &format!("{agent}/exploration?limit=7")).await;
        assert_eq!(explored["exploration"]["name"], name);
        assert_eq!(points(&explored["exploration"]["points"]).len(), 7);
    }
    let all = get(rest, "all?limit=50").await;
    let agents = points(&all["agents"]);
    let ids: Vec<_> = agents.iter().map(|agent| &agent["agent_id"]).collect();
    assert_eq!(ids, ["consensus", "ethical", "policy"]);
    assert!(names(&agents[0]["series"]).contains(&"value_loss"));
    assert!(names(&agents[1]["series"]).is_empty(), "it has not learned");
    assert!(names(&agents[2]["series"]).contains(&"td_loss"));
}

async fn check_hyperparameters(rest: &Rest) {
    let reload = json!({ "hyperparameters": { "gamma": 0.91 }, "reason": "test" });
    let path = "/api/v1/orchestration/agents/policy/reload";
    let live = rest.post(path, reload).await.unwrap();
    let seen = get(rest, "policy/hyperparameters").await;
    assert_eq!(seen["version"], live["version"]);
    let named = |name: &str| {
        let mut all = points(&seen["hyperparameters"]).iter();
        all.find(|parameter| parameter["name"] == name).unwrap()
    };
    let gamma = named("gamma");
    assert_eq!(gamma["value"], 0.91);
    assert_ne!(gamma["default_value"], gamma["value"]);
    assert_eq!(gamma["reloadable"], true);
    assert!(gamma["low"].as_f64().unwrap() < 0.91 && gamma["high"].as_f64().unwrap() < 1.0);
    assert_eq!(named("buffer_size")["reloadable"], false);
    assert_eq!(named("buffer_size")["integer"], true);
    let flag = named("double_dqn");
    assert!(flag["value"].is_boolean() && flag["low"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_learned_is_computed_from_what_its_runs_reported() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    check_untrained(&developer).await;
    let run = train(&developer, "policy").await;
    train(&developer, "consensus").await;
    let viewer = mesh.user("eve", "viewer").await;
    check_rewards(&viewer, &run).await;
    check_names(&viewer).await;
    check_hyperparameters(&developer).await;
    for (path, status) in [
        ("nobody/rewards", 404),
        ("nobody/losses", 404),
        ("nobody/exploration", 404),
        ("nobody/hyperparameters", 404),
        ("nobody/performance-summary", 404),
        ("policy/rewards?window=1001", 400),
        ("policy/rewards?limit=1001", 400),
        ("policy/rewards?max_points=1", 400),
        ("policy/rewards?max_points=0", 400),
        ("policy/losses?limit=-1", 400),
        ("policy/performance-summary?window=1e9", 400),
        ("all?limit=1001", 400),
        ("nash/visualization?limit=1001", 400),
        ("nothing", 404),
    ] {
        let refused = viewer.get(&format!("{METRICS}/{path}")).await;
        assert_eq!(refusal(refused).0, status, "{path}");
    }
    mesh.mesh.stop().await;
}
