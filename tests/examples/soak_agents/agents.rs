//! The calls of a soak: trainings, reloads, promotions, steps.

use crate::{
    Failure,
    ledger::{AGENTS, Ledger, RUNS},
};
use serde_json::{Value, json};
use std::{pin::pin, time::Duration};
use tars::rest::{Rest, RestError};
use tars_proto::reason;
use tars_tests::governed::FOUR;
use tokio::time::Instant;

/// Steps of each training: some seconds of learning.
const STEPS: &str = "20000";
/// A call that takes longer has no answer.
const LIMIT: Duration = Duration::from_secs(15);
/// How long the trainings of a cycle may take on a busy machine, and a mesh may be too busy to answer.
const PATIENCE: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What was done so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) cycles: usize,
    pub(crate) started: usize,
    pub(crate) completed: usize,
    pub(crate) reloads: usize,
    pub(crate) promotions: usize,
    pub(crate) steps: usize,
    /// Acknowledged things that were looked for.
    pub(crate) checked: usize,
    /// Those of them that were not found.
    pub(crate) lost: Vec<String>,
    /// Calls that a mesh had no time for, and asks to be tried again.
    pub(crate) late: usize,
    /// Other calls without success; in a mesh that is killed, of the moment of the kill.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn report(&self) -> Value {
        json!({
            "cycles": self.cycles,
            "trainings_started": self.started,
            "trainings_completed": self.completed,
            "reloads": self.reloads,
            "promotions": self.promotions,
            "steps": self.steps,
            "checked": self.checked,
            "lost": self.lost.len(),
            "calls_late": self.late,
            "calls_without_success": self.failures.len(),
        })
    }

    fn failed(&mut self, failure: CallError) {
        match failure {
            CallError::Late => self.late += 1,
            CallError::Refused(text) => self.failures.push(text),
        }
    }
}

/// Why a call had no success.
#[derive(Debug)]
enum CallError {
    /// There was no time for it, which says nothing about what it asks for.
    Late,
    Refused(String),
}

impl From<RestError> for CallError {
    fn from(error: RestError) -> Self {
        if is_late(&error) {
            return Self::Late;
        }
        Self::Refused(match error.reason() {
            Some(reason) => format!("{reason}: {error}"),
            None => error.to_string(),
        })
    }
}

fn is_late(error: &RestError) -> bool {
    let status = error.status().map_or(0, |status| status.as_u16());
    matches!(error, RestError::Silent { .. } | RestError::Busy { .. })
        || matches!(status, 503 | 504)
}

/// What is at a path of a mesh that runs. One that is too busy is asked again, for [`PATIENCE`].
pub(crate) async fn read(rest: &Rest, path: &str) -> Result<Value, RestError> {
    let begun = Instant::now();
    loop {
        match rest.get(path).await {
            Err(e) if is_late(&e) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            answer => return answer,
        }
    }
}

pub(crate) struct Client {
    pub(crate) rest: Rest,
}

impl Client {
    pub(crate) fn new(rest: Rest) -> Self {
        Self { rest }
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, CallError> {
        let call = tokio::time::timeout(LIMIT, self.rest.post(path, body)).await;
        let answer = call.map_err(|_| CallError::Late)?;
        Ok(answer?)
    }

    /// Starts a training of each agent; returns the runs.
    pub(crate) async fn train(
        &self,
        ledger: &mut Ledger,
        tally: &mut Tally,
    ) -> Result<Vec<String>, Failure> {
        let mut runs = Vec::new();
        for (agent, _) in FOUR {
            let path = format!("{AGENTS}/{agent}/train");
            // One that is late may have started: it is not followed, and holds its agent until it ends.
            let run = match self.post(&path, json!({ "steps": STEPS })).await {
                Ok(run) => run,
                Err(CallError::Late) => {
                    tally.late += 1;
                    continue;
                }
                Err(CallError::Refused(text)) => return Err(text.into()),
            };
            let run = run["run"]["run_id"].as_str().ok_or("no run")?.to_owned();
            ledger.started(&run);
            tally.started += 1;
            runs.push(run);
        }
        Ok(runs)
    }

    /// Waits until no run goes on.
    pub(crate) async fn ended(&self, runs: &[String]) -> Result<(), Failure> {
        let begun = Instant::now();
        for run in runs {
            let path = format!("{RUNS}/{run}");
            while read(&self.rest, &path).await?["run"]["ended_at"].is_null() {
                if begun.elapsed() > PATIENCE {
                    return Err(format!("the run {run} does not end").into());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Reloads, promotes and steps, one agent after the other, until something is done.
    pub(crate) async fn change_until<T>(
        &self,
        ledger: &mut Ledger,
        tally: &mut Tally,
        done: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let mut done = pin!(done);
        let mut at = 0;
        loop {
            let (agent, width) = FOUR[at % FOUR.len()];
            let gamma = 0.95 + (at % 40) as f64 / 1000.0;
            // The calls that are under way when it is done get their answers, or none.
            let calls = async {
                self.reload(agent, gamma, ledger, tally).await;
                self.promote(agent, ledger, tally).await;
                self.step(agent, width, tally).await;
                tokio::time::sleep(PAUSE).await;
            };
            let mut calls = pin!(calls);
            tokio::select! {
                done = &mut done => {
                    calls.await;
                    return Ok(done);
                }
                () = &mut calls => {}
            }
            at += 1;
        }
    }

    async fn reload(
        &self,
        agent: &'static str,
        gamma: f64,
        ledger: &mut Ledger,
        tally: &mut Tally,
    ) {
        let body = json!({ "hyperparameters": { "gamma": gamma }, "reason": "soak" });
        match self.post(&format!("{AGENTS}/{agent}/reload"), body).await {
            Ok(answer) => {
                tally.reloads += 1;
                ledger.reloaded(agent, gamma, &answer);
            }
            Err(e) => {
                ledger.reload_unknown(agent, gamma);
                tally.failed(e);
            }
        }
    }

    /// Makes a retained version live that is not live now, where there is one.
    async fn promote(&self, agent: &'static str, ledger: &mut Ledger, tally: &mut Tally) {
        let listed = self.rest.get(&format!("{AGENTS}/{agent}/versions")).await;
        let listed = listed.unwrap_or_default();
        let mut versions = listed["versions"].as_array().into_iter().flatten();
        let Some(other) = versions.find(|version| version["live"] == false) else {
            return;
        };
        let body = json!({ "version": other["version"], "reason": "soak" });
        match self.post(&format!("{AGENTS}/{agent}/promote"), body).await {
            Ok(answer) => {
                tally.promotions += 1;
                ledger.promoted(agent, &answer);
            }
            Err(e) => tally.failed(e),
        }
    }

    /// An agent that has learned nothing yet has no action.
    async fn step(&self, agent: &str, width: usize, tally: &mut Tally) {
        let state = json!({ "state_vector": vec![0.25; width] });
        let states = json!({ format!("{agent}_state"): state });
        match self.post("/api/v1/orchestration/step", states).await {
            Ok(_) => tally.steps += 1,
            Err(CallError::Refused(text)) if text.starts_with(reason::UNTRAINED) => {}
            Err(e) => tally.failed(e),
        }
    }
}
