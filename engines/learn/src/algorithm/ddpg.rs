//! Deep deterministic policy gradient (Lillicrap et al., "Continuous control with deep reinforcement
//! learning", 2016): an actor that follows the gradient of a critic, which is trained from replayed
//! transitions, with target networks that follow slowly.
//!
//! Inside, actions are within ±1; they are scaled to the agent's bounds where they leave.

mod critic;
mod noise;
mod params;
mod state;

use super::{
    Actions, Algorithm,
    replay::{Replay, Transition, Widths},
};
use crate::{
    hyper::{ParamViolation, Values},
    learner::{Learner, Loss, Step, Stopped, Update, WrongPolicy},
    net::{Activation, Adam, Batch, Init, LayerId, Net, Scratch, clip, standard_normal},
    policy::{Bounds, Policy, Readout},
};
use critic::{Critic, CriticBatch};
use noise::Noise;
use params::Params;
use rand::RngExt;
use tars_worlds::{Action, AgentSpace, Generator};

const NAME: &str = "ddpg";

/// The bound of the last layers' initial weights, as in the paper.
const LAST: Init = Init::Uniform(3e-3);

/// The algorithm, for the registry.
pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: NAME,
    paper: "Lillicrap et al., Continuous control with deep reinforcement learning, ICLR 2016",
    spec: params::SPEC,
    copies: 1,
    losses: &[
        Loss {
            name: "actor_loss",
            of: |update| update.policy_loss,
        },
        Loss {
            name: "critic_loss",
            of: |update| update.value_loss,
        },
    ],
    exploration: "noise",
    actions: Actions::Continuous,
    new: |space, values, copies, rng| {
        let params = Params::from_values(values)?;
        Ok(Box::new(Ddpg::new(space, params, copies, rng)))
    },
    restore: |space, copies, bytes| Ok(Box::new(state::restore(space, copies, bytes)?)),
    size: state::size,
};

/// A DDPG learner.
struct Ddpg {
    params: Params,
    bounds: Bounds,
    actor: Net,
    target_actor: Net,
    actor_adam: Adam,
    critic: Critic,
    target_critic: Critic,
    replay: Replay,
    noise: Noise,
    counters: Counters,
    buffers: Buffers,
}

/// What a learner counts. Steps are those of all copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Counters {
    steps: u64,
    /// Steps that no gradient step has followed yet.
    waiting: u64,
}

/// The buffers of acting and of a minibatch, allocated once for a batch size.
struct Buffers {
    scratch: Scratch,
    action: Vec<f32>,
    picks: Vec<usize>,
    states: Vec<f32>,
    nexts: Vec<f32>,
    /// The replayed actions, and then those at which the actor takes the critic's slope.
    actions: Vec<f32>,
    /// What the latter differ by from the actor's own.
    smoothing: Vec<f32>,
    targets: Vec<f32>,
    actor: Batch,
    critic: CriticBatch,
}

impl Buffers {
    fn new(actor: &Net, critic: &Critic, actions: usize, rows: usize) -> Self {
        let numbers = |each: usize| vec![0.0; rows * each];
        Self {
            scratch: Scratch::default(),
            action: vec![0.0; actions],
            picks: vec![0; rows],
            states: numbers(actor.inputs()),
            nexts: numbers(actor.inputs()),
            actions: numbers(actions),
            smoothing: numbers(actions),
            targets: numbers(1),
            actor: Batch::new(actor, rows),
            critic: CriticBatch::new(critic, rows),
        }
    }
}

fn actor(inputs: usize, actions: usize, params: &Params, rng: &mut Generator) -> Net {
    let mut net = Net::new(inputs);
    let widths = [params.hidden_dim; 2];
    let trunk = net.hidden(None, &widths, Activation::Relu, Init::He(1.0), rng);
    net.add(trunk, actions, Activation::Tanh, LAST, rng);
    net
}

/// What the actor puts out for a batch, row-major.
fn actions_of<'a>(net: &Net, batch: &'a Batch) -> &'a [f32] {
    let head = net.heads().next();
    head.map_or(&[], |head| batch.output(net, head))
}

fn widths(space: &AgentSpace) -> Widths {
    Widths {
        observation: space.observation.len(),
        action: space.action.len(),
        mask: 0,
    }
}

impl Ddpg {
    fn new(space: &AgentSpace, params: Params, copies: usize, rng: &mut Generator) -> Self {
        let widths = widths(space);
        let bounds = Bounds::of(&space.action).expect("the algorithm fits the agent");
        let actor = actor(widths.observation, widths.action, &params, rng);
        let shape = (params.hidden_dim, params.critic_activation());
        let mut critic = Critic::new(widths.observation, widths.action, shape, rng);
        critic.set_weight_decay(params.critic_weight_decay);
        Self {
            bounds,
            target_actor: actor.clone(),
            actor_adam: Adam::new(actor.params().len(), 1e-8),
            target_critic: critic.clone(),
            replay: Replay::new(widths, params.buffer_size),
            noise: Noise::new(copies, widths.action, params.noise.sigma),
            counters: Counters::default(),
            buffers: Buffers::new(&actor, &critic, widths.action, params.batch_size),
            actor,
            critic,
            params,
        }
    }

