//! One gradient of the whole loss, from some rows of a rollout.

use super::{
    actor_critic::ActorCritic,
    head::Weights,
    objective::{divergence, policy_term, value_term},
    rollout::Rollout,
};
use crate::net::Batch;

/// What is minimised: the policy's loss, plus the weighted squared error of the values, minus the weighted
/// entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Objective {
    pub value_weight: f32,
    pub entropy_weight: f32,
    /// How far the ratio of probabilities may move the loss; `None` does not bound it.
    pub clip: Option<f32>,
    /// Whether the value's loss is clipped too, with the same number.
    pub clip_value: bool,
    /// Whether the advantages of a minibatch get mean 0 and variance 1.
    pub normalize_advantage: bool,
}

/// The means over a minibatch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Losses {
    pub total: f32,
    pub policy: f32,
    pub value: f32,
    pub entropy: f32,
    pub kl: f32,
    pub clip_fraction: f32,
}

/// The buffers of a minibatch, which are allocated once.
#[derive(Debug, Clone)]
pub(crate) struct Minibatch {
    pub batch: Batch,
    /// The gradient by the head's parameters.
    pub head_gradient: Vec<f32>,
    observations: Vec<f32>,
    advantages: Vec<f32>,
}

impl Minibatch {
    /// Buffers for at most `rows`.
    pub(crate) fn new(model: &ActorCritic, rows: usize) -> Self {
        Self {
            batch: Batch::new(&model.net, rows),
            head_gradient: vec![0.0; model.head.params().len()],
            observations: Vec::with_capacity(rows * model.net.inputs()),
            advantages: Vec::with_capacity(rows),
        }
    }

    /// Computes the losses of some rows, and their gradients by all parameters.
    pub(crate) fn differentiate(
        &mut self,
        model: &ActorCritic,
        rollout: &Rollout,
        rows: &[u32],
        objective: &Objective,
    ) -> Losses {
        self.gather(model, rollout, rows, objective);
        self.batch.forward(&model.net, &self.observations);
        let mut losses = Losses::default();
        self.add_values(model, rollout, rows, objective, &mut losses);
        self.add_policy(model, rollout, rows, objective, &mut losses);
        self.batch.backward(&model.net, &self.observations);
        losses.total = losses.policy + objective.value_weight * losses.value
            - objective.entropy_weight * losses.entropy;
        losses
    }

    fn gather(
        &mut self,
        model: &ActorCritic,
        rollout: &Rollout,
        rows: &[u32],
        objective: &Objective,
    ) {
        let width = model.net.inputs();
        self.observations.clear();
        self.advantages.clear();
        for row in rows.iter().map(|row| *row as usize) {
            let observation = &rollout.observations[row * width..][..width];
            self.observations.extend_from_slice(observation);
            self.advantages.push(rollout.advantages[row]);
        }
        if objective.normalize_advantage {
            normalize(&mut self.advantages);
        }
    }

    fn add_values(
        &mut self,
        model: &ActorCritic,
        rollout: &Rollout,
        rows: &[u32],
        objective: &Objective,
        losses: &mut Losses,
    ) {
        let share = 1.0 / rows.len() as f32;
        let clip = objective.clip.filter(|_| objective.clip_value);
        let (values, gradient) = self.batch.output_and_gradient(&model.net, model.critic);
        for ((value, slope), row) in values.iter().zip(gradient).zip(rows) {
            let row = *row as usize;
            let term = value_term(*value, rollout.values[row], rollout.returns[row], clip);
            losses.value += share * term.loss;
            *slope = share * objective.value_weight * term.slope;
        }
    }

    fn add_policy(
        &mut self,
        model: &ActorCritic,
        rollout: &Rollout,
        rows: &[u32],
        objective: &Objective,
        losses: &mut Losses,
    ) {
        let share = 1.0 / rows.len() as f32;
        let (outputs, width) = (model.outputs(), model.action_width());
        self.head_gradient.fill(0.0);
        let (prepared, gradient) = self.batch.output_and_gradient(&model.net, model.actor);
        gradient.copy_from_slice(prepared);
        let each = gradient.chunks_exact_mut(outputs).zip(rows);
        for ((output, row), advantage) in each.zip(&self.advantages) {
            let row = *row as usize;
            let action = &rollout.actions[row * width..][..width];
            model.head.prepare(output, rollout.mask(row));
            let found = model.head.evaluate(output, action);
            let (new, old) = (found.log_probability, rollout.log_probabilities[row]);
            let term = policy_term(new, old, *advantage, objective.clip);
            losses.policy += share * term.loss;
            losses.entropy += share * found.entropy;
            losses.kl += share * divergence(new, old);
            losses.clip_fraction += if term.clipped { share } else { 0.0 };
            let weights = Weights {
                log_probability: share * term.slope,
                entropy: -share * objective.entropy_weight,
            };
            let params = &mut self.head_gradient;
            model
                .head
                .differentiate(output, action, found.entropy, weights, params);
        }
    }

    /// Scales the gradient by all parameters so that its norm is at most this. Returns the norm before.
    pub(crate) fn clip(&mut self, max_norm: f32) -> f32 {
        let of_net = crate::net::clip(self.batch.gradient(), f32::INFINITY);
        let norm = self.head_gradient.iter().fold(of_net, |n, g| n.hypot(*g));
        if norm > max_norm {
            let parts = self
                .batch
                .gradient()
                .iter_mut()
                .chain(&mut self.head_gradient);
            parts.for_each(|g| *g *= max_norm / norm);
        }
        norm
    }
}

/// Gives numbers mean 0 and variance 1; a single one is left as it is.
fn normalize(values: &mut [f32]) {
    if values.len() < 2 {
        return;
    }
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>();
    let deviation = (squares / (values.len() - 1) as f32).sqrt();
    values
        .iter_mut()
        .for_each(|v| *v = (*v - mean) / (deviation + 1e-8));
}

#[cfg(test)]
mod tests;
