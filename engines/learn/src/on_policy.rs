//! The learner that PPO and A2C are settings of: it takes a fixed number of steps with its present policy,
//! estimates advantages, and follows the policy gradient for some passes over these steps. One pass over all
//! of them at once, without clipping, is A2C (Huang et al., "A2C is a special case of PPO", 2022).

mod acting;
pub(crate) mod actor_critic;
mod gae;
mod head;
mod learning;
mod objective;
mod rollout;

use crate::{
    hyper::{Complete, ParamViolation, Spec, Values},
    learner::{self, BadCheckpoint, Learner, Loss, Step, Stopped, Update, WrongPolicy},
    net::Adam,
    policy::Policy,
    size::{Ends, Extent, Part, Size, batch, chain, networks, numbers},
};
use acting::Acting;
use actor_critic::ActorCritic;
pub(crate) use gae::Horizon;
pub(crate) use learning::Objective;
use learning::{Losses, Minibatch};
use rand::RngExt;
use rollout::{Rollout, Shape};
use serde::{Deserialize, Serialize};
use tars_worlds::{Action, ActionSpace, AgentSpace, Generator};

/// What keeps Adam's quotient finite, as in the authors' implementation of PPO.
const ADAM_EPSILON: f32 = 1e-5;

/// The losses of this family.
pub(crate) const LOSSES: &[Loss] = &[
    Loss {
        name: "policy_loss",
        of: |update| update.policy_loss,
    },
    Loss {
        name: "value_loss",
        of: |update| update.value_loss,
    },
];

/// How its exploration is measured.
pub(crate) const EXPLORATION: &str = "entropy";

/// An algorithm of this family.
#[derive(Debug)]
pub(crate) struct Method {
    pub name: &'static str,
    pub spec: Spec,
    pub plan: fn(&Complete) -> Plan,
}

/// The typed hyperparameters of the whole family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Plan {
    pub learning_rate: f32,
    pub horizon: Horizon,
    pub objective: Objective,
    pub max_grad_norm: f32,
    /// The steps of each copy between two updates.
    pub steps: usize,
    /// The passes over these steps.
    pub epochs: usize,
    /// The rows of a minibatch; `None` takes all at once.
    pub batch: Option<usize>,
    /// An update ends when the policy has diverged by one and a half times this; `None` does not bound it.
    pub target_kl: Option<f32>,
    /// The steps of all copies over which step size and clipping fall linearly to zero; 0 keeps them.
    pub anneal_steps: u64,
    /// The units of a hidden layer.
    pub hidden: usize,
}

struct OnPolicy {
    method: &'static Method,
    plan: Plan,
    state: State,
    model: ActorCritic,
    acting: Acting,
    minibatch: Minibatch,
    /// The rows of the rollout, in the order in which a pass takes them.
    order: Vec<u32>,
}

/// What a learner goes on from; what a checkpoint contains beside it are the parameters of the model.
#[derive(Debug)]
struct State {
    values: Complete,
    optimiser: Adam,
    head_optimiser: Adam,
    rollout: Rollout,
    /// The steps of all copies so far.
    steps: u64,
    /// The mean entropy in the last update.
    entropy: f32,
}

/// A checkpoint, as it is read.
#[derive(Deserialize)]
struct Loaded {
    values: Complete,
    params: Vec<f32>,
    head_params: Vec<f32>,
    optimiser: Adam,
    head_optimiser: Adam,
    rollout: Rollout,
    steps: u64,
    entropy: f32,
}

/// The same as it is written: nothing is copied for it.
#[derive(Serialize)]
struct Saved<'a> {
    values: &'a Complete,
    params: &'a [f32],
    head_params: &'a [f32],
    optimiser: &'a Adam,
    head_optimiser: &'a Adam,
    rollout: &'a Rollout,
    steps: u64,
    entropy: f32,
}

/// Creates a learner of a method.
pub(crate) fn create(
    method: &'static Method,
    space: &AgentSpace,
    values: &Values,
    copies: usize,
    rng: &mut Generator,
) -> Result<Box<dyn Learner>, Vec<ParamViolation>> {
    let values = method.spec.typed(values)?;
    let plan = (method.plan)(&values);
    let model = ActorCritic::new(space, plan.hidden, rng);
    let params = model.head.params().len();
    let state = State {
        values,
        optimiser: Adam::new(model.net.params().len(), ADAM_EPSILON),
        head_optimiser: Adam::new(params, ADAM_EPSILON),
        rollout: Rollout::new(shape(&plan, &model, copies)),
        steps: 0,
        entropy: (space.action.len() as f32).ln(),
    };
    Ok(Box::new(OnPolicy::new(method, plan, model, state)))
}