    /// One gradient step of the critic and one of the actor on a minibatch; then the targets follow.
    fn learn(&mut self, rng: &mut Generator) -> Update {
        self.draw(rng);
        self.descend()
    }

    /// The same on the minibatch that was drawn.
    fn descend(&mut self) -> Update {
        self.gather();
        self.compute_targets();
        let (value_loss, norm) = self.learn_critic();
        let q = self.learn_actor();
        self.target_actor.blend(&self.actor, self.params.tau);
        self.target_critic.blend(&self.critic, self.params.tau);
        Update {
            gradient_steps: 1,
            loss: Some(value_loss - q),
            policy_loss: Some(-q),
            value_loss: Some(value_loss),
            q: Some(q),
            gradient_norm: Some(norm),
            ..Update::default()
        }
    }

    /// Draws a minibatch uniformly, with replacement, and the noise that smooths the critic's slope.
    fn draw(&mut self, rng: &mut Generator) {
        let (replay, buffers) = (&self.replay, &mut self.buffers);
        buffers.picks.fill_with(|| replay.pick(rng));
        let sigma = self.params.actor_smoothing;
        if sigma > 0.0 {
            let noise = || sigma * standard_normal(rng);
            buffers.smoothing.fill_with(noise);
        }
    }

    /// Copies the transitions of the minibatch.
    fn gather(&mut self) {
        let (replay, buffers) = (&self.replay, &mut self.buffers);
        let (inputs, width) = (self.actor.inputs(), self.bounds.len());
        for (row, at) in buffers.picks.iter().enumerate() {
            let (state, next) = (replay.observation(*at), replay.next(*at));
            buffers.states[row * inputs..][..inputs].copy_from_slice(state);
            buffers.nexts[row * inputs..][..inputs].copy_from_slice(next);
            buffers.actions[row * width..][..width].copy_from_slice(replay.action(*at));
        }
    }

    fn compute_targets(&mut self) {
        let buffers = &mut self.buffers;
        buffers.actor.forward(&self.target_actor, &buffers.nexts);
        let actions = actions_of(&self.target_actor, &buffers.actor);
        let critic = &mut buffers.critic;
        critic.forward(&self.target_critic, &buffers.nexts, actions);
        let values = critic.values(&self.target_critic);
        let rows = buffers.targets.iter_mut().zip(&buffers.picks).zip(values);
        for ((target, at), value) in rows {
            let discount = self.params.gamma * self.replay.continuation(*at);
            *target = self.replay.reward(*at) + discount * value;
        }
    }

    /// Returns the mean squared error of the critic and the norm of its gradient.
    fn learn_critic(&mut self) -> (f32, f32) {
        let Buffers {
            states,
            actions,
            targets,
            critic: batch,
            ..
        } = &mut self.buffers;
        batch.forward(&self.critic, states, actions);
        let rows = targets.len() as f32;
        let mut loss = 0.0;
        let (values, gradient) = batch.values_and_gradient(&self.critic);
        for ((value, target), gradient) in values.iter().zip(targets).zip(gradient) {
            let error = value - *target;
            loss += error * error;
            *gradient = 2.0 * error / rows;
        }
        batch.backward(&self.critic, states);
        let norm = batch.clip(self.params.max_gradient_norm);
        self.critic.step(batch, self.params.critic_learning_rate);
        (loss / rows, norm)
    }

    /// Writes the actions at which the actor takes the critic's slope: its own, with the noise over which the
    /// slope is averaged.
    fn probe(&mut self, head: LayerId) {
        let buffers = &mut self.buffers;
        buffers.actor.forward(&self.actor, &buffers.states);
        let own = buffers.actor.output(&self.actor, head);
        match self.params.actor_smoothing > 0.0 {
            false => buffers.actions.copy_from_slice(own),
            true => {
                let each = buffers.actions.iter_mut().zip(own).zip(&buffers.smoothing);
                each.for_each(|((probe, own), noise)| *probe = (own + noise).clamp(-1.0, 1.0));
            }
        }
    }

    /// Moves the actor along the critic's gradient. Returns the mean value of its actions.
    fn learn_actor(&mut self) -> f32 {
        let Some(head) = self.actor.heads().next() else {
            return 0.0;
        };
        self.probe(head);
        let buffers = &mut self.buffers;
        let critic = &mut buffers.critic;
        critic.forward(&self.critic, &buffers.states, &buffers.actions);
        let rows = buffers.picks.len() as f32;
        let (values, gradient) = critic.values_and_gradient(&self.critic);
        let mean = values.iter().sum::<f32>() / rows;
        gradient.fill(-1.0 / rows);
        let by_actions = buffers.actor.output_gradient(&self.actor, head);
        critic.gradient_by_actions(&self.critic, by_actions);
        buffers.actor.backward(&self.actor, &buffers.states);
        clip(buffers.actor.gradient(), self.params.max_gradient_norm);
        let rate = self.params.actor_learning_rate;
        self.actor_adam
            .step(self.actor.params_mut(), buffers.actor.gradient(), rate);
        mean
    }

