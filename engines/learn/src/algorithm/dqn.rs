//! Deep Q-learning (Mnih et al., "Human-level control through deep reinforcement learning", 2015) with double
//! targets (van Hasselt, Guez and Silver, "Deep Reinforcement Learning with Double Q-learning", 2016), dueling
//! heads (Wang et al., "Dueling Network Architectures for Deep Reinforcement Learning", 2016), prioritised
//! replay and the Huber loss.

mod params;
mod state;

pub(crate) use params::SPEC;

use super::{
    Actions, Algorithm,
    priorities::Priorities,
    replay::{Replay, Transition, Widths},
};
use crate::{
    distribution::{argmax, uniform},
    hyper::{ParamViolation, Values},
    learner::{Learner, Loss, Step, Stopped, Update, WrongPolicy},
    net::{Activation, Adam, Batch, Init, Net, Scratch, clip},
    policy::{Policy, Readout},
};
use params::Params;
use rand::RngExt;
use tars_worlds::{Action, AgentSpace, Generator};

const NAME: &str = "dqn";

/// The algorithm, for the registry.
pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: NAME,
    paper: "Mnih et al., Human-level control through deep reinforcement learning, Nature 518, 2015",
    spec: SPEC,
    copies: 1,
    losses: &[Loss {
        name: "td_loss",
        of: |update| update.loss,
    }],
    exploration: "epsilon",
    actions: Actions::Discrete,
    new: |space, values, _, rng| Ok(Box::new(Dqn::new(space, Params::from_values(values)?, rng))),
    restore: |space, _, bytes| Ok(Box::new(state::restore(space, bytes)?)),
    size: state::size,
};

/// A DQN learner.
struct Dqn {
    params: Params,
    online: Net,
    target: Net,
    adam: Adam,
    replay: Replay,
    priorities: Option<Priorities>,
    counters: Counters,
    buffers: Buffers,
}

/// What a learner counts. Steps are those of all copies.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
struct Counters {
    steps: u64,
    episodes: u64,
    /// Steps that no gradient step has followed yet.
    waiting: u64,
    gradient_steps: u64,
    /// The probability of a random action.
    epsilon: f64,
    /// The exponent of the weights of prioritised transitions.
    beta: f64,
}

/// The buffers of acting and of a minibatch, allocated once for a batch size.
struct Buffers {
    scratch: Scratch,
    values: Vec<f32>,
    picks: Vec<usize>,
    weights: Vec<f32>,
    states: Vec<f32>,
    nexts: Vec<f32>,
    targets: Vec<f32>,
    chosen: Vec<usize>,
    online: Batch,
    other: Batch,
}

impl Buffers {
    fn new(net: &Net, rows: usize) -> Self {
        let numbers = |each: usize| vec![0.0; rows * each];
        Self {
            scratch: Scratch::default(),
            values: vec![0.0; actions_of(net)],
            picks: vec![0; rows],
            weights: vec![1.0; rows],
            states: numbers(net.inputs()),
            nexts: numbers(net.inputs()),
            targets: numbers(1),
            chosen: vec![0; rows],
            online: Batch::new(net, rows),
            other: Batch::new(net, rows),
        }
    }
}

/// The network: two hidden layers, and a head for the values of the actions, or two for their advantages and
/// the value of the state.
fn net(inputs: usize, actions: usize, params: &Params, rng: &mut Generator) -> Net {
    let mut net = Net::new(inputs);
    let widths = [params.hidden_dim; 2];
    let trunk = net.hidden(None, &widths, Activation::Relu, Init::Xavier(1.0), rng);
    net.add(trunk, actions, Activation::Identity, Init::Xavier(1.0), rng);
    if params.dueling {
        net.add(trunk, 1, Activation::Identity, Init::Xavier(1.0), rng);
    }
    net
}

fn actions_of(net: &Net) -> usize {
    net.heads().next().map_or(0, |head| net.outputs(head))
}