/// Restores a learner of a method.
pub(crate) fn restore(
    method: &'static Method,
    space: &AgentSpace,
    copies: usize,
    checkpoint: &[u8],
) -> Result<Box<dyn Learner>, BadCheckpoint> {
    let saved: Loaded = learner::load(method.name, checkpoint)?;
    let typed = method.spec.typed(&saved.values.values());
    let values = typed.map_err(|_| BadCheckpoint)?;
    let plan = (method.plan)(&values);
    let mut unused = <Generator as rand::SeedableRng>::seed_from_u64(0);
    let mut model = ActorCritic::new(space, plan.hidden, &mut unused);
    fill(&mut model, &saved).ok_or(BadCheckpoint)?;
    let fits = saved.rollout.has(shape(&plan, &model, copies))
        && model.is_action(&saved.rollout.actions)
        && saved.optimiser.fits(model.net.params().len())
        && saved.head_optimiser.fits(model.head.params().len());
    if !fits {
        return Err(BadCheckpoint);
    }
    let state = State {
        values,
        optimiser: saved.optimiser,
        head_optimiser: saved.head_optimiser,
        rollout: saved.rollout,
        steps: saved.steps,
        entropy: saved.entropy,
    };
    Ok(Box::new(OnPolicy::new(method, plan, model, state)))
}

/// What a learner may come to: the actor and the critic, the moments of their optimisers and the best policy so far;
/// the rollout; a minibatch, which is the whole rollout where the plan sets none.
pub(crate) fn size(plan: &Plan, space: &AgentSpace, extent: Extent) -> Size {
    let Ends {
        observation,
        actions,
    } = Ends::of(space);
    let (action, mask, spreads) = match space.action {
        ActionSpace::Discrete(_) => (1, actions, 0),
        ActionSpace::Continuous(_) => (actions, 0, actions),
    };
    let hidden = plan.hidden as u64;
    let branch = |outputs: u64| chain(&[observation, hidden, hidden, outputs]);
    let params = branch(actions) + branch(1);
    let rows = plan.steps as u64 * extent.copies();
    // An observation, an action and five numbers, what followed, and what may be done.
    let row = numbers(observation + action + 5) + NEXT + mask;
    let outputs = 4 * hidden + actions + 1;
    let pass = |rows: u64| batch(rows, observation, outputs, params) + rows * (observation + 1);
    let minibatch = plan.batch.map_or(rows, |batch| rows.min(batch as u64));
    let each = pass(minibatch) + pass(extent.copies()) + rows;
    Size {
        saved: [
            // The policy has the bounds of its actions.
            networks(4 * (params + spreads) + 3 * actions, extent),
            Part {
                parameter: "n_steps",
                bytes: rows * row + numbers(extent.copies()),
            },
        ],
        buffers: Part {
            parameter: plan.batch.map_or("n_steps", |_| "batch_size"),
            bytes: numbers(each),
        },
    }
}

/// The most bytes of what followed a step, as it is encoded.
const NEXT: u64 = 5;

fn fill(model: &mut ActorCritic, saved: &Loaded) -> Option<()> {
    model.net.set_params(&saved.params)?;
    let own = model.head.params_mut();
    let fits = own.len() == saved.head_params.len();
    let finite = saved.head_params.iter().all(|p| p.is_finite());
    (fits && finite).then(|| own.copy_from_slice(&saved.head_params))
}

fn shape(plan: &Plan, model: &ActorCritic, copies: usize) -> Shape {
    Shape {
        steps: plan.steps,
        copies,
        observation: model.net.inputs(),
        action: model.action_width(),
        mask: model.mask_width(),
    }
}

impl OnPolicy {
    fn new(method: &'static Method, plan: Plan, model: ActorCritic, state: State) -> Self {
        let (rows, copies) = (state.rollout.rows(), state.rollout.copies());
        let largest = plan.batch.unwrap_or(rows).min(rows);
        Self {
            acting: Acting::new(&model, copies),
            minibatch: Minibatch::new(&model, largest),
            order: (0..rows as u32).collect(),
            method,
            plan,
            state,
            model,
        }
    }

    /// What is left of step size and clipping, in 0..=1.
    fn annealed(&self) -> f32 {
        if self.plan.anneal_steps == 0 {
            return 1.0;
        }
        (1.0 - self.state.steps as f64 / self.plan.anneal_steps as f64).max(0.0) as f32
    }

    /// Learns from a full rollout.
    fn learn(&mut self, rng: &mut Generator, stopped: Stopped<'_>) -> Update {
        let left = self.annealed();
        let mut objective = self.plan.objective;
        objective.clip = objective.clip.map(|clip| clip * left);
        let mut sums = Sums::default();
        for _ in 0..self.plan.epochs {
            self.start_pass(rng);
            if !self.pass(
                &objective,
                self.plan.learning_rate * left,
                &mut sums,
                stopped,
            ) {
                break;
            }
        }
        let mut update = sums.update(self.state.rollout.explained_variance());
        if self.plan.target_kl.is_none() {
            // All is learned from once, by the policy that acted: nothing has diverged yet.
            update.kl = None;
        }
        self.state.entropy = update.entropy.unwrap_or(self.state.entropy);
        update
    }

