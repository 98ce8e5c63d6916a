//! What a mesh acknowledged, and whether it is there.

use crate::{
    Failure,
    agents::{Tally, read},
};
use serde_json::Value;
use std::collections::BTreeMap;
use tars::rest::Rest;

pub(crate) const AGENTS: &str = "/api/v1/orchestration/agents";
pub(crate) const RUNS: &str = "/api/v1/orchestration/training";

/// A reload, with the version that it made where that is known.
#[derive(Debug, Clone, Copy)]
struct Reload {
    gamma: f64,
    version: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The newest reload of each agent that was acknowledged.
    acknowledged: BTreeMap<&'static str, Reload>,
    /// One after it without a definite answer: it may have been carried out.
    unknown: BTreeMap<&'static str, Reload>,
    /// The largest version of the weights that each agent was seen with.
    weights: BTreeMap<&'static str, u64>,
    /// Those that were acknowledged, and are not known to have completed.
    runs: Vec<String>,
}

/// A number of 64 bits, which is a text in JSON.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

impl Ledger {
    pub(crate) fn reloaded(&mut self, agent: &'static str, gamma: f64, answer: &Value) {
        let version = whole(&answer["version"]);
        self.acknowledged.insert(agent, Reload { gamma, version });
        self.unknown.remove(agent);
    }

    pub(crate) fn reload_unknown(&mut self, agent: &'static str, gamma: f64) {
        let version = None;
        self.unknown.insert(agent, Reload { gamma, version });
    }

    pub(crate) fn promoted(&mut self, agent: &'static str, answer: &Value) {
        let version = whole(&answer["agent"]["weights_version"]).unwrap_or(0);
        let known = self.weights.entry(agent).or_default();
        *known = version.max(*known);
    }

    pub(crate) fn started(&mut self, run: &str) {
        self.runs.push(run.to_owned());
    }

    /// Looks for everything that was acknowledged.
    pub(crate) async fn check(&mut self, rest: &Rest, tally: &mut Tally) -> Result<(), Failure> {
        self.check_runs(rest, tally).await?;
        for (agent, acknowledged) in self.acknowledged.clone() {
            let seen = read(rest, &format!("{AGENTS}/{agent}")).await?["agent"].take();
            tally.checked += 1;
            tally
                .lost
                .extend(self.check_reload(agent, acknowledged, &seen));
            let weights = whole(&seen["weights_version"]).unwrap_or(0);
            let known = self.weights.entry(agent).or_default();
            if weights < *known {
                let what = format!("{agent} was at weights {known}: {seen}");
                tally.lost.push(what);
            }
            *known = weights;
        }
        Ok(())
    }

    /// What was lost, if the acknowledged reload was.
    fn check_reload(
        &mut self,
        agent: &'static str,
        acknowledged: Reload,
        seen: &Value,
    ) -> Option<String> {
        let gamma = seen["hyperparameters"]["gamma"].as_f64();
        let version = whole(&seen["version"]);
        if gamma == Some(acknowledged.gamma) && version == acknowledged.version {
            self.unknown.remove(agent);
            return None;
        }
        let unknown = self.unknown.remove(agent).map(|reload| reload.gamma);
        if gamma.is_none() || gamma != unknown {
            return Some(format!(
                "the acknowledged reload {acknowledged:?} of {agent}: {seen}"
            ));
        }
        // The one without an answer was carried out, and is known from now on.
        let known = Reload {
            gamma: gamma.unwrap_or_default(),
            version,
        };
        self.acknowledged.insert(agent, known);
        None
    }

    /// Every run is known, in a state that fits, and one that has ended has completed.
    async fn check_runs(&mut self, rest: &Rest, tally: &mut Tally) -> Result<(), Failure> {
        let mut left = Vec::new();
        for run in std::mem::take(&mut self.runs) {
            let seen = read(rest, &format!("{RUNS}/{run}")).await?["run"].take();
            tally.checked += 1;
            match seen["state"].as_str() {
                Some("TRAINING_STATE_COMPLETED") if seen["steps_done"] == seen["steps"] => {
                    tally.completed += 1;
                    let lost = check_weights(rest, &seen, &run).await?;
                    tally.lost.extend(lost);
                }
                Some("TRAINING_STATE_QUEUED" | "TRAINING_STATE_RUNNING") => left.push(run),
                _ => tally.lost.push(format!("the run {run}: {seen}")),
            }
        }
        self.runs = left;
        Ok(())
    }
}

/// What was lost, if the weights that a run made are no version of its agent.
async fn check_weights(rest: &Rest, seen: &Value, run: &str) -> Result<Option<String>, Failure> {
    let agent = seen["agent_id"].as_str().unwrap_or_default();
    let listed = read(rest, &format!("{AGENTS}/{agent}/versions")).await?;
    let mut versions = listed["versions"].as_array().into_iter().flatten();
    let is_there = versions.any(|version| version["run_id"] == run);
    Ok((!is_there).then(|| format!("the weights of the completed run {run}")))
}