/// The values of all actions in a row of the heads' outputs.
fn row_values(net: &Net, batch: &Batch, row: usize, values: &mut [f32]) {
    let mut heads = net.heads().map(|head| batch.output(net, head));
    let first = heads.next().unwrap_or_default();
    values.copy_from_slice(&first[row * values.len()..][..values.len()]);
    if let Some(state) = heads.next() {
        combine(values, state[row]);
    }
}

/// Turns advantages into values: their mean is the value of the state.
fn combine(advantages: &mut [f32], state: f32) {
    let mean = advantages.iter().sum::<f32>() / advantages.len() as f32;
    advantages.iter_mut().for_each(|a| *a += state - mean);
}

/// The Huber loss (1964): quadratic within ±1, linear beyond. Its derivative is the clamped error.
fn huber(error: f32) -> f32 {
    if error.abs() <= 1.0 {
        0.5 * error * error
    } else {
        error.abs() - 0.5
    }
}

fn widths(space: &AgentSpace) -> Widths {
    Widths {
        observation: space.observation.len(),
        action: 1,
        mask: space.action.len(),
    }
}

impl Dqn {
    fn new(space: &AgentSpace, params: Params, rng: &mut Generator) -> Self {
        let widths = widths(space);
        let online = net(widths.observation, space.action.len(), &params, rng);
        Self {
            target: online.clone(),
            adam: Adam::new(online.params().len(), 1e-8),
            replay: Replay::new(widths, params.buffer_size),
            priorities: params.prioritized_replay.then(Priorities::new),
            counters: Counters {
                steps: 0,
                episodes: 0,
                waiting: 0,
                gradient_steps: 0,
                epsilon: params.epsilon_start,
                beta: params.priority_beta,
            },
            buffers: Buffers::new(&online, params.batch_size),
            online,
            params,
        }
    }

    fn store(&mut self, step: &Step<'_>, copy: usize) {
        let Action::Discrete(action) = step.actions[copy] else {
            unreachable!("a discrete space contains discrete actions only");
        };
        let actions = step.next_masks.len() / step.copies();
        let mask = match step.is_last(copy) {
            true => &[],
            false => &step.next_masks[copy * actions..][..actions],
        };
        let at = self.replay.push(&Transition {
            observation: step.observation(copy),
            action: &[action as f32],
            reward: step.rewards[copy],
            next: step.successor(copy),
            mask,
            terminated: step.terminated[copy],
        });
        if let Some(priorities) = &mut self.priorities {
            priorities.insert(at);
        }
    }

    /// Epsilon decays with the episodes, and so does the target network follow, unless their schedules are
    /// given in steps.
    fn end_episode(&mut self) {
        let (counters, params) = (&mut self.counters, &self.params);
        counters.episodes += 1;
        if params.epsilon_steps == 0 {
            counters.epsilon = (counters.epsilon * params.epsilon_decay).max(params.epsilon_end);
        }
        if params.target_steps == 0 && counters.episodes.is_multiple_of(params.target_update) {
            self.target.blend(&self.online, params.tau);
        }
    }

    fn count_steps(&mut self, copies: u64) {
        let (counters, params) = (&mut self.counters, &self.params);
        counters.steps += copies;
        counters.waiting += copies;
        if params.epsilon_steps > 0 {
            let share = (counters.steps as f64 / params.epsilon_steps as f64).min(1.0);
            counters.epsilon =
                params.epsilon_start + share * (params.epsilon_end - params.epsilon_start);
        }
        if params.target_steps > 0 && counters.steps % params.target_steps < copies {
            self.target.blend(&self.online, params.tau);
        }
    }

    /// One gradient step on a minibatch.
    fn learn(&mut self, rng: &mut Generator) -> Update {
        self.draw(rng);
        self.weigh();
        self.descend()
    }

