//! What the main job came to.

use super::Size;
use crate::commands::{
    CommandError,
    listing::{number, required, short, text, word},
};
use serde::Serialize;
use serde_json::{Map, Value};

#[derive(Debug, Serialize)]
pub(super) struct Report {
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
    pub(super) nash_conv_before: Option<f64>,
    pub(super) nash_conv_after: Option<f64>,
    pub(super) trace_id: String,
}

impl Outcome {
    pub(super) fn report(self, size: Size) -> Result<Report, CommandError> {
        let proposal_state = required(&self.applied, "state")?;
        let (version_before, version_after) = (version(&self.before), version(&self.after));
        let proposed = self.proposed()?;
        let completed = proposal_state == "PROPOSAL_STATE_COMPLETED";
        Ok(Report {
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
            changes: self.changes(proposed),
            nash_conv_before: self.nash_conv_before,
            nash_conv_after: self.nash_conv_after,
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
            .map(|(name, value)| (name.clone(), short(&before[name.as_str()]), short(value)))
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
        say!("{:<16} {:>12} {:>12}", "HYPERPARAMETER", "BEFORE", "AFTER");
        for (name, old, new) in &self.changes {
            say!("{name:<16} {old:>12} {new:>12}");
        }
        say!("");
        for (name, value) in self.lines() {
            say!("{name:<19} {value}");
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let (low, high) = (self.improvement_low, self.improvement_high);
        let (before, after) = (self.version_before, self.version_after);
        let baseline = format!(
            "{:.1}  (mean of {} seeds)",
            self.baseline_return, self.seeds
        );
        let mut lines = vec![
            ("baseline return", baseline),
            ("approved return", format!("{:.1}", self.best_return)),
            ("improvement, 95 %", format!("{low:.1} to {high:.1}")),
            ("proposal", self.proposal_state.clone()),
            ("agent version", format!("{before} -> {after}")),
            ("verified", self.verified.to_string()),
            ("trace", self.trace_id.clone()),
        ];
        if let (Some(before), Some(after)) = (self.nash_conv_before, self.nash_conv_after) {
            lines.insert(3, ("NashConv", format!("{before:.4} -> {after:.4}")));
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
        let agent = |gamma: f64, version: &str| json!({ "version": version, "hyperparameters": { "gamma": gamma, "tau": 1 } });
        Outcome {
            before: agent(0.9, "1"),
            after: agent(live, version),
            applied: json!({
                "state": state, "new_params": { "gamma": 0.99, "tau": 1 },
                "verification": {
                    "seeds": ["1", "3"], "baseline_returns": [10.0, 20.0],
                    "candidate_returns": [100.0, 200.0], "improvement_low": 80.0,
                    "improvement_high": 190.0,
                },
            }),
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
        let changed = ("gamma".to_owned(), "0.9".to_owned(), "0.99".to_owned());
        assert_eq!(report.changes, [changed], "tau is as it was");
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
