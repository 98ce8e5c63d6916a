//! What the main job came to.

use super::Size;
use crate::commands::{
    CommandError,
    listing::{hyperparameter, number, required, text, word, world},
    output,
};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// A distance from an equilibrium, with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Distance {
    value: f64,
    low: f64,
    high: f64,
}

impl Distance {
    /// What the mesh measured; `None` where it measured nothing.
    pub(super) fn of(measured: &Value) -> Option<Self> {
        Some(Self {
            value: number(&measured["value"])?,
            low: number(&measured["low"])?,
            high: number(&measured["high"])?,
        })
    }

    /// The mean over some states, each of which is measured independently of the others.
    pub(super) fn mean(all: &[Self]) -> Self {
        let count = all.len() as f64;
        let value = all.iter().map(|one| one.value).sum::<f64>() / count;
        let spread = |side: fn(&Self) -> f64| {
            let squares = all.iter().map(|one| (side(one) - one.value).powi(2));
            squares.sum::<f64>().sqrt() / count
        };
        Self {
            value,
            low: value - spread(|one| one.low),
            high: value + spread(|one| one.high),
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, low, high } = self;
        write!(f, "{value:.4} ({low:.4} to {high:.4})")
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The agent that was searched and changed, and what it learns by.
    agent: String,
    agent_type: String,
    /// Where it learns, and the calibration that the returns and distances depend on; absent where the world models
    /// no mesh.
    environment: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    calibration: String,
    baseline_return: f64,
    best_return: f64,
    improvement_low: f64,
    improvement_high: f64,
    seeds: usize,
    trials: u64,
    proposal_state: String,
    version_before: u64,
    version_after: u64,
    /// Whether the job truly succeeded: completed, live, and one version later.
    pub(super) verified: bool,
    /// How far the agents were from an equilibrium among them, before and after: the mean of
    /// `nash_convergence_distance` over some states. Absent where each has an environment of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    nash_conv_before: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nash_conv_after: Option<f64>,
    /// The same with their intervals, for people.
    #[serde(skip)]
    distances: Option<(Distance, Distance)>,
    /// The changed hyperparameters that the search had no choice of.
    given: Vec<String>,
    trace_id: String,
    /// Why the proposal is not in force, as the mesh says it; empty when it is.
    #[serde(skip)]
    error: String,
    /// Name, value before, value after.
    #[serde(skip)]
    changes: Vec<(String, String, String)>,
}

/// What the mesh answered, from the first look at the agent to the last.
pub(super) struct Outcome {
    /// The agent before anything was changed, and after.
    pub(super) before: Value,
    pub(super) after: Value,
    /// The proposal in its last state.
    pub(super) applied: Value,
    /// The hyperparameters that had one value in the search.
    pub(super) given: Vec<String>,
    pub(super) nash_conv_before: Option<Distance>,
    pub(super) nash_conv_after: Option<Distance>,
    pub(super) trace_id: String,
}

impl Outcome {
    pub(super) fn report(self, size: Size) -> Result<Report, CommandError> {
        let proposal_state = required(&self.applied, "state")?;
        let (version_before, version_after) = (version(&self.before), version(&self.after));
        let proposed = self.proposed()?;
        let completed = proposal_state == "PROPOSAL_STATE_COMPLETED";
        let changes = self.changes(proposed);
        let is_changed = |given: &String| changes.iter().any(|(name, ..)| name == given);
        Ok(Report {
            agent: text(&self.before["agent_id"]),
            agent_type: text(&self.before["agent_type"]),
            environment: text(&self.before["environment"]),
            calibration: text(&self.before["calibration"]),
            given: self
                .given
                .iter()
                .filter(|g| is_changed(g))
                .cloned()
                .collect(),
            baseline_return: self.mean("baseline_returns")?,
            best_return: self.mean("candidate_returns")?,
            improvement_low: self.measured("improvement_low")?,
            improvement_high: self.measured("improvement_high")?,
            seeds: self.verification()["seeds"].as_array().map_or(0, Vec::len),
            trials: u64::from(size.trials),
            verified: completed && self.is_live(proposed) && version_after == version_before + 1,
            proposal_state,
            version_before,
            version_after,
            error: text(&self.applied["error_message"]),
            changes,
            nash_conv_before: self.nash_conv_before.map(|distance| distance.value),
            nash_conv_after: self.nash_conv_after.map(|distance| distance.value),
            distances: self.nash_conv_before.zip(self.nash_conv_after),
            trace_id: self.trace_id,
        })
    }

