//! Pendulum swing-up with the constants and the 200-step limit of Gymnasium's Pendulum-v1. A torque that is
//! too weak to lift the pendulum at once must swing it up and then hold it.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{f64::consts::PI, sync::LazyLock};

const GRAVITY: f64 = 10.0;
const MASS: f64 = 1.0;
const LENGTH: f64 = 1.0;
const DT: f64 = 0.05;
const MAX_SPEED: f64 = 8.0;
const MAX_TORQUE: f32 = 2.0;
const MAX_STEPS: u32 = 200;

/// A pendulum that a torque of up to ±2 N m turns. The reward is the negative cost of the angle from
/// upright, the speed and the torque; an episode is truncated after 200 steps.
#[derive(Debug, Default)]
pub struct Pendulum {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// In rad from upright, not wrapped.
    angle: f64,
    /// In rad/s.
    speed: f64,
    steps: u32,
}

static SPEC: LazyLock<WorldSpec> = LazyLock::new(|| WorldSpec {
    name: "pendulum".into(),
    agents: vec![AgentSpace {
        name: "agent".into(),
        observation: vec![
            Component::computed("angle_cos", "1", -1.0, 1.0),
            Component::computed("angle_sin", "1", -1.0, 1.0),
            Component::computed("speed", "rad/s", -MAX_SPEED as f32, MAX_SPEED as f32),
        ],
        action: ActionSpace::Continuous(vec![Component::computed(
            "torque",
            "N m",
            -MAX_TORQUE,
            MAX_TORQUE,
        )]),
    }],
    max_steps: Some(MAX_STEPS),
    calibration: None,
});

/// The same angle in -π..π.
fn wrap(angle: f64) -> f64 {
    (angle + PI).rem_euclid(2.0 * PI) - PI
}

impl State {
    /// Advances by one time step and returns the reward of the torque.
    fn advance(&mut self, torque: f64) -> f64 {
        let Self { angle, speed, .. } = *self;
        let cost = wrap(angle).powi(2) + 0.1 * speed * speed + 0.001 * torque * torque;
        let pull = 3.0 * GRAVITY / (2.0 * LENGTH) * angle.sin();
        let push = 3.0 / (MASS * LENGTH * LENGTH) * torque;
        self.speed = (speed + (pull + push) * DT).clamp(-MAX_SPEED, MAX_SPEED);
        self.angle += self.speed * DT;
        self.steps += 1;
        -cost
    }
}

impl World for Pendulum {
    fn spec(&self) -> &WorldSpec {
        &SPEC
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        self.state = State {
            angle: rng.random_range(-PI..PI),
            speed: rng.random_range(-1.0..1.0),
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
        let torque = actions[0].number().clamp(-MAX_TORQUE, MAX_TORQUE);
        let reward = self.state.advance(f64::from(torque));
        self.observe(observations);
        steps[0] = TimeStep {
            reward: reward as f32,
            terminated: false,
            truncated: self.state.steps >= MAX_STEPS,
        };
    }

    fn observe(&self, observations: &mut Observations) {
        let (sin, cos) = self.state.angle.sin_cos();
        let seen = [cos, sin, self.state.speed].map(|number| number as f32);
        observations.of_mut(0).copy_from_slice(&seen);
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let finite = state.angle.is_finite() && state.speed.is_finite();
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
        start: [f64; 2],
        actions: Vec<f32>,
        observations: Vec<[f32; 3]>,
        rewards: Vec<f32>,
    }

    #[test]
    fn motion_and_reward_are_those_of_gymnasium() {
        for run in vectors::<Vec<Vectors>>(include_str!("../tests/vectors/pendulum.json")) {
            let [angle, speed] = run.start;
            let state = State {
                angle,
                speed,
                steps: 0,
            };
            let mut episode = Episode::resume(Pendulum { state });
            for (at, torque) in run.actions.iter().enumerate() {
                let step = episode.step(&[Action::Continuous(vec![*torque])])[0];
                assert_close(episode.seen.of(0), &run.observations[at], 1e-4);
                assert_close(&[step.reward], &[run.rewards[at]], 1e-4);
            }
        }
    }

    #[test]
    fn an_upright_pendulum_at_rest_costs_nothing_and_is_truncated_at_the_step_limit() {
        let mut episode = Episode::resume(Pendulum::default());
        for n in 1..=200 {
            let step = episode.step(&[Action::Continuous(vec![0.0])])[0];
            assert_eq!((step.reward, step.terminated), (0.0, false));
            assert_eq!(step.truncated, n == 200, "{n}");
        }
    }

    #[test]
    fn a_restored_episode_goes_on_where_it_was_and_an_impossible_one_is_refused() {
        let episode = Episode::start(Pendulum::default(), 1);
        assert_restores(episode, Pendulum::default(), |at| {
            vec![Action::Continuous(vec![at as f32 / 10.0 - 1.0])]
        });
        let mut impossible = Pendulum::default();
        impossible.state.angle = f64::INFINITY;
        let impossible = impossible.snapshot().unwrap();
        assert_eq!(Pendulum::default().restore(&impossible), Err(BadSnapshot));
    }
}