    /// Shuffles the rows, unless all are taken at once.
    fn start_pass(&mut self, rng: &mut Generator) {
        for (at, row) in self.order.iter_mut().enumerate() {
            *row = at as u32;
        }
        if self.plan.batch.is_some() {
            for at in (1..self.order.len()).rev() {
                self.order.swap(at, rng.random_range(0..=at));
            }
        }
    }

    /// A gradient step for each minibatch; `false` when the policy has moved far enough, or is stopped.
    fn pass(
        &mut self,
        objective: &Objective,
        rate: f32,
        sums: &mut Sums,
        stopped: Stopped<'_>,
    ) -> bool {
        let size = self.minibatch.batch.capacity();
        for rows in self.order.chunks(size) {
            if stopped() {
                return false;
            }
            let rollout = &self.state.rollout;
            let losses = self
                .minibatch
                .differentiate(&self.model, rollout, rows, objective);
            let most = self.plan.target_kl.map_or(f32::INFINITY, |kl| 1.5 * kl);
            if losses.kl > most {
                sums.add(&losses, None);
                return false;
            }
            let norm = self.minibatch.clip(self.plan.max_grad_norm);
            let Minibatch {
                batch,
                head_gradient,
                ..
            } = &mut self.minibatch;
            let params = self.model.net.params_mut();
            self.state.optimiser.step(params, batch.gradient(), rate);
            let params = self.model.head.params_mut();
            self.state.head_optimiser.step(params, head_gradient, rate);
            sums.add(&losses, Some(norm));
        }
        true
    }
}

/// Sums over minibatches.
#[derive(Debug, Default)]
struct Sums {
    minibatches: f32,
    steps: u32,
    losses: Losses,
    norm: f32,
}

impl Sums {
    /// Adds a minibatch, with the norm of its gradient if a step was taken.
    fn add(&mut self, losses: &Losses, norm: Option<f32>) {
        self.minibatches += 1.0;
        self.steps += u32::from(norm.is_some());
        self.norm += norm.unwrap_or(0.0);
        self.losses.total += losses.total;
        self.losses.policy += losses.policy;
        self.losses.value += losses.value;
        self.losses.entropy += losses.entropy;
        self.losses.kl += losses.kl;
        self.losses.clip_fraction += losses.clip_fraction;
    }

    fn update(&self, explained_variance: Option<f32>) -> Update {
        let mean = |sum: f32| Some(sum / self.minibatches.max(1.0));
        Update {
            gradient_steps: self.steps,
            loss: mean(self.losses.total),
            policy_loss: mean(self.losses.policy),
            value_loss: mean(self.losses.value),
            entropy: mean(self.losses.entropy),
            kl: mean(self.losses.kl),
            clip_fraction: mean(self.losses.clip_fraction),
            explained_variance,
            q: None,
            gradient_norm: (self.steps > 0).then(|| self.norm / self.steps as f32),
        }
    }
}

impl Learner for OnPolicy {
    fn act(
        &mut self,
        observations: &[f32],
        masks: &[bool],
        rng: &mut Generator,
        actions: &mut [Action],
    ) {
        self.acting
            .act(&self.model, observations, masks, rng, actions);
    }

    fn observe(&mut self, step: &Step<'_>, _: &mut Generator) {
        self.acting.evaluate(&self.model, step.actions);
        self.acting
            .record(&self.model, step, &mut self.state.rollout);
        self.state.steps += step.copies() as u64;
        if self.state.rollout.is_full() {
            let values = self.acting.values_of(&self.model, step.next_observations);
            self.state.rollout.finish(values, self.plan.horizon);
        }
    }

    fn update(&mut self, rng: &mut Generator, stopped: Stopped<'_>) -> Option<Update> {
        if !self.state.rollout.is_full() {
            return None;
        }
        let update = self.learn(rng, stopped);
        self.state.rollout.clear();
        Some(update)
    }

    fn exploration(&self) -> f32 {
        self.state.entropy
    }

    fn reload(&mut self, values: &Values) -> Result<(), Vec<ParamViolation>> {
        self.state.values = self.method.spec.reload(&self.state.values, values)?;
        self.plan = (self.method.plan)(&self.state.values);
        Ok(())
    }

    fn policy(&self) -> Policy {
        self.model.policy(self.method.name)
    }

    fn start_from(&mut self, policy: &Policy) -> Result<(), WrongPolicy> {
        if policy.algorithm() != self.method.name {
            return Err(WrongPolicy);
        }
        self.model.start_from(policy)
    }

    fn checkpoint(&self) -> Vec<u8> {
        let state = Saved {
            values: &self.state.values,
            params: self.model.net.params(),
            head_params: self.model.head.params(),
            optimiser: &self.state.optimiser,
            head_optimiser: &self.state.head_optimiser,
            rollout: &self.state.rollout,
            steps: self.state.steps,
            entropy: self.state.entropy,
        };
        learner::save(self.method.name, &state)
    }
}

#[cfg(test)]
mod tests;
