//! Acting with the present policy, and what has to be remembered of it.

use super::{
    actor_critic::ActorCritic,
    rollout::{Acted, Rollout},
};
use crate::{
    learner::Step,
    net::{Batch, Scratch},
};
use tars_worlds::{Action, Generator};

/// The buffers of one step of all copies, which are allocated once. They are filled by
/// [`act`](Acting::act) and read when its outcome is observed.
#[derive(Debug)]
pub(super) struct Acting {
    batch: Batch,
    scratch: Scratch,
    /// The prepared outputs of the actor: copies × outputs.
    outputs: Vec<f32>,
    /// The actions as the distribution gave them: copies × numbers of an action.
    drawn: Vec<f32>,
    log_probabilities: Vec<f32>,
    values: Vec<f32>,
    masks: Vec<bool>,
}

impl Acting {
    pub(super) fn new(model: &ActorCritic, copies: usize) -> Self {
        Self {
            batch: Batch::new(&model.net, copies),
            scratch: Scratch::default(),
            outputs: vec![0.0; copies * model.outputs()],
            drawn: vec![0.0; copies * model.action_width()],
            log_probabilities: vec![0.0; copies],
            values: vec![0.0; copies],
            masks: Vec::with_capacity(copies * model.mask_width()),
        }
    }

    /// Draws an action for each copy.
    pub(super) fn act(
        &mut self,
        model: &ActorCritic,
        observations: &[f32],
        masks: &[bool],
        rng: &mut Generator,
        actions: &mut [Action],
    ) {
        self.batch.infer(&model.net, observations);
        let (outputs, values) = (
            self.batch.output(&model.net, model.actor),
            self.batch.output(&model.net, model.critic),
        );
        self.outputs.copy_from_slice(outputs);
        self.values.copy_from_slice(values);
        self.masks.clear();
        self.masks.extend_from_slice(masks);
        let width = model.action_width();
        let rows = self.outputs.chunks_exact_mut(model.outputs());
        let drawn = self.drawn.chunks_exact_mut(width);
        for (copy, ((row, drawn), action)) in rows.zip(drawn).zip(actions).enumerate() {
            let mask = masks.get(copy * row.len()..).unwrap_or_default();
            model.head.prepare(row, &mask[..mask.len().min(row.len())]);
            model.head.sample(row, rng, drawn);
            model.write(drawn, action);
        }
    }

    /// Computes the log-probabilities of what was done, which need not be what was drawn.
    pub(super) fn evaluate(&mut self, model: &ActorCritic, actions: &[Action]) {
        let rows = self.outputs.chunks_exact(model.outputs());
        let drawn = self.drawn.chunks_exact_mut(model.action_width());
        let written = self.log_probabilities.iter_mut();
        for (((row, drawn), log), action) in rows.zip(drawn).zip(written).zip(actions) {
            model.read(action, drawn);
            *log = model.head.evaluate(row, drawn).log_probability;
        }
    }

    /// Appends what was done and what came of it to a rollout.
    pub(super) fn record(&mut self, model: &ActorCritic, step: &Step<'_>, rollout: &mut Rollout) {
        let acted = Acted {
            actions: &self.drawn,
            log_probabilities: &self.log_probabilities,
            values: &self.values,
            masks: &self.masks,
        };
        let scratch = &mut self.scratch;
        rollout.push(step, &acted, |observation| {
            model.net.forward_one(observation, scratch);
            model.net.output_of(model.critic, scratch)[0]
        });
    }

    /// The values of a row of observations for each copy.
    pub(super) fn values_of(&mut self, model: &ActorCritic, observations: &[f32]) -> &[f32] {
        self.batch.infer(&model.net, observations);
        self.batch.output(&model.net, model.critic)
    }
}
