//! A walk on a 5×5 grid from one corner to the opposite one. Every step costs 0.01, and the step onto
//! the goal earns 1 instead. The best return is known exactly (eight steps, 0.93), so that a learner
//! can be tested against it.

use super::{Environment, TimeStep};
use rand::rngs::StdRng;

const SIZE: usize = 5;
const MAX_STEPS: u32 = 50;

/// A 5×5 grid whose observation is one-hot in the current cell. An episode terminates at the goal and
/// is truncated after 50 steps.
#[derive(Debug, Default)]
pub struct GridWorld {
    row: usize,
    column: usize,
    steps: u32,
}

impl GridWorld {
    /// The return of a shortest walk: seven steps that cost 0.01 each, and the goal.
    pub const BEST_RETURN: f32 = 1.0 - 0.01 * 7.0;

    fn observe(&self, observation: &mut [f32]) {
        observation.fill(0.0);
        observation[self.row * SIZE + self.column] = 1.0;
    }
}

impl Environment for GridWorld {
    fn observation_names(&self) -> &'static [&'static str] {
        &[
            "at_0_0", "at_0_1", "at_0_2", "at_0_3", "at_0_4", "at_1_0", "at_1_1", "at_1_2",
            "at_1_3", "at_1_4", "at_2_0", "at_2_1", "at_2_2", "at_2_3", "at_2_4", "at_3_0",
            "at_3_1", "at_3_2", "at_3_3", "at_3_4", "at_4_0", "at_4_1", "at_4_2", "at_4_3",
            "at_4_4",
        ]
    }

    fn action_names(&self) -> &'static [&'static str] {
        &["up", "down", "left", "right"]
    }

    fn reset(&mut self, _: &mut StdRng, observation: &mut [f32]) {
        *self = Self::default();
        self.observe(observation);
    }

    fn step(&mut self, action: usize, _: &mut StdRng, observation: &mut [f32]) -> TimeStep {
        match action {
            0 => self.row = self.row.saturating_sub(1),
            1 => self.row = (self.row + 1).min(SIZE - 1),
            2 => self.column = self.column.saturating_sub(1),
            _ => self.column = (self.column + 1).min(SIZE - 1),
        }
        self.steps += 1;
        self.observe(observation);
        let goal = self.row == SIZE - 1 && self.column == SIZE - 1;
        let reward = if goal { 1.0 } else { -0.01 };
        TimeStep {
            reward,
            terminated: goal,
            truncated: !goal && self.steps >= MAX_STEPS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_shortest_walk_earns_the_best_return_and_a_stuck_one_is_truncated() {
        let mut rng = StdRng::seed_from_u64(0);
        let (mut env, mut obs) = (GridWorld::default(), [0.0; 25]);
        env.reset(&mut rng, &mut obs);
        let mut total = 0.0;
        for action in [1, 1, 1, 1, 3, 3, 3, 3] {
            total += env.step(action, &mut rng, &mut obs).reward;
        }
        assert!((total - GridWorld::BEST_RETURN).abs() < 1e-6);
        env.reset(&mut rng, &mut obs);
        let last = (0..50)
            .map(|_| env.step(0, &mut rng, &mut obs))
            .last()
            .unwrap();
        assert!(last.truncated && !last.terminated);
    }
}
