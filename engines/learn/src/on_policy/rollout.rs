//! The steps that a policy has taken since it last learned.

use super::gae::{self, Horizon, Next, Trajectories};
use crate::learner::Step;
use serde::{Deserialize, Serialize};

/// The lengths of a rollout's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Points in time.
    pub steps: usize,
    pub copies: usize,
    /// The components of an observation.
    pub observation: usize,
    /// The numbers of an action.
    pub action: usize,
    /// The actions that a mask can rule out; 0 for continuous actions.
    pub mask: usize,
}

/// What the policy knew when it acted, for all copies; slices are row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acted<'a> {
    pub actions: &'a [f32],
    pub log_probabilities: &'a [f32],
    pub values: &'a [f32],
    /// Empty when every action may be taken.
    pub masks: &'a [bool],
}

/// Steps in the order of time, with a row for each copy. Filling it does not allocate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rollout {
    filled: usize,
    pub observations: Vec<f32>,
    pub actions: Vec<f32>,
    masks: Vec<bool>,
    is_masked: bool,
    pub log_probabilities: Vec<f32>,
    pub values: Vec<f32>,
    rewards: Vec<f32>,
    nexts: Vec<Next>,
    last_values: Vec<f32>,
    pub advantages: Vec<f32>,
    pub returns: Vec<f32>,
}

impl Rollout {
    pub(crate) fn new(shape: Shape) -> Self {
        let rows = shape.steps * shape.copies;
        let zeros = |width: usize| vec![0.0; rows * width];
        Self {
            filled: 0,
            observations: zeros(shape.observation),
            actions: zeros(shape.action),
            masks: vec![true; rows * shape.mask],
            is_masked: false,
            log_probabilities: zeros(1),
            values: zeros(1),
            rewards: zeros(1),
            nexts: vec![Next::Step; rows],
            last_values: vec![0.0; shape.copies],
            advantages: zeros(1),
            returns: zeros(1),
        }
    }

    /// Whether it has this shape and nothing in it contradicts that.
    pub(crate) fn has(&self, shape: Shape) -> bool {
        let rows = shape.steps * shape.copies;
        let columns = [
            &self.log_probabilities,
            &self.values,
            &self.rewards,
            &self.advantages,
            &self.returns,
        ];
        columns.iter().all(|column| column.len() == rows)
            && self.nexts.len() == rows
            && self.observations.len() == rows * shape.observation
            && self.actions.len() == rows * shape.action
            && self.masks.len() == rows * shape.mask
            && self.last_values.len() == shape.copies
            && self.filled <= rows
            && self.filled.is_multiple_of(shape.copies)
    }

    /// How many rows it holds when it is full.
    pub(crate) fn rows(&self) -> usize {
        self.rewards.len()
    }

    pub(crate) fn copies(&self) -> usize {
        self.last_values.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.rows()
    }

    /// Forgets all steps.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.is_masked = false;
        self.masks.fill(true);
    }

    /// Appends a step of all copies; `value` estimates that of an observation.
    ///
    /// # Panics
    ///
    /// When it is full, or the step has not as many copies.
    pub(crate) fn push(
        &mut self,
        step: &Step<'_>,
        acted: &Acted<'_>,
        mut value: impl FnMut(&[f32]) -> f32,
    ) {
        assert_eq!(step.copies(), self.copies(), "the copies stay the same");
        let at = self.filled;
        write(
            &mut self.observations,
            at,
            step.observations,
            self.last_values.len(),
        );
        write(&mut self.actions, at, acted.actions, self.last_values.len());
        write(&mut self.rewards, at, step.rewards, self.last_values.len());
        write(&mut self.values, at, acted.values, self.last_values.len());
        write(
            &mut self.log_probabilities,
            at,
            acted.log_probabilities,
            self.last_values.len(),
        );
        if !acted.masks.is_empty() {
            self.is_masked = true;
            write(&mut self.masks, at, acted.masks, self.last_values.len());
        }
        for copy in 0..step.copies() {
            self.nexts[at + copy] = match (step.terminated[copy], step.truncated[copy]) {
                (true, _) => Next::End(0.0),
                (false, true) => Next::End(value(step.successor(copy))),
                (false, false) => Next::Step,
            };
        }
        self.filled += step.copies();
    }

    /// Computes advantages and returns of a full rollout; the values are of the observations after it.
    pub(crate) fn finish(&mut self, last_values: &[f32], horizon: Horizon) {
        self.last_values.copy_from_slice(last_values);
        let steps = Trajectories {
            rewards: &self.rewards,
            values: &self.values,
            nexts: &self.nexts,
            last_values: &self.last_values,
        };
        gae::estimate(&steps, horizon, &mut self.advantages, &mut self.returns);
    }

    /// The mask of a row; empty when every action may be taken.
    pub(crate) fn mask(&self, row: usize) -> &[bool] {
        if !self.is_masked {
            return &[];
        }
        let width = self.masks.len() / self.rows();
        &self.masks[row * width..][..width]
    }

    /// The share of the returns' variance that the values explain: 1 for a perfect value function, 0 for a
    /// constant one; `None` when the returns do not vary.
    pub(crate) fn explained_variance(&self) -> Option<f32> {
        let errors = self.returns.iter().zip(&self.values).map(|(r, v)| r - v);
        let total = variance(self.returns.iter().copied());
        (total > 0.0).then(|| 1.0 - (variance(errors) / total) as f32)
    }
}

/// Writes the values of all copies, which begin at row `at`.
fn write<T: std::marker::Copy>(column: &mut [T], at: usize, values: &[T], copies: usize) {
    let width = values.len() / copies;
    column[at * width..][..values.len()].copy_from_slice(values);
}

fn variance(values: impl Iterator<Item = f32> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = values.clone().map(f64::from).sum::<f64>() / count;
    values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count
}