    fn store(&mut self, step: &Step<'_>, copy: usize) {
        let Action::Continuous(action) = &step.actions[copy] else {
            unreachable!("a continuous space contains continuous actions only");
        };
        for (at, value) in action.iter().enumerate() {
            self.buffers.action[at] = self.bounds.unscale(at, *value);
        }
        self.replay.push(&Transition {
            observation: step.observation(copy),
            action: &self.buffers.action,
            reward: step.rewards[copy],
            next: step.successor(copy),
            mask: &[],
            terminated: step.terminated[copy],
        });
    }

    /// The actor's choice with noise, or during the warm-up any action.
    fn choose(&mut self, copy: usize, observation: &[f32], rng: &mut Generator) {
        let buffers = &mut self.buffers;
        if self.counters.steps < self.params.warmup_steps {
            let any = || 2.0 * rng.random::<f32>() - 1.0;
            return buffers.action.fill_with(any);
        }
        self.actor.forward_one(observation, &mut buffers.scratch);
        let noise = self.noise.draw(copy, &self.params.noise, rng);
        let output = self.actor.heads().next();
        let output = output.map_or(&[][..], |h| self.actor.output_of(h, &buffers.scratch));
        for ((action, unit), noise) in buffers.action.iter_mut().zip(output).zip(noise) {
            *action = (unit + noise).clamp(-1.0, 1.0);
        }
    }
}

impl Learner for Ddpg {
    fn act(
        &mut self,
        observations: &[f32],
        _: &[bool],
        rng: &mut Generator,
        actions: &mut [Action],
    ) {
        let rows = observations.chunks_exact(self.actor.inputs()).zip(actions);
        for (copy, (observation, action)) in rows.enumerate() {
            self.choose(copy, observation, rng);
            if let Action::Continuous(components) = action {
                for (at, component) in components.iter_mut().enumerate() {
                    *component = self.bounds.scale(at, self.buffers.action[at]);
                }
            }
        }
    }

    fn observe(&mut self, step: &Step<'_>, _: &mut Generator) {
        for copy in 0..step.copies() {
            self.store(step, copy);
            if step.is_last(copy) {
                self.noise.end_episode(copy, &self.params.noise);
            }
        }
        self.counters.steps += step.copies() as u64;
        self.counters.waiting += step.copies() as u64;
    }

    fn update(&mut self, rng: &mut Generator, stopped: Stopped<'_>) -> Option<Update> {
        let every = self.params.train_frequency;
        let enough = self.params.batch_size as u64;
        if self.counters.steps < self.params.warmup_steps.max(enough) {
            self.counters.waiting = 0;
            return None;
        }
        let mut updates = Update::default();
        while self.counters.waiting >= every {
            self.counters.waiting -= every;
            for _ in 0..self.params.gradient_steps {
                if stopped() {
                    return None;
                }
                updates.merge(&self.learn(rng));
            }
        }
        (updates.gradient_steps > 0).then_some(updates)
    }

    fn exploration(&self) -> f32 {
        self.noise.sigma()
    }

    fn buffered(&self) -> Option<usize> {
        Some(self.replay.len())
    }

    fn reload(&mut self, values: &Values) -> Result<(), Vec<ParamViolation>> {
        let params = self.params.reload(values)?;
        if params.batch_size != self.params.batch_size {
            let actions = self.bounds.len();
            self.buffers = Buffers::new(&self.actor, &self.critic, actions, params.batch_size);
        }
        if params.noise != self.params.noise {
            self.noise.set_sigma(params.noise.sigma);
        }
        self.critic.set_weight_decay(params.critic_weight_decay);
        self.params = params;
        Ok(())
    }

    fn policy(&self) -> Policy {
        Policy::new(NAME, self.actor.clone(), self.readout())
    }

    fn start_from(&mut self, policy: &Policy) -> Result<(), WrongPolicy> {
        let alike = policy.algorithm() == NAME && policy.net().has_shape_of(&self.actor);
        if !alike || *policy.readout() != self.readout() {
            return Err(WrongPolicy);
        }
        self.actor.clone_from(policy.net());
        self.target_actor.clone_from(policy.net());
        Ok(())
    }

    fn checkpoint(&self) -> Vec<u8> {
        state::save(self)
    }
}

impl Ddpg {
    fn readout(&self) -> Readout {
        Readout::Bounded(self.bounds.clone())
    }
}

#[cfg(test)]
mod tests;
