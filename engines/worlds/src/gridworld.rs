//! A walk on a 5×5 grid from one corner to the opposite one. Every step costs 0.01, and the step onto
//! the goal earns 1 instead. The best return is known exactly (eight steps, 0.93), so that a learner
//! can be tested against it.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

const SIZE: usize = 5;
const MAX_STEPS: u32 = 50;

/// A 5×5 grid whose observation is one-hot in the current cell. An episode terminates at the goal and
/// is truncated after 50 steps.
#[derive(Debug, Default)]
pub struct GridWorld {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    cell: Cell,
    steps: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cell {
    row: usize,
    column: usize,
}

const GOAL: Cell = Cell {
    row: SIZE - 1,
    column: SIZE - 1,
};

static SPEC: LazyLock<WorldSpec> = LazyLock::new(|| {
    let cells = (0..SIZE).flat_map(|row| (0..SIZE).map(move |column| (row, column)));
    let component = |(row, column)| Component {
        name: format!("at_{row}_{column}").into(),
        ..Component::computed("", "1", 0.0, 1.0)
    };
    WorldSpec {
        name: "gridworld".into(),
        agents: vec![AgentSpace {
            name: "agent".into(),
            observation: cells.map(component).collect(),
            action: ActionSpace::named(&["up", "down", "left", "right"]),
        }],
        max_steps: Some(MAX_STEPS),
        calibration: None,
    }
});

impl GridWorld {
    /// The return of a shortest walk: seven steps that cost 0.01 each, and the goal.
    pub const BEST_RETURN: f32 = 1.0 - 0.01 * 7.0;
}

impl Cell {
    /// The cell that an action leads to. Outside of the grid there is none: the walk stays.
    fn toward(self, action: usize) -> Self {
        let Self { row, column } = self;
        let (row, column) = match action {
            0 => (row.saturating_sub(1), column),
            1 => (row + 1, column),
            2 => (row, column.saturating_sub(1)),
            _ => (row, column + 1),
        };
        Self {
            row: row.min(SIZE - 1),
            column: column.min(SIZE - 1),
        }
    }
}

impl World for GridWorld {
    fn spec(&self) -> &WorldSpec {
        &SPEC
    }

    fn reset(&mut self, _: &mut Generator, observations: &mut Observations) {
        self.state = State::default();
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        self.state.cell = self.state.cell.toward(actions[0].index());
        self.state.steps += 1;
        self.observe(observations);
        let goal = self.state.cell == GOAL;
        steps[0] = TimeStep {
            reward: if goal { 1.0 } else { -0.01 },
            terminated: goal,
            truncated: !goal && self.state.steps >= MAX_STEPS,
        };
    }

    fn observe(&self, observations: &mut Observations) {
        let Cell { row, column } = self.state.cell;
        let seen = observations.of_mut(0);
        seen.fill(0.0);
        seen[row * SIZE + column] = 1.0;
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let inside = state.cell.row < SIZE && state.cell.column < SIZE;
        self.state = inside.then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Episode, assert_restores};

    #[test]
    fn a_shortest_walk_earns_the_best_return() {
        let mut episode = Episode::start(GridWorld::default(), 0);
        let walk = [1, 3, 1, 3, 1, 1, 3, 3].map(|action| episode.choose(action));
        let total: f32 = walk.iter().map(|step| step.reward).sum();
        assert!((total - GridWorld::BEST_RETURN).abs() < 1e-6);
        assert_eq!(
            walk.map(|step| step.terminated),
            std::array::from_fn(|n| n == 7)
        );
    }

    /// Value iteration over the grid, without the world's own code for moves.
    #[test]
    fn no_policy_earns_more_than_the_best_return() {
        let mut values = [[0.0f32; SIZE]; SIZE];
        for _ in 0..50 {
            let old = values;
            for (row, column) in (0..SIZE).flat_map(|r| (0..SIZE).map(move |c| (r, c))) {
                let next = [(-1, 0), (1, 0), (0, -1), (0, 1)].map(|(down, right): (i32, i32)| {
                    let to = |at: usize, by: i32| (at as i32 + by).clamp(0, 4) as usize;
                    match (to(row, down), to(column, right)) {
                        (4, 4) => 1.0,
                        (r, c) => old[r][c] - 0.01,
                    }
                });
                values[row][column] = next.into_iter().fold(f32::MIN, f32::max);
            }
        }
        assert!((values[0][0] - GridWorld::BEST_RETURN).abs() < 1e-6);
    }

    #[test]
    fn a_walk_against_the_wall_is_truncated() {
        let mut episode = Episode::start(GridWorld::default(), 0);
        for n in 1..=50 {
            let step = episode.choose(0);
            assert_eq!((step.terminated, step.truncated), (false, n == 50), "{n}");
            assert_eq!(episode.seen.of(0)[0], 1.0);
        }
    }

    #[test]
    fn a_restored_episode_goes_on_where_it_was_and_a_cell_outside_is_refused() {
        let episode = Episode::start(GridWorld::default(), 0);
        assert_restores(episode, GridWorld::default(), |at| {
            vec![Action::Discrete(at % 4)]
        });
        let cell = Cell { row: 5, column: 0 };
        let outside = world::save(&State { cell, steps: 0 }).unwrap();
        assert_eq!(GridWorld::default().restore(&outside), Err(BadSnapshot));
    }
}
