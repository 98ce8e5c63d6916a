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
/// How long the trainings of a cycle may take on a busy machine.
const TRAINED_WITHIN: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(20);

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
    /// Calls without success; in a mesh that is killed, of the moment of the kill.
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
            "calls_without_success": self.failures.len(),
        })
    }
}

pub(crate) struct Client {
    pub(crate) rest: Rest,
}

impl Client {
    pub(crate) fn new(rest: Rest) -> Self {
        Self { rest }
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, String> {
        let call = tokio::time::timeout(LIMIT, self.rest.post(path, body)).await;
        let answer = call.map_err(|_| "no answer".to_owned())?;
        answer.map_err(|e: RestError| match e.reason() {
            Some(reason) => format!("{reason}: {e}"),
            None => e.to_string(),
        })
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
            let run = self.post(&path, json!({ "steps": STEPS })).await?;
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
            while !self.has_ended(&path).await? {
                if begun.elapsed() > TRAINED_WITHIN {
                    return Err(format!("the run {run} does not end").into());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    /// Whether a run has ended. A service that is too busy to say so is asked again.
    async fn has_ended(&self, path: &str) -> Result<bool, Failure> {
        match self.rest.get(path).await {
            Ok(answer) => Ok(!answer["run"]["ended_at"].is_null()),
            Err(RestError::Refused { status, .. }) if matches!(status.as_u16(), 503 | 504) => {
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
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
                tally.failures.push(e);
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
            Err(e) => tally.failures.push(e),
        }
    }

    /// An agent that has learned nothing yet has no action.
    async fn step(&self, agent: &str, width: usize, tally: &mut Tally) {
        let state = json!({ "state_vector": vec![0.25; width] });
        let states = json!({ format!("{agent}_state"): state });
        match self.post("/api/v1/orchestration/step", states).await {
            Ok(_) => tally.steps += 1,
            Err(e) if e.starts_with(reason::UNTRAINED) => {}
            Err(e) => tally.failures.push(e),
        }
    }
}
