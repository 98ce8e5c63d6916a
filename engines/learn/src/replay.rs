//! Experience replay (Lin, 1992): a ring buffer of past transitions that is sampled uniformly.

use rand::{RngExt, rngs::StdRng};

/// A ring buffer in which a new transition replaces the oldest one once it is full. Each field of
/// the transitions is stored in an array of its own.
#[derive(Debug, Clone)]
pub struct Replay {
    width: usize,
    capacity: usize,
    states: Vec<f32>,
    nexts: Vec<f32>,
    actions: Vec<usize>,
    rewards: Vec<f32>,
    /// Zero after a terminal transition, else one. A truncated episode is not terminal.
    continuations: Vec<f32>,
    at: usize,
}

/// One transition, as [`Replay::push`] copies it.
#[derive(Debug, Clone, Copy)]
pub struct Transition<'a> {
    /// The observation that the action was taken in.
    pub state: &'a [f32],
    /// The action, by its number.
    pub action: usize,
    /// The reward that followed.
    pub reward: f32,
    /// The next observation, as long as `state`.
    pub next: &'a [f32],
    /// Whether the environment ended the episode; not set by a time limit.
    pub terminated: bool,
}

impl Replay {
    /// A buffer of up to `capacity` transitions with observations of `width` components. Memory is
    /// allocated as transitions arrive.
    pub fn new(width: usize, capacity: usize) -> Self {
        Self {
            width,
            capacity,
            states: Vec::new(),
            nexts: Vec::new(),
            actions: Vec::new(),
            rewards: Vec::new(),
            continuations: Vec::new(),
            at: 0,
        }
    }

    /// The number of stored transitions, at most the capacity.
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Whether no transition is stored yet.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Stores a transition, in place of the oldest one when the buffer is full.
    pub fn push(&mut self, t: Transition<'_>) {
        let continuation = if t.terminated { 0.0 } else { 1.0 };
        if self.len() < self.capacity {
            self.states.extend_from_slice(t.state);
            self.nexts.extend_from_slice(t.next);
            self.actions.push(t.action);
            self.rewards.push(t.reward);
            self.continuations.push(continuation);
        } else {
            let from = self.at * self.width;
            self.states[from..from + self.width].copy_from_slice(t.state);
            self.nexts[from..from + self.width].copy_from_slice(t.next);
            self.actions[self.at] = t.action;
            self.rewards[self.at] = t.reward;
            self.continuations[self.at] = continuation;
        }
        self.at = (self.at + 1) % self.capacity;
    }

    /// Draws the position of a transition uniformly. The buffer must not be empty.
    pub fn pick(&self, rng: &mut StdRng) -> usize {
        rng.random_range(0..self.len())
    }

    /// The observation of transition `i`.
    pub fn state(&self, i: usize) -> &[f32] {
        &self.states[i * self.width..(i + 1) * self.width]
    }

    /// The observation after transition `i`.
    pub fn next(&self, i: usize) -> &[f32] {
        &self.nexts[i * self.width..(i + 1) * self.width]
    }

    /// The action of transition `i`.
    pub fn action(&self, i: usize) -> usize {
        self.actions[i]
    }

    /// The reward of transition `i`.
    pub fn reward(&self, i: usize) -> f32 {
        self.rewards[i]
    }

    /// Zero when transition `i` was terminal, else one: the factor of the next state's value.
    pub fn continuation(&self, i: usize) -> f32 {
        self.continuations[i]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_buffer_replaces_its_oldest_transition() {
        let mut replay = Replay::new(1, 3);
        for n in 0..5u8 {
            let v = [f32::from(n)];
            replay.push(Transition {
                state: &v,
                action: usize::from(n),
                reward: 0.0,
                next: &v,
                terminated: n == 4,
            });
        }
        let mut kept: Vec<usize> = (0..replay.len()).map(|i| replay.action(i)).collect();
        kept.sort_unstable();
        assert_eq!(kept, [2, 3, 4]);
        let last = (0..3).find(|i| replay.action(*i) == 4).unwrap();
        assert_eq!(
            (replay.state(last), replay.continuation(last)),
            (&[4.0][..], 0.0)
        );
    }
}
