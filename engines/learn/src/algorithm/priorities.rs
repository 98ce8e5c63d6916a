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
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            sums: vec![0.0; 2 * capacity.next_power_of_two()],
            largest: 1.0,
        }
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
        let mut tree = Self::new(capacity);
        let first = tree.leaf(0);
        tree.sums[first..][..count].copy_from_slice(&leaves.priorities);
        for node in (1..first).rev() {
            tree.sums[node] = tree.sums[2 * node] + tree.sums[2 * node + 1];
        }
        tree.largest = leaves.largest;
        Some(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tars_worlds::Generator;

    #[test]
    fn transitions_are_drawn_in_proportion_to_their_priorities() {
        let mut tree = Priorities::new(5);
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
        let mut tree = Priorities::new(7);
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
}
