//! Cart-pole balancing (Barto, Sutton and Anderson, "Neuronlike Adaptive Elements That Can Solve
//! Difficult Learning Control Problems", 1983), with the constants and the 500-step limit of
//! Gymnasium's CartPole-v1. Each step earns a reward of 1.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

const GRAVITY: f64 = 9.8;
const CART_MASS: f64 = 1.0;
const POLE_MASS: f64 = 0.1;
const TOTAL_MASS: f64 = CART_MASS + POLE_MASS;
const HALF_LENGTH: f64 = 0.5;
const FORCE: f64 = 10.0;
const DT: f64 = 0.02;
const MAX_ANGLE: f64 = 12.0 * std::f64::consts::PI / 180.0;
const MAX_POSITION: f64 = 2.4;
const MAX_STEPS: u32 = 500;

/// A pole on a cart that is pushed left or right. The episode terminates when the pole leans more
/// than 12 degrees or the cart leaves ±2.4 m, and is truncated after 500 steps, the best return.
#[derive(Debug, Default)]
pub struct CartPole {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// Position in m, velocity in m/s, angle in rad, angular velocity in rad/s.
    motion: [f64; 4],
    steps: u32,
}

static SPEC: LazyLock<WorldSpec> = LazyLock::new(|| WorldSpec {
    name: "cartpole".into(),
    agents: vec![AgentSpace {
        name: "agent".into(),
        observation: vec![
            Component::unbounded("cart_position", "m"),
            Component::unbounded("cart_velocity", "m/s"),
            Component::unbounded("pole_angle", "rad"),
            Component::unbounded("pole_velocity", "rad/s"),
        ],
        action: ActionSpace::named(&["push_left", "push_right"]),
    }],
    max_steps: Some(MAX_STEPS),
    calibration: None,
});

impl State {
    /// Euler's method over one time step, as Gymnasium does it.
    fn advance(&mut self, force: f64) {
        let [x, v, angle, spin] = self.motion;
        let (sin, cos) = angle.sin_cos();
        let pull = (force + POLE_MASS * HALF_LENGTH * spin * spin * sin) / TOTAL_MASS;
        let spin_rate = (GRAVITY * sin - cos * pull)
            / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos * cos / TOTAL_MASS));
        let rate = pull - POLE_MASS * HALF_LENGTH * spin_rate * cos / TOTAL_MASS;
        self.motion = [
            x + DT * v,
            v + DT * rate,
            angle + DT * spin,
            spin + DT * spin_rate,
        ];
        self.steps += 1;
    }

    fn has_fallen(&self) -> bool {
        self.motion[0].abs() > MAX_POSITION || self.motion[2].abs() > MAX_ANGLE
    }
}

impl World for CartPole {
    fn spec(&self) -> &WorldSpec {
        &SPEC
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        self.state = State {
            motion: std::array::from_fn(|_| rng.random_range(-0.05..0.05)),
            steps: 0,
        };
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        let right = actions[0].index() == 1;
        self.state.advance(if right { FORCE } else { -FORCE });
        self.observe(observations);
        let fallen = self.state.has_fallen();
        steps[0] = TimeStep {
            reward: 1.0,
            terminated: fallen,
            truncated: !fallen && self.state.steps >= MAX_STEPS,
        };
    }

    fn observe(&self, observations: &mut Observations) {
        let motion = self.state.motion.map(|number| number as f32);
        observations.of_mut(0).copy_from_slice(&motion);
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let finite = state.motion.iter().all(|number| number.is_finite());
        self.state = finite.then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Episode, assert_close, assert_restores, vectors};

    #[derive(Deserialize)]
    struct Vectors {
        start: [f64; 4],
        actions: Vec<usize>,
        observations: Vec<[f32; 4]>,
        terminated: Vec<bool>,
    }

    /// An action that balances the pole.
    fn balance(seen: &Observations) -> usize {
        let seen = seen.of(0);
        usize::from(seen[2] + 0.5 * seen[3] + 0.05 * seen[0] + 0.1 * seen[1] > 0.0)
    }

    #[test]
    fn the_motion_is_that_of_gymnasium() {
        for run in vectors::<Vec<Vectors>>(include_str!("../tests/vectors/cartpole.json")) {
            let mut world = CartPole::default();
            world.state.motion = run.start;
            let mut episode = Episode::resume(world);
            for (at, action) in run.actions.iter().enumerate() {
                let step = episode.choose(*action);
                assert_close(episode.seen.of(0), &run.observations[at], 1e-5);
                assert_eq!((step.reward, step.terminated), (1.0, run.terminated[at]));
            }
        }
    }

    #[test]
    fn a_constant_push_terminates_the_episode() {
        let mut episode = Episode::start(CartPole::default(), 1);
        let steps = (1..).find(|_| episode.choose(1).terminated);
        assert!((5..15).contains(&steps.unwrap()), "{steps:?}");
    }

    #[test]
    fn a_balanced_pole_is_truncated_at_the_step_limit() {
        let mut episode = Episode::start(CartPole::default(), 1);
        for n in 1..=500 {
            let step = episode.choose(balance(&episode.seen));
            assert_eq!((step.terminated, step.truncated), (false, n == 500), "{n}");
        }
    }

    #[test]
    fn a_restored_episode_goes_on_where_it_was_and_an_impossible_one_is_refused() {
        let episode = Episode::start(CartPole::default(), 1);
        assert_restores(episode, CartPole::default(), |at| {
            vec![Action::Discrete(at % 2)]
        });
        let mut impossible = CartPole::default();
        impossible.state.motion[1] = f64::NAN;
        let impossible = impossible.snapshot().unwrap();
        assert_eq!(CartPole::default().restore(&impossible), Err(BadSnapshot));
    }
}