    fn proposed(&self) -> Result<&Map<String, Value>, CommandError> {
        let proposed = self.applied["new_params"].as_object();
        proposed.ok_or_else(|| self.missing("parameters"))
    }

    fn is_live(&self, proposed: &Map<String, Value>) -> bool {
        let live = &self.after["hyperparameters"];
        proposed
            .iter()
            .all(|(name, value)| live.get(name) == Some(value))
    }

    fn changes(&self, proposed: &Map<String, Value>) -> Vec<(String, String, String)> {
        let before = &self.before["hyperparameters"];
        proposed
            .iter()
            .filter(|(name, value)| before.get(name.as_str()) != Some(value))
            .map(|(name, value)| {
                let shown = |value| hyperparameter(name, value);
                (name.clone(), shown(&before[name.as_str()]), shown(value))
            })
            .collect()
    }

    fn verification(&self) -> &Value {
        &self.applied["verification"]
    }

    fn measured(&self, name: &str) -> Result<f64, CommandError> {
        let value = self.verification()[name].as_f64();
        value.ok_or_else(|| self.missing(name))
    }

    fn mean(&self, name: &str) -> Result<f64, CommandError> {
        let values = self.verification()[name].as_array().into_iter().flatten();
        let values: Vec<f64> = values.filter_map(Value::as_f64).collect();
        if values.is_empty() {
            return Err(self.missing(name));
        }
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    }

    fn missing(&self, what: &str) -> CommandError {
        let error = &self.applied["error_message"];
        CommandError::Failed(format!("the proposal has no {what}: {error}"))
    }
}

fn version(agent: &Value) -> u64 {
    number(&agent["version"]).unwrap_or_default() as u64
}

impl Report {
    /// Why the job did not truly succeed, with what was measured.
    pub(super) fn failure(&self) -> String {
        let Self {
            error,
            improvement_low: low,
            improvement_high: high,
            seeds,
            ..
        } = self;
        let state = word(
            &Value::from(self.proposal_state.as_str()),
            "PROPOSAL_STATE_",
        );
        let why = match error.is_empty() {
            true => "what is live is not what was approved",
            false => error,
        };
        format!(
            "the job did not succeed: the proposal is {state}: {why} (improvement over {seeds} seeds, 95 %: {low:.1} to {high:.1})"
        )
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            say!("{}", serde_json::to_string(self).unwrap_or_default());
            return;
        }
        say!("");
        output::table(
            &["hyperparameter", "before", "after", "found by"],
            &self.rows(),
        );
        say!("");
        for (name, value) in self.lines() {
            say!("{name:<20} {value}");
        }
    }

