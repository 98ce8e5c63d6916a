//! Deep Q-learning (Mnih et al., "Human-level control through deep reinforcement learning", 2015) with
//! double targets (van Hasselt, Guez and Silver, 2016), the Huber loss, uniform experience replay and
//! a target network that is blended towards the online one.

use crate::{
    hyper::DqnParams,
    nn::{Adam, Batch, Mlp, Scratch},
    replay::{Replay, Transition},
};
use ndarray::{Array2, ArrayView2};
use rand::{RngExt, rngs::StdRng};

/// The global norm to which gradients are clipped.
const MAX_GRADIENT_NORM: f32 = 10.0;

/// A DQN learner.
#[derive(Debug)]
pub struct Dqn {
    params: DqnParams,
    /// The network that acts and is trained: one action value for each action.
    pub online: Mlp,
    target: Mlp,
    adam: Adam,
    replay: Replay,
    buffers: Buffers,
    /// The current probability of a random action, in 0..=1.
    pub epsilon: f64,
    episodes: u64,
    scratch: Scratch,
}

/// The buffers of a minibatch, allocated once for a batch size.
#[derive(Debug)]
struct Buffers {
    states: Array2<f32>,
    nexts: Array2<f32>,
    gradient: Array2<f32>,
    picks: Vec<usize>,
    targets: Vec<f32>,
    online: Batch,
    other: Batch,
}

impl Buffers {
    fn new(net: &Mlp, rows: usize) -> Self {
        Self {
            states: Array2::zeros((rows, net.inputs())),
            nexts: Array2::zeros((rows, net.inputs())),
            gradient: Array2::zeros((rows, net.outputs())),
            picks: vec![0; rows],
            targets: vec![0.0; rows],
            online: Batch::new(net, rows),
            other: Batch::new(net, rows),
        }
    }

    /// Draws a minibatch uniformly, with replacement.
    fn sample(&mut self, replay: &Replay, rng: &mut StdRng) {
        for (row, pick) in self.picks.iter_mut().enumerate() {
            *pick = replay.pick(rng);
            copy_row(&mut self.states, row, replay.state(*pick));
            copy_row(&mut self.nexts, row, replay.next(*pick));
        }
    }
}

fn copy_row(to: &mut Array2<f32>, row: usize, from: &[f32]) {
    to.row_mut(row)
        .iter_mut()
        .zip(from)
        .for_each(|(a, b)| *a = *b);
}

impl Dqn {
    /// A learner with freshly initialised networks and an empty replay buffer.
    pub fn new(inputs: usize, actions: usize, params: DqnParams, rng: &mut StdRng) -> Self {
        let online = Mlp::new(
            &[inputs, params.hidden_dim, params.hidden_dim, actions],
            rng,
        );
        Self {
            target: online.clone(),
            adam: Adam::new(&online),
            replay: Replay::new(inputs, params.buffer_size),
            buffers: Buffers::new(&online, params.batch_size),
            epsilon: params.epsilon_start,
            episodes: 0,
            scratch: Scratch::default(),
            online,
            params,
        }
    }

    /// Replaces the hyperparameters of a running learner. The networks' width and the capacity of
    /// the replay buffer are fixed at the start and keep their values.
    pub fn reload(&mut self, params: DqnParams) {
        if params.batch_size != self.params.batch_size {
            self.buffers = Buffers::new(&self.online, params.batch_size);
        }
        self.params = DqnParams {
            hidden_dim: self.params.hidden_dim,
            buffer_size: self.params.buffer_size,
            ..params
        };
    }

    /// Chooses an action epsilon-greedily: uniformly with probability epsilon, else by the highest
    /// action value.
    pub fn act(&mut self, state: &[f32], rng: &mut StdRng) -> usize {
        if rng.random::<f64>() < self.epsilon {
            return rng.random_range(0..self.online.outputs());
        }
        argmax(&self.online.forward_one(state, &mut self.scratch))
    }

    /// Stores a transition and does one gradient step. Returns its mean Huber loss; `None` until
    /// the replay buffer holds one batch.
    pub fn observe(&mut self, transition: Transition<'_>, rng: &mut StdRng) -> Option<f32> {
        self.replay.push(transition);
        (self.replay.len() >= self.params.batch_size).then(|| self.learn(rng))
    }

    /// One gradient step on a minibatch; returns the mean loss.
    fn learn(&mut self, rng: &mut StdRng) -> f32 {
        self.buffers.sample(&self.replay, rng);
        self.compute_targets();
        let loss = self.compute_gradient();
        let buffers = &mut self.buffers;
        let states = buffers.states.view();
        buffers
            .online
            .backward(&self.online, &states, &buffers.gradient);
        buffers.online.clip(MAX_GRADIENT_NORM);
        self.adam
            .step(&mut self.online, &buffers.online, self.params.learning_rate);
        loss
    }

    /// The temporal-difference targets of the minibatch. With double targets the online network
    /// selects the next action and the target network evaluates it, which avoids the upward bias of
    /// a maximum over noisy values.
    fn compute_targets(&mut self) {
        let buffers = &mut self.buffers;
        let nexts = buffers.nexts.view();
        let chosen = self
            .params
            .double_dqn
            .then(|| greedy_actions(&buffers.other.forward(&self.online, &nexts)));
        let values = buffers.other.forward(&self.target, &nexts);
        for (row, pick) in buffers.picks.iter().enumerate() {
            let values = values.row(row);
            let next = match &chosen {
                Some(chosen) => values[chosen[row]],
                None => values.iter().copied().fold(f32::MIN, f32::max),
            };
            let discount = self.params.gamma * self.replay.continuation(*pick);
            buffers.targets[row] = self.replay.reward(*pick) + discount * next;
        }
    }

    /// Fills in the gradient of the mean Huber loss by the online network's outputs; returns the
    /// loss.
    fn compute_gradient(&mut self) -> f32 {
        let buffers = &mut self.buffers;
        let outputs = buffers.online.forward(&self.online, &buffers.states.view());
        let rows = self.params.batch_size as f32;
        buffers.gradient.fill(0.0);
        let mut loss = 0.0;
        for (row, pick) in buffers.picks.iter().enumerate() {
            let action = self.replay.action(*pick);
            let error = outputs[(row, action)] - buffers.targets[row];
            loss += huber(error);
            buffers.gradient[(row, action)] = error.clamp(-1.0, 1.0) / rows;
        }
        loss / rows
    }

    /// Ends an episode: epsilon decays, and every `target_update` episodes the target network moves
    /// towards the online one by the share `tau`.
    pub fn end_episode(&mut self) {
        self.episodes += 1;
        self.epsilon = (self.epsilon * self.params.epsilon_decay).max(self.params.epsilon_end);
        if self.episodes.is_multiple_of(self.params.target_update) {
            self.target.blend(&self.online, self.params.tau);
        }
    }
}

/// The Huber loss (1964): quadratic within ±1, linear beyond. Its derivative is the clamped error.
fn huber(error: f32) -> f32 {
    if error.abs() <= 1.0 {
        0.5 * error * error
    } else {
        error.abs() - 0.5
    }
}

fn greedy_actions(values: &ArrayView2<'_, f32>) -> Vec<usize> {
    values
        .rows()
        .into_iter()
        .map(|row| argmax(row.as_slice().unwrap_or_default()))
        .collect()
}

/// The position of the largest value, the first among equals; 0 for an empty slice.
pub fn argmax(values: &[f32]) -> usize {
    let mut at = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[at] {
            at = i;
        }
    }
    at
}
