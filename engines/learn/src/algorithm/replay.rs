//! Experience replay (Lin, "Self-improving reactive agents based on reinforcement learning", 1992): the most
//! recent transitions, in one vector for each field. It grows with them up to its capacity.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// The lengths of a transition's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Widths {
    /// Components of an observation.
    pub observation: usize,
    /// Numbers of an action: 1 for a discrete one, its position.
    pub action: usize,
    /// Discrete actions that may be ruled out next; 0 when none ever are.
    pub mask: usize,
}

/// One transition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transition<'a> {
    pub observation: &'a [f32],
    pub action: &'a [f32],
    pub reward: f32,
    pub next: &'a [f32],
    /// Which actions may be taken in `next`; empty when all may.
    pub mask: &'a [bool],
    /// Whether `next` is a final state, whose value is zero.
    pub terminated: bool,
}

/// The buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Replay {
    widths: Widths,
    capacity: usize,
    /// Where the next transition goes once the buffer is full.
    oldest: usize,
    observations: Vec<f32>,
    actions: Vec<f32>,
    rewards: Vec<f32>,
    nexts: Vec<f32>,
    masks: Vec<bool>,
    /// 0 for a final state, else 1: the factor of the next state's value.
    continuations: Vec<f32>,
}

/// Overwrites a row, or appends it when it is the next one.
fn put<T: Copy>(rows: &mut Vec<T>, at: usize, row: &[T]) {
    let from = at * row.len();
    if from == rows.len() {
        rows.extend_from_slice(row);
    } else {
        rows[from..][..row.len()].copy_from_slice(row);
    }
}

fn row<T>(rows: &[T], at: usize, width: usize) -> &[T] {
    &rows[at * width..][..width]
}

impl Replay {
    pub(crate) fn new(widths: Widths, capacity: usize) -> Self {
        Self {
            widths,
            capacity,
            oldest: 0,
            observations: Vec::new(),
            actions: Vec::new(),
            rewards: Vec::new(),
            nexts: Vec::new(),
            masks: Vec::new(),
            continuations: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rewards.len()
    }

    /// Stores a transition in place of the oldest one. Returns its position.
    pub(crate) fn push(&mut self, transition: &Transition<'_>) -> usize {
        let at = if self.len() < self.capacity {
            self.len()
        } else {
            self.oldest
        };
        self.oldest = (at + 1) % self.capacity;
        put(&mut self.observations, at, transition.observation);
        put(&mut self.actions, at, transition.action);
        put(&mut self.rewards, at, &[transition.reward]);
        put(&mut self.nexts, at, transition.next);
        self.put_mask(at, transition.mask);
        let continuation = if transition.terminated { 0.0 } else { 1.0 };
        put(&mut self.continuations, at, &[continuation]);
        at
    }

    fn put_mask(&mut self, at: usize, mask: &[bool]) {
        if mask.len() == self.widths.mask {
            return put(&mut self.masks, at, mask);
        }
        let end = (at + 1) * self.widths.mask;
        if self.masks.len() < end {
            self.masks.resize(end, true);
        }
        self.masks[end - self.widths.mask..end].fill(true);
    }

    /// The position of a transition, each with the same probability.
    pub(crate) fn pick(&self, rng: &mut impl Rng) -> usize {
        rng.random_range(0..self.len())
    }

    pub(crate) fn observation(&self, at: usize) -> &[f32] {
        row(&self.observations, at, self.widths.observation)
    }

    pub(crate) fn action(&self, at: usize) -> &[f32] {
        row(&self.actions, at, self.widths.action)
    }

    pub(crate) fn next(&self, at: usize) -> &[f32] {
        row(&self.nexts, at, self.widths.observation)
    }

    pub(crate) fn mask(&self, at: usize) -> &[bool] {
        row(&self.masks, at, self.widths.mask)
    }

    pub(crate) fn reward(&self, at: usize) -> f32 {
        self.rewards[at]
    }

    pub(crate) fn continuation(&self, at: usize) -> f32 {
        self.continuations[at]
    }

    /// Whether this is a buffer of these widths and this capacity that can be continued with. `actions` is
    /// the number of discrete actions, `None` for continuous ones.
    pub(crate) fn fits(&self, widths: Widths, capacity: usize, actions: Option<usize>) -> bool {
        let count = self.len();
        let numbers = [
            (&self.observations, widths.observation),
            (&self.actions, widths.action),
            (&self.rewards, 1),
            (&self.nexts, widths.observation),
            (&self.continuations, 1),
        ];
        let is_complete = |(values, width): &(&Vec<f32>, usize)| {
            Some(values.len()) == count.checked_mul(*width) && values.iter().all(|v| v.is_finite())
        };
        let exists = |at: &f32, n: usize| *at >= 0.0 && at.fract() == 0.0 && (*at as usize) < n;
        self.widths == widths
            && self.capacity == capacity
            && count <= capacity
            && self.oldest < capacity
            && (count == capacity || self.oldest == count)
            && numbers.iter().all(is_complete)
            && Some(self.masks.len()) == count.checked_mul(widths.mask)
            && actions.is_none_or(|n| self.actions.iter().all(|at| exists(at, n)))
    }
}
