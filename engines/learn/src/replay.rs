//! A ring of past transitions, sampled uniformly.

use rand::{RngExt, rngs::StdRng};

#[derive(Debug, Clone)]
pub struct Replay {
    width: usize,
    capacity: usize,
    states: Vec<f32>,
    nexts: Vec<f32>,
    actions: Vec<usize>,
    rewards: Vec<f32>,
    /// One when the world goes on, zero when it ended; a time limit is no end.
    goes_on: Vec<f32>,
    at: usize,
}

/// One transition.
#[derive(Debug, Clone, Copy)]
pub struct Transition<'a> {
    pub state: &'a [f32],
    pub action: usize,
    pub reward: f32,
    pub next: &'a [f32],
    pub terminated: bool,
}

impl Replay {
    /// Memory grows as transitions come, up to `capacity`.
    pub fn new(width: usize, capacity: usize) -> Self {
        Self {
            width,
            capacity,
            states: Vec::new(),
            nexts: Vec::new(),
            actions: Vec::new(),
            rewards: Vec::new(),
            goes_on: Vec::new(),
            at: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.actions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    pub fn push(&mut self, t: Transition<'_>) {
        let goes_on = if t.terminated { 0.0 } else { 1.0 };
        if self.len() < self.capacity {
            self.states.extend_from_slice(t.state);
            self.nexts.extend_from_slice(t.next);
            self.actions.push(t.action);
            self.rewards.push(t.reward);
            self.goes_on.push(goes_on);
        } else {
            let from = self.at * self.width;
            self.states[from..from + self.width].copy_from_slice(t.state);
            self.nexts[from..from + self.width].copy_from_slice(t.next);
            self.actions[self.at] = t.action;
            self.rewards[self.at] = t.reward;
            self.goes_on[self.at] = goes_on;
        }
        self.at = (self.at + 1) % self.capacity;
    }

    /// The position of a transition picked at random.
    pub fn pick(&self, rng: &mut StdRng) -> usize {
        rng.random_range(0..self.len())
    }

    pub fn state(&self, i: usize) -> &[f32] {
        &self.states[i * self.width..(i + 1) * self.width]
    }

    pub fn next(&self, i: usize) -> &[f32] {
        &self.nexts[i * self.width..(i + 1) * self.width]
    }

    pub fn action(&self, i: usize) -> usize {
        self.actions[i]
    }

    pub fn reward(&self, i: usize) -> f32 {
        self.rewards[i]
    }

    pub fn goes_on(&self, i: usize) -> f32 {
        self.goes_on[i]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
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
            (replay.state(last), replay.goes_on(last)),
            (&[4.0][..], 0.0)
        );
    }
}
