//! A change of hyperparameters: the best trial of a study.

use serde::{Deserialize, Serialize};
use tars_proto::params::Params;

/// Hyperparameters that a study found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tuning {
    pub(crate) study_id: String,
    pub(crate) trial_number: u32,
    pub(crate) current_params: Params,
    pub(crate) new_params: Params,
    pub(crate) new_score: f64,
    pub(crate) verification_seeds: u32,
    pub(crate) steps: u64,
    /// The measurement made while the proposal waits for a decision.
    #[serde(default)]
    pub(crate) assessment: Option<Verification>,
    pub(crate) verification: Option<Verification>,
}

/// A paired measurement: old and new parameters are trained on the same seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verification {
    pub(crate) seeds: Vec<u64>,
    pub(crate) baseline: Vec<f64>,
    pub(crate) candidate: Vec<f64>,
    pub(crate) improvement: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) steps: u64,
}

impl Tuning {
    pub(crate) fn trial(&self) -> String {
        format!("{}/{}", self.study_id, self.trial_number)
    }
}
