//! Prioritised experience replay (Schaul et al., "Prioritized Experience Replay", 2016): transitions are drawn
//! in proportion to a power of their last error, by a tree of sums, and weighted for the bias.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// What is added to an error, so that a transition without one is still drawn.
const EPSILON: f64 = 1e-6;

/// The priorities of a replay buffer's transitions.
#[derive(Debug, Clone)]
pub(crate) struct Priorities {
    /// A complete binary tree: each node is the sum of its two children; the leaves are the second half.
    sums: Vec<f64>,
    /// The largest priority so far, which new transitions get.
    largest: f64,
}

/// The part from which the tree follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Leaves {
    priorities: Vec<f64>,
    largest: f64,
}

impl Priorities {
    /// A tree without transitions. It grows with them.
    pub(crate) fn new() -> Self {
        Self::over(&[], 1.0)
    }

    /// The smallest tree with these leaves. What a larger one adds are zeros, which change no sum and no draw.
    fn over(leaves: &[f64], largest: f64) -> Self {
        let half = leaves.len().next_power_of_two();
        let mut sums = vec![0.0; 2 * half];
        sums[half..][..leaves.len()].copy_from_slice(leaves);
        for node in (1..half).rev() {
            sums[node] = sums[2 * node] + sums[2 * node + 1];
        }
        Self { sums, largest }
    }

    /// Makes room for twice as many leaves.
    fn grow(&mut self) {
        let mut leaves = self.sums[self.leaf(0)..].to_vec();
        leaves.resize(2 * leaves.len(), 0.0);
        *self = Self::over(&leaves, self.largest);
    }

    fn leaf(&self, at: usize) -> usize {
        self.sums.len() / 2 + at
    }

    /// Gives a new transition the largest priority, so that it is drawn soon.
    pub(crate) fn insert(&mut self, at: usize) {
        self.set(at, self.largest);
    }

    /// Sets the priority of a transition by its error.
    pub(crate) fn update(&mut self, at: usize, error: f32, alpha: f64) {
        let priority = (f64::from(error.abs()) + EPSILON).powf(alpha);
        self.largest = self.largest.max(priority);
        self.set(at, priority);
    }

    fn set(&mut self, at: usize, priority: f64) {
        while at >= self.leaf(0) {
            self.grow();
        }
        let mut node = self.leaf(at);
        self.sums[node] = priority;
        while node > 1 {
            node /= 2;
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1];
        }
    }

    /// Draws a transition from one of `of` equal strata; `count` is how many transitions there are.
    pub(crate) fn pick(
        &self,
        stratum: usize,
        of: usize,
        count: usize,
        rng: &mut impl Rng,
    ) -> usize {
        let share = (stratum as f64 + rng.random::<f64>()) / of as f64;
        let mut rest = share * self.sums[1];
        let mut node = 1;
        while node < self.sums.len() / 2 {
            node *= 2;
            if rest >= self.sums[node] && self.sums[node + 1] > 0.0 {
                rest -= self.sums[node];
                node += 1;
            }
        }
        (node - self.leaf(0)).min(count - 1)
    }

    /// The weight that corrects for how often a transition is drawn: its probability times `count`, to the
    /// power `-beta`.
    pub(crate) fn weight(&self, at: usize, count: usize, beta: f64) -> f64 {
        let probability = self.sums[self.leaf(at)] / self.sums[1];
        (count as f64 * probability).powf(-beta)
    }

    /// What [`restore`](Self::restore) goes on from.
    pub(crate) fn leaves(&self, count: usize) -> Leaves {
        Leaves {
            priorities: self.sums[self.leaf(0)..][..count].to_vec(),
            largest: self.largest,
        }
    }

    /// The tree of some leaves; `None` when there are not as many, or one is not a priority.
    pub(crate) fn restore(capacity: usize, count: usize, leaves: &Leaves) -> Option<Self> {
        let is_priority = |p: &f64| p.is_finite() && *p > 0.0;
        let valid = leaves.priorities.iter().all(is_priority) && is_priority(&leaves.largest);
        if leaves.priorities.len() != count || count > capacity || !valid {
            return None;
        }
        Some(Self::over(&leaves.priorities, leaves.largest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tars_worlds::Generator;

    #[test]
    fn transitions_are_drawn_in_proportion_to_their_priorities() {
        let mut tree = Priorities::new();
        let errors = [0.0, 1.0, 2.0, 4.0, 1.0];
        for (at, error) in errors.iter().enumerate() {
            tree.insert(at);
            tree.update(at, *error, 1.0);
        }
        let rng = &mut Generator::seed_from_u64(1);
        let mut counts = [0u32; 5];
        for draw in 0..40_000 {
            counts[tree.pick(draw % 4, 4, 5, rng)] += 1;
        }
        for (at, error) in errors.iter().enumerate() {
            let share = f64::from(counts[at]) / 40_000.0;
            assert!((share - f64::from(*error) / 8.0).abs() < 0.01, "{at}");
            let weight = tree.weight(at, 5, 1.0) * (f64::from(error.abs()) + EPSILON) * 5.0 / 8.0;
            assert!((weight - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn a_restored_tree_is_the_same_to_the_bit_and_damaged_leaves_are_refused() {
        let mut tree = Priorities::new();
        let rng = &mut Generator::seed_from_u64(1);
        for at in 0..6 {
            tree.insert(at);
            tree.update(at, rng.random(), 0.6);
        }
        let leaves = tree.leaves(6);
        let same = Priorities::restore(7, 6, &leaves).unwrap();
        assert_eq!((same.sums, same.largest), (tree.sums, tree.largest));
        assert!(Priorities::restore(7, 5, &leaves).is_none());
        let mut negative = leaves;
        negative.priorities[2] = -1.0;
        assert!(Priorities::restore(7, 6, &negative).is_none());
    }

    #[test]
    fn a_tree_that_grew_draws_as_one_that_was_large_from_the_start() {
        let mut grown = Priorities::new();
        let mut large = Priorities::over(&[0.0; 64], 1.0);
        let rng = &mut Generator::seed_from_u64(1);
        for at in 0..37 {
            let error = rng.random();
            for tree in [&mut grown, &mut large] {
                tree.insert(at);
                tree.update(at / 2, error, 0.6);
            }
            let count = at + 1;
            for draw in 0..8 {
                let seed = rng.random();
                let pick = |tree: &Priorities| {
                    let rng = &mut Generator::seed_from_u64(seed);
                    let at = tree.pick(draw, 8, count, rng);
                    (at, tree.weight(at, count, 0.4).to_bits())
                };
                assert_eq!(pick(&grown), pick(&large));
            }
        }
        assert_eq!(grown.sums.len(), 128);
    }
}