    /// One gradient step on the minibatch that was drawn.
    fn descend(&mut self) -> Update {
        self.gather();
        self.compute_targets();
        let (loss, q) = self.compute_gradient();
        let batch = &mut self.buffers.online;
        batch.backward(&self.online, &self.buffers.states);
        let norm = clip(batch.gradient(), self.params.max_gradient_norm);
        let rate = self.params.learning_rate;
        self.adam
            .step(self.online.params_mut(), batch.gradient(), rate);
        self.counters.gradient_steps += 1;
        Update {
            gradient_steps: 1,
            loss: Some(loss),
            q: Some(q),
            gradient_norm: Some(norm),
            ..Update::default()
        }
    }

    /// Draws a minibatch with replacement, uniformly or by priority.
    fn draw(&mut self, rng: &mut Generator) {
        let (rows, replay) = (self.params.batch_size, &self.replay);
        for (row, at) in self.buffers.picks.iter_mut().enumerate() {
            *at = match &self.priorities {
                None => replay.pick(rng),
                Some(tree) => tree.pick(row, rows, replay.len(), rng),
            };
        }
    }

    /// Copies the states of the minibatch.
    fn gather(&mut self) {
        let (replay, buffers) = (&self.replay, &mut self.buffers);
        let inputs = self.online.inputs();
        for (row, at) in buffers.picks.iter().enumerate() {
            let (state, next) = (replay.observation(*at), replay.next(*at));
            buffers.states[row * inputs..][..inputs].copy_from_slice(state);
            buffers.nexts[row * inputs..][..inputs].copy_from_slice(next);
        }
    }

    /// The weights of a prioritised minibatch, of which the largest is 1.
    fn weigh(&mut self) {
        let Some(tree) = &self.priorities else {
            return;
        };
        let (buffers, beta) = (&mut self.buffers, self.counters.beta);
        let mut largest = f32::MIN_POSITIVE;
        for (weight, at) in buffers.weights.iter_mut().zip(&buffers.picks) {
            *weight = tree.weight(*at, self.replay.len(), beta) as f32;
            largest = largest.max(*weight);
        }
        buffers.weights.iter_mut().for_each(|w| *w /= largest);
        self.counters.beta = (beta + self.params.priority_beta_step).min(1.0);
    }

    /// The temporal-difference targets of the minibatch. With double targets the online network selects the
    /// next action and the target network evaluates it, which avoids the upward bias of a maximum over noisy
    /// values.
    fn compute_targets(&mut self) {
        let Buffers {
            values,
            picks,
            nexts,
            targets,
            chosen,
            other,
            ..
        } = &mut self.buffers;
        let selector = if self.params.double_dqn {
            &self.online
        } else {
            &self.target
        };
        other.forward(selector, nexts);
        for (row, at) in picks.iter().enumerate() {
            row_values(selector, other, row, values);
            chosen[row] = argmax(values, self.replay.mask(*at));
        }
        if self.params.double_dqn {
            other.forward(&self.target, nexts);
        }
        for (row, at) in picks.iter().enumerate() {
            row_values(&self.target, other, row, values);
            let discount = self.params.gamma * self.replay.continuation(*at);
            targets[row] = self.replay.reward(*at) + discount * values[chosen[row]];
        }
    }

    /// Fills in the gradient of the weighted mean Huber loss by the heads' outputs. Returns the loss and the
    /// mean value of the actions.
    fn compute_gradient(&mut self) -> (f32, f32) {
        let rows = self.params.batch_size;
        let buffers = &mut self.buffers;
        buffers.online.forward(&self.online, &buffers.states);
        for head in self.online.heads() {
            buffers.online.output_gradient(&self.online, head).fill(0.0);
        }
        let (mut loss, mut mean) = (0.0, 0.0);
        for row in 0..rows {
            let at = buffers.picks[row];
            let action = self.replay.action(at)[0] as usize;
            row_values(&self.online, &buffers.online, row, &mut buffers.values);
            let value = buffers.values[action];
            let error = value - buffers.targets[row];
            loss += buffers.weights[row] * huber(error);
            mean += value;
            let gradient = buffers.weights[row] * error.clamp(-1.0, 1.0) / rows as f32;
            write_gradient(&self.online, &mut buffers.online, row, action, gradient);
            if let Some(priorities) = &mut self.priorities {
                priorities.update(at, error, self.params.priority_alpha);
            }
        }
        (loss / rows as f32, mean / rows as f32)
    }
}

