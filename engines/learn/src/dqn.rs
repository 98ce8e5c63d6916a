//! Deep Q-learning (Mnih et al., 2015) with double targets (van Hasselt et al., 2016), Huber loss,
//! uniform replay and a target network that follows slowly.

use crate::{
    hyper::DqnParams,
    nn::{Adam, Batch, Mlp, Scratch},
    replay::{Replay, Transition},
};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng};

const MAX_GRADIENT: f32 = 10.0;

#[derive(Debug)]
pub struct Dqn {
    params: DqnParams,
    pub online: Mlp,
    target: Mlp,
    adam: Adam,
    replay: Replay,
    space: Space,
    pub epsilon: f64,
    episodes: u64,
    scratch: Scratch,
}

/// Buffers of one batch size.
#[derive(Debug)]
struct Space {
    states: Array2<f32>,
    nexts: Array2<f32>,
    gradient: Array2<f32>,
    picks: Vec<usize>,
    targets: Vec<f32>,
    online: Batch,
    other: Batch,
}

impl Space {
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
}

impl Dqn {
    pub fn new(inputs: usize, actions: usize, params: DqnParams, rng: &mut StdRng) -> Self {
        let online = Mlp::new(
            &[inputs, params.hidden_dim, params.hidden_dim, actions],
            rng,
        );
        Self {
            target: online.clone(),
            adam: Adam::new(&online),
            replay: Replay::new(inputs, params.buffer_size),
            space: Space::new(&online, params.batch_size),
            epsilon: params.epsilon_start,
            episodes: 0,
            scratch: Scratch::default(),
            online,
            params,
        }
    }

    /// Takes new parameters while learning. The network's width and the buffer's size are those of
    /// the start.
    pub fn reload(&mut self, params: DqnParams) {
        if params.batch_size != self.params.batch_size {
            self.space = Space::new(&self.online, params.batch_size);
        }
        self.params = DqnParams {
            hidden_dim: self.params.hidden_dim,
            buffer_size: self.params.buffer_size,
            ..params
        };
    }

    /// Explores with probability epsilon, else takes the best known action.
    pub fn act(&mut self, state: &[f32], rng: &mut StdRng) -> usize {
        if rng.random::<f64>() < self.epsilon {
            return rng.random_range(0..self.online.outputs());
        }
        argmax(&self.online.forward_one(state, &mut self.scratch))
    }

    /// Remembers a transition and learns from a batch; `None` while there are too few.
    pub fn observe(&mut self, transition: Transition<'_>, rng: &mut StdRng) -> Option<f32> {
        self.replay.push(transition);
        (self.replay.len() >= self.params.batch_size).then(|| self.learn(rng))
    }

    fn learn(&mut self, rng: &mut StdRng) -> f32 {
        let space = &mut self.space;
        for (row, pick) in space.picks.iter_mut().enumerate() {
            *pick = self.replay.pick(rng);
            let fill = |into: &mut Array2<f32>, from: &[f32]| {
                into.row_mut(row)
                    .iter_mut()
                    .zip(from)
                    .for_each(|(a, b)| *a = *b);
            };
            fill(&mut space.states, self.replay.state(*pick));
            fill(&mut space.nexts, self.replay.next(*pick));
        }
        // Double targets: the online network picks the next action, the target network values it.
        let nexts = space.nexts.view();
        let chosen: Option<Vec<usize>> = self.params.double_dqn.then(|| {
            let values = space.other.forward(&self.online, &nexts);
            values
                .rows()
                .into_iter()
                .map(|r| argmax(r.as_slice().unwrap_or_default()))
                .collect()
        });
        let values = space.other.forward(&self.target, &nexts);
        for (row, pick) in space.picks.iter().enumerate() {
            let values = values.row(row);
            let next = match &chosen {
                Some(chosen) => values[chosen[row]],
                None => values.iter().copied().fold(f32::MIN, f32::max),
            };
            space.targets[row] =
                self.replay.reward(*pick) + self.params.gamma * self.replay.goes_on(*pick) * next;
        }
        let states = space.states.view();
        let outputs = space.online.forward(&self.online, &states);
        let rows = self.params.batch_size as f32;
        space.gradient.fill(0.0);
        let mut loss = 0.0;
        for (row, pick) in space.picks.iter().enumerate() {
            let action = self.replay.action(*pick);
            let error = outputs[(row, action)] - space.targets[row];
            loss += if error.abs() <= 1.0 {
                0.5 * error * error
            } else {
                error.abs() - 0.5
            };
            space.gradient[(row, action)] = error.clamp(-1.0, 1.0) / rows;
        }
        space
            .online
            .backward(&self.online, &states, &space.gradient);
        space.online.clip(MAX_GRADIENT);
        self.adam
            .step(&mut self.online, &space.online, self.params.learning_rate);
        loss / rows
    }

    /// Counts an episode: exploration decays, and every so often the target follows.
    pub fn end_episode(&mut self) {
        self.episodes += 1;
        self.epsilon = (self.epsilon * self.params.epsilon_decay).max(self.params.epsilon_end);
        if self.episodes.is_multiple_of(self.params.target_update) {
            self.target.blend(&self.online, self.params.tau);
        }
    }
}

/// The position of the largest value; the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    let mut at = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[at] {
            at = i;
        }
    }
    at
}
