//! Reloads and promotions, and which version of the weights has to answer in which way.

use crate::{
    AGENTS, Failure,
    load::{Print, Slice, Stepper, print},
    train,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tars::rest::{Rest, RestError};
use tars_tests::governed::FOUR;

/// Enough for every algorithm to learn something.
const STEPS: &str = "4096";

/// What was changed so far. Two trained versions of each agent take turns in being live.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) reloads: usize,
    pub(crate) promotions: usize,
    pub(crate) failures: Vec<String>,
    /// How each version of each agent answers.
    answers: BTreeMap<(String, u64), Print>,
    live: BTreeMap<&'static str, u64>,
}

fn version(of: &Value) -> Result<u64, Failure> {
    let version = of["agent"]["weights_version"].as_str();
    Ok(version.ok_or("no version")?.parse()?)
}

impl Changes {
    /// Trains each agent twice.
    pub(crate) async fn prepare(rest: &Rest, stepper: &Stepper) -> Result<Self, Failure> {
        let mut changes = Self::default();
        for trained in 1..=2 {
            for (agent, _) in FOUR {
                train(rest, agent, STEPS, trained).await?;
                changes.live.insert(agent, trained);
            }
            changes.learn(&mut stepper.clone()).await?;
        }
        for (agent, _) in FOUR {
            let answer = |version| &changes.answers[&(agent.to_owned(), version)];
            if answer(1) == answer(2) {
                return Err(format!("both versions of {agent} answer alike").into());
            }
        }
        Ok(changes)
    }

    /// Records how the live versions answer.
    async fn learn(&mut self, stepper: &mut Stepper) -> Result<(), Failure> {
        for (agent, action) in stepper.step().await?.agent_actions {
            let version = action.weights_version;
            self.answers.insert((agent, version), print(&action));
        }
        Ok(())
    }

    /// Reloads and promotes in turns, one agent after the other.
    pub(crate) async fn make(&mut self, rest: &Rest, count: usize) -> Result<(), Failure> {
        for at in 0..count {
            let (agent, _) = FOUR[at % FOUR.len()];
            self.reload(rest, agent, at).await;
            self.promote(rest, agent).await?;
        }
        Ok(())
    }

    fn count(&mut self, answer: Result<Value, RestError>) -> Option<Value> {
        answer.map_err(|e| self.failures.push(e.to_string())).ok()
    }

    async fn reload(&mut self, rest: &Rest, agent: &str, at: usize) {
        let gamma = 0.95 + (at % 40) as f64 / 1000.0;
        let body = json!({ "hyperparameters": { "gamma": gamma }, "reason": "bench" });
        let answer = rest.post(&format!("{AGENTS}/{agent}/reload"), body).await;
        self.reloads += usize::from(self.count(answer).is_some());
    }

    /// Makes the other of the two trained versions live.
    async fn promote(&mut self, rest: &Rest, agent: &'static str) -> Result<(), Failure> {
        let other = 3 - self.live[agent];
        let body = json!({ "version": other.to_string(), "reason": "bench" });
        let answer = rest.post(&format!("{AGENTS}/{agent}/promote"), body).await;
        let Some(answer) = self.count(answer) else {
            return Ok(());
        };
        self.promotions += 1;
        self.live.insert(agent, other);
        let answers = self.answers[&(agent.to_owned(), other)].clone();
        self.answers
            .insert((agent.to_owned(), version(&answer)?), answers);
        Ok(())
    }

    /// In how many steps a version answered in another way than the one that it is.
    pub(crate) fn mixed(&self, slice: &Slice) -> usize {
        let wrong = slice.seen.iter().flat_map(|(version, prints)| {
            let right = self.answers.get(version);
            let wrong = prints
                .iter()
                .filter(move |(print, _)| Some(*print) != right);
            wrong.map(|(_, count)| count)
        });
        wrong.sum()
    }
}