/// Writes the gradient by the value of an action to the heads.
fn write_gradient(net: &Net, batch: &mut Batch, row: usize, action: usize, gradient: f32) {
    let actions = actions_of(net);
    let mut heads = net.heads();
    let (first, second) = (heads.next(), heads.next());
    let Some(first) = first else { return };
    let advantages = &mut batch.output_gradient(net, first)[row * actions..][..actions];
    advantages[action] = gradient;
    if let Some(state) = second {
        let share = gradient / actions as f32;
        advantages.iter_mut().for_each(|a| *a -= share);
        batch.output_gradient(net, state)[row] = gradient;
    }
}

impl Learner for Dqn {
    fn act(
        &mut self,
        observations: &[f32],
        masks: &[bool],
        rng: &mut Generator,
        actions: &mut [Action],
    ) {
        let (inputs, count) = (self.online.inputs(), self.buffers.values.len());
        let rows = observations.chunks_exact(inputs).zip(actions);
        for (row, (observation, action)) in rows.enumerate() {
            let mask = masks.get(row * count..(row + 1) * count).unwrap_or(&[]);
            let chosen = if rng.random::<f64>() < self.counters.epsilon {
                uniform(count, mask, rng)
            } else {
                self.best(observation, mask)
            };
            *action = Action::Discrete(chosen);
        }
    }

    fn observe(&mut self, step: &Step<'_>, _: &mut Generator) {
        for copy in 0..step.copies() {
            self.store(step, copy);
            if step.is_last(copy) {
                self.end_episode();
            }
        }
        self.count_steps(step.copies() as u64);
    }

    fn update(&mut self, rng: &mut Generator, stopped: Stopped<'_>) -> Option<Update> {
        let params = &self.params;
        let every = params.train_frequency;
        if self.replay.len() < params.batch_size.max(params.learning_starts) {
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
        self.counters.epsilon as f32
    }

    fn buffered(&self) -> Option<usize> {
        Some(self.replay.len())
    }

    fn reload(&mut self, values: &Values) -> Result<(), Vec<ParamViolation>> {
        let params = self.params.reload(values)?;
        if params.batch_size != self.params.batch_size {
            self.buffers = Buffers::new(&self.online, params.batch_size);
        }
        self.params = params;
        Ok(())
    }

    fn policy(&self) -> Policy {
        Policy::new(NAME, self.online.clone(), self.readout())
    }

    fn start_from(&mut self, policy: &Policy) -> Result<(), WrongPolicy> {
        let alike = policy.algorithm() == NAME && policy.net().has_shape_of(&self.online);
        if !alike || *policy.readout() != self.readout() {
            return Err(WrongPolicy);
        }
        self.online.clone_from(policy.net());
        self.target.clone_from(policy.net());
        Ok(())
    }

    fn checkpoint(&self) -> Vec<u8> {
        state::save(self)
    }
}

impl Dqn {
    fn readout(&self) -> Readout {
        if self.params.dueling {
            Readout::Dueling
        } else {
            Readout::Values
        }
    }

    fn best(&mut self, observation: &[f32], mask: &[bool]) -> usize {
        let (net, buffers) = (&self.online, &mut self.buffers);
        net.forward_one(observation, &mut buffers.scratch);
        let mut heads = net.heads().map(|h| net.output_of(h, &buffers.scratch));
        let first = heads.next().unwrap_or_default();
        // The value of the state is the same for all actions.
        argmax(first, mask)
    }
}

#[cfg(test)]
mod tests;
