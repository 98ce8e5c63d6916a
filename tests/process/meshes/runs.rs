//! Training runs from the command line: followed, left, and what their ends mean to a script.

use crate::home::{Desk, stderr};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    process::{Output, Stdio},
};
use tars::rest::Rest;
use tars_tests::eventually;

const NOBODYS: &str = "019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d";
const RUNS: &str = "/api/v1/orchestration/training";
const NASH: &str = "/api/v1/orchestration/metrics/training/nash/visualization";

async fn start(rest: &Rest, steps: u64) -> String {
    let path = "/api/v1/orchestration/agents/policy/train";
    let body = json!({ "steps": steps.to_string(), "seed": "1" });
    let run = rest.post(path, body).await.unwrap();
    run["run"]["run_id"].as_str().unwrap().to_owned()
}

fn lines(watched: &Output) -> Vec<Value> {
    let text = String::from_utf8(watched.stdout.clone()).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_followed_to_its_end() {
    let desk = Desk::new();
    let none = desk.refused(&["train", "watch"]);
    assert!(
        none.contains("no training run") && none.contains("tars training start"),
        "{none}"
    );
    let unknown = desk.refused(&["train", "watch", NOBODYS]);
    assert!(unknown.contains("the newest run"), "{unknown}");

    let run = start(&desk.mesh.admin().await, 3000).await;
    let watched = desk.run(&["train", "watch", &run, "--json"]);
    assert!(watched.status.success(), "{}", stderr(&watched));
    let items = lines(&watched);
    let sequences = items.iter().map(|item| item["sequence"].as_str().unwrap());
    let expected = (1..=items.len()).map(|number| number.to_string());
    assert!(sequences.eq(expected), "every report, once");
    assert!(
        items
            .iter()
            .any(|item| item["progress"]["agents"][0]["loss"].is_number())
    );
    let last = &items[items.len() - 1];
    let ended = &last["ended"];
    assert_eq!(ended["state"], "TRAINING_STATE_COMPLETED", "{ended}");
    assert!(last.get("nash_distance").is_some(), "{last}");
    let reported = &items[..items.len() - 1];
    let has_rate = |item: &Value| item["progress"]["rate"].as_f64().is_some_and(|r| r > 0.0);
    assert!(reported.iter().any(has_rate), "steps a second");

    // Under the other name, with every report.
    let shown = desk.good(&["training", "watch", "--every", "1"]);
    let shown: Vec<&str> = shown.lines().collect();
    let rows = shown.iter().filter(|line| line.starts_with("policy "));
    assert_eq!(rows.count(), items.len() - 1, "a row for each report");
    assert!(shown[0].starts_with("AGENT") && shown[0].contains("EXPLORATION"));
    let is_end = |line: &&&str| line.starts_with("completed: 3000 of 3000 steps");
    assert!(shown.iter().any(|line| is_end(&line)), "{shown:?}");
    let result = shown.iter().find(|line| line.starts_with("  policy "));
    assert!(result.unwrap().contains("mean return"), "{result:?}");
    let fewer = desk.good(&["train", "watch"]);
    let rows = fewer.lines().filter(|line| line.starts_with("policy "));
    assert!(rows.count() <= 21, "{fewer}");
}

/// It is measured after a run has ended, so that it is not there when the last event comes.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_run_says_how_far_the_agents_are_from_an_equilibrium() {
    let desk = Desk::new_in("mesh");
    let rest = desk.mesh.admin().await;
    let run = start(&rest, 500).await;
    let last = || {
        let watched = desk.run(&["train", "watch", &run, "--json"]);
        assert!(watched.status.success(), "{}", stderr(&watched));
        (
            lines(&watched).pop().unwrap()["nash_distance"].take(),
            stderr(&watched),
        )
    };
    let (at_once, notes) = last();
    assert!(at_once.is_object() || notes.contains("waiting"), "{notes}");
    let point = async || {
        let mut history = rest.get(NASH).await.unwrap()["convergence_history"].take();
        let mut points = history.as_array_mut().unwrap().iter_mut();
        points.find(|point| point["run_id"] == run).map(Value::take)
    };
    eventually("it is measured", async || point().await.is_some()).await;
    let point = point().await.unwrap();
    assert_eq!(
        (last().0, &point["calibration"]),
        (point.clone(), &json!("shipped"))
    );
    let shown = desk.good(&["train", "watch", &run]);
    assert!(shown.contains("in mesh (calibration shipped)"), "{shown}");
    assert!(shown.contains("  NashConv   "), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_watching_and_a_cancelled_run_is_no_success() {
    let desk = Desk::new();
    let rest = desk.mesh.admin().await;
    let run = start(&rest, 10_000_000).await;
    let mut command = desk.tars(&["train", "watch", "--json"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watching = command.spawn().unwrap();
    let mut items = BufReader::new(watching.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&items.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["sequence"], "1");
    let pid = rustix::process::Pid::from_child(&watching);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // Whatever it still prints is read, so that it can end.
    items.for_each(drop);
    let left = watching.wait_with_output().unwrap();
    assert_eq!(left.status.code(), Some(130), "{}", stderr(&left));
    let error: Value = serde_json::from_str(&stderr(&left)).unwrap();
    let goes_on = format!("`tars train watch {run}` goes on");
    assert!(
        error["message"].as_str().unwrap().contains(&goes_on),
        "{error}"
    );

    let path = format!("{RUNS}/{run}");
    let running = rest.get(&path).await.unwrap();
    assert_eq!(running["run"]["state"], "TRAINING_STATE_RUNNING");
    rest.post(&format!("{path}/cancel"), json!({}))
        .await
        .unwrap();
    let watched = desk.run(&["train", "watch", &run]);
    assert_eq!(watched.status.code(), Some(1), "{}", stderr(&watched));
    let shown = String::from_utf8(watched.stdout).unwrap();
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("cancelled: "), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_is_told_to_be_that_and_a_stopped_one_how_to_begin_anew() {
    let desk = Desk::new();
    let rest = desk.mesh.admin().await;
    let run = start(&rest, 10_000_000).await;
    desk.good(&["training", "pause", &run]);
    eventually("it is paused", async || {
        let shown = rest.get(&format!("{RUNS}/{run}")).await.unwrap();
        shown["run"]["state"] == "TRAINING_STATE_PAUSED"
    })
    .await;
    let mut command = desk.tars(&["train", "watch", &run]);
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut watching = command.spawn().unwrap();
    let mut notes = BufReader::new(watching.stderr.take().unwrap()).lines();
    let mut told = |part: &str| {
        let mut lines = notes.by_ref().map(Result::unwrap);
        let found = lines.find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("nobody said {part}"))
    };
    let paused = told("the run is paused after");
    let resume = format!("tars training resume {run}");
    assert!(paused.contains(&resume), "{paused}");
    desk.good(&["training", "resume", &run]);
    told("the run goes on");
    let (stopped, tip) = desk.good_with_notes(&["training", "stop", &run, "--yes"]);
    assert!(stopped.contains("cancelled"), "{stopped}");
    let again = "tars training start --agents policy --steps 10000000";
    assert!(tip.contains(again) && tip.contains("checkpoint"), "{tip}");
    notes.for_each(drop);
    assert_eq!(watching.wait().unwrap().code(), Some(1));
}

#[test]
fn a_comparison_shows_that_it_is_made_and_is_stored() {
    let desk = Desk::new_in("mesh");
    desk.good(&["agents", "promote", "resource", "--rule", "hold"]);
    let compare = ["agents", "compare", "resource"];
    let (shown, notes) = desk.good_with_notes(&[&compare[..], &["--seeds", "2"]].concat());
    assert!(notes.contains("comparing ..."), "a sign of life: {notes}");
    for part in ["reward per step on 2 seeds", "REWARD PER STEP"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let stored = desk.good(&[&compare[..], &["--stored"]].concat());
    assert_eq!(stored, shown, "with the time at which it was made");
}

#[test]
fn a_training_in_this_process_and_a_run_of_a_mesh_are_told_apart() {
    let desk = Desk::new();
    let train = [
        "train", "--env", "cartpole", "--algo", "ppo", "--steps", "64",
    ];
    desk.home
        .good(&[&train[..], &["--eval-episodes", "1"]].concat());
    for args in [
        &["train"][..],
        &["train", "--env", "cartpole"],
        &["train", "--env", "cartpole", "watch"],
        &["train", "watch", "nobody"],
    ] {
        let refused = desk.home.run(args);
        assert_eq!(
            refused.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&refused)
        );
    }
}