    /// A row for each change, with whether it was searched.
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |(name, old, new): &(String, String, String)| {
            let by = match self.given.contains(name) {
                true => "(given)",
                false => "the search",
            };
            vec![name.clone(), old.clone(), new.clone(), by.to_owned()]
        };
        self.changes.iter().map(row).collect()
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let (low, high) = (self.improvement_low, self.improvement_high);
        let (before, after) = (self.version_before, self.version_after);
        let baseline = format!(
            "{:.1}  (mean of {} seeds)",
            self.baseline_return, self.seeds
        );
        let mut lines = vec![
            ("agent", format!("{} ({})", self.agent, self.agent_type)),
            (
                "environment",
                world(&self.environment, Some(&self.calibration)),
            ),
            ("baseline mean return", baseline),
            ("approved mean return", format!("{:.1}", self.best_return)),
            ("improvement, 95 %", format!("{low:.1} to {high:.1}")),
            ("proposal", self.proposal_state.clone()),
            ("hyperparameters", format!("version {before} -> {after}")),
            ("verified", self.verified.to_string()),
            ("trace", self.trace_id.clone()),
        ];
        if let Some((before, after)) = self.distances {
            lines.insert(5, ("NashConv, 95 %", format!("{before} -> {after}")));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SIZE: Size = Size {
        trials: 2,
        steps: 1,
        seeds: 2,
    };

    fn outcome(state: &str, live: f64, version: &str) -> Outcome {
        let agent = |gamma: f64, noise: u32, version: &str| {
            json!({
                "agent_id": "resource", "agent_type": "ddpg", "environment": "mesh", "calibration": "shipped",
                "version": version,
                "hyperparameters": { "gamma": gamma, "tau": 1, "noise_kind": noise },
            })
        };
        Outcome {
            before: agent(0.9, 0, "1"),
            after: agent(live, 2, version),
            applied: json!({
                "state": state, "new_params": { "gamma": 0.99, "tau": 1, "noise_kind": 2 },
                "verification": {
                    "seeds": ["1", "3"], "baseline_returns": [10.0, 20.0],
                    "candidate_returns": [100.0, 200.0], "improvement_low": 80.0,
                    "improvement_high": 190.0,
                },
            }),
            given: vec!["noise_kind".to_owned(), "tau".to_owned()],
            nash_conv_before: None,
            nash_conv_after: None,
            trace_id: "t".to_owned(),
        }
    }

    #[test]
    fn a_report_has_the_means_and_what_changed() {
        let report = outcome("PROPOSAL_STATE_COMPLETED", 0.99, "2")
            .report(SIZE)
            .unwrap();
        assert!(report.verified);
        assert_eq!((report.baseline_return, report.best_return), (15.0, 150.0));
        let rows = [
            ["gamma", "0.9", "0.99", "the search"],
            ["noise_kind", "0 (correlated)", "2 (independent)", "(given)"],
        ];
        assert_eq!(report.rows(), rows, "tau is as it was");
        assert_eq!(report.given, ["noise_kind"]);
        assert_eq!(report.lines()[0], ("agent", "resource (ddpg)".to_owned()));
        let named = ("environment", "mesh (calibration shipped)".to_owned());
        assert_eq!(report.lines()[1], named);
        let in_json = serde_json::to_value(&report).unwrap();
        assert_eq!(in_json["calibration"], "shipped");
    }

    #[test]
    fn the_mean_of_distances_is_less_uncertain_than_each() {
        let one = Distance {
            value: 1.0,
            low: 0.0,
            high: 3.0,
        };
        assert_eq!(Distance::mean(&[one]), one);
        let four = Distance::mean(&[one; 4]);
        assert_eq!((four.value, four.low, four.high), (1.0, 0.5, 2.0));
        assert_eq!(four.to_string(), "1.0000 (0.5000 to 2.0000)");
        assert_eq!(Distance::of(&json!({ "value": 1.0 })), None);
    }

    #[test]
    fn nothing_is_verified_that_is_not_live() {
        for (state, live, version) in [
            ("PROPOSAL_STATE_ROLLED_BACK", 0.99, "2"),
            ("PROPOSAL_STATE_COMPLETED", 0.9, "2"),
            ("PROPOSAL_STATE_COMPLETED", 0.99, "3"),
        ] {
            let report = outcome(state, live, version).report(SIZE).unwrap();
            assert!(!report.verified, "{state} {live} {version}");
            let failure = report.failure();
            assert!(failure.contains("80.0 to 190.0"), "{failure}");
        }
    }

    #[test]
    fn a_proposal_without_a_verification_is_no_report() {
        let mut outcome = outcome("PROPOSAL_STATE_FAILED", 0.9, "1");
        outcome.applied["verification"] = Value::Null;
        outcome.applied["error_message"] = "diverged".into();
        let error = outcome.report(SIZE).unwrap_err().to_string();
        assert!(error.contains("diverged"), "{error}");
    }
}
