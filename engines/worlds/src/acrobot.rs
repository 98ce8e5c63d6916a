//! Swing-up of a two-link pendulum that has a motor between its links only (Sutton, "Generalization in
//! Reinforcement Learning: Successful Examples Using Sparse Coarse Coding", 1996), with the equations of
//! Sutton and Barto's book, the constants and the 500-step limit of Gymnasium's Acrobot-v1.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{f64::consts::PI, sync::LazyLock};

const GRAVITY: f64 = 9.8;
const DT: f64 = 0.2;
const MASS: f64 = 1.0;
const LENGTH: f64 = 1.0;
/// The distance of a link's centre of mass from its joint.
const CENTRE: f64 = 0.5;
const INERTIA: f64 = 1.0;
const MAX_SPEED_1: f64 = 4.0 * PI;
const MAX_SPEED_2: f64 = 9.0 * PI;
/// What the motor exerts, by action, in N m.
const TORQUES: [f64; 3] = [-1.0, 0.0, 1.0];
const MAX_STEPS: u32 = 500;

/// Two links that hang from a fixed joint. Every step costs 1 until the tip is a link's length above the
/// joint, which terminates the episode; after 500 steps it is truncated.
#[derive(Debug, Default)]
pub struct Acrobot {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// The angle of the first link from hanging down and of the second from the first, in rad, and their
    /// speeds in rad/s.
    motion: [f64; 4],
    steps: u32,
}

static SPEC: LazyLock<WorldSpec> = LazyLock::new(|| {
    let part = |name| Component::computed(name, "1", -1.0, 1.0);
    let speed = |name, most: f32| Component::computed(name, "rad/s", -most, most);
    WorldSpec {
        name: "acrobot".into(),
        agents: vec![AgentSpace {
            name: "agent".into(),
            observation: vec![
                part("angle_1_cos"),
                part("angle_1_sin"),
                part("angle_2_cos"),
                part("angle_2_sin"),
                speed("speed_1", MAX_SPEED_1 as f32),
                speed("speed_2", MAX_SPEED_2 as f32),
            ],
            action: ActionSpace::named(&["torque_negative", "torque_none", "torque_positive"]),
        }],
        max_steps: Some(MAX_STEPS),
        calibration: None,
    }
});

/// The equations of motion: the derivative of angles and speeds under a torque.
fn derivative([angle_1, angle_2, speed_1, speed_2]: [f64; 4], torque: f64) -> [f64; 4] {
    let (sin, cos) = angle_2.sin_cos();
    let coupling = MASS * LENGTH * CENTRE;
    let d1 = MASS * CENTRE * CENTRE
        + MASS * (LENGTH * LENGTH + CENTRE * CENTRE + 2.0 * LENGTH * CENTRE * cos)
        + 2.0 * INERTIA;
    let d2 = MASS * (CENTRE * CENTRE + LENGTH * CENTRE * cos) + INERTIA;
    let phi2 = MASS * CENTRE * GRAVITY * (angle_1 + angle_2 - PI / 2.0).cos();
    let phi1 = -coupling * speed_2 * speed_2 * sin - 2.0 * coupling * speed_2 * speed_1 * sin
        + (MASS * CENTRE + MASS * LENGTH) * GRAVITY * (angle_1 - PI / 2.0).cos()
        + phi2;
    let rate_2 = (torque + d2 / d1 * phi1 - coupling * speed_1 * speed_1 * sin - phi2)
        / (MASS * CENTRE * CENTRE + INERTIA - d2 * d2 / d1);
    let rate_1 = -(d2 * rate_2 + phi1) / d1;
    [speed_1, speed_2, rate_1, rate_2]
}

fn add(motion: [f64; 4], time: f64, rate: [f64; 4]) -> [f64; 4] {
    std::array::from_fn(|at| motion[at] + time * rate[at])
}

/// The same angle in -π..=π.
fn wrap(angle: f64) -> f64 {
    if angle.abs() <= PI {
        return angle;
    }
    (angle + PI).rem_euclid(2.0 * PI) - PI
}

impl State {
    /// One step of the classical Runge-Kutta method.
    fn advance(&mut self, torque: f64) {
        let start = self.motion;
        let k1 = derivative(start, torque);
        let k2 = derivative(add(start, DT / 2.0, k1), torque);
        let k3 = derivative(add(start, DT / 2.0, k2), torque);
        let k4 = derivative(add(start, DT, k3), torque);
        let rate = std::array::from_fn(|at| k1[at] + 2.0 * k2[at] + 2.0 * k3[at] + k4[at]);
        let [angle_1, angle_2, speed_1, speed_2] = add(start, DT / 6.0, rate);
        self.motion = [
            wrap(angle_1),
            wrap(angle_2),
            speed_1.clamp(-MAX_SPEED_1, MAX_SPEED_1),
            speed_2.clamp(-MAX_SPEED_2, MAX_SPEED_2),
        ];
        self.steps += 1;
    }

    fn is_up(&self) -> bool {
        let [angle_1, angle_2, ..] = self.motion;
        -angle_1.cos() - (angle_2 + angle_1).cos() > 1.0
    }
}

impl World for Acrobot {
    fn spec(&self) -> &WorldSpec {
        &SPEC
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        self.state = State {
            motion: std::array::from_fn(|_| rng.random_range(-0.1..0.1)),
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
        self.state.advance(TORQUES[actions[0].index()]);
        self.observe(observations);
        let up = self.state.is_up();
        steps[0] = TimeStep {
            reward: if up { 0.0 } else { -1.0 },
            terminated: up,
            truncated: !up && self.state.steps >= MAX_STEPS,
        };
    }

    fn observe(&self, observations: &mut Observations) {
        let [angle_1, angle_2, speed_1, speed_2] = self.state.motion;
        let ((sin_1, cos_1), (sin_2, cos_2)) = (angle_1.sin_cos(), angle_2.sin_cos());
        let seen = [cos_1, sin_1, cos_2, sin_2, speed_1, speed_2].map(|number| number as f32);
        observations.of_mut(0).copy_from_slice(&seen);
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
        observations: Vec<[f32; 6]>,
        rewards: Vec<f32>,
        terminated: Vec<bool>,
    }

    #[test]
    fn the_motion_is_that_of_gymnasium() {
        let runs: Vec<Vectors> = vectors(include_str!("../tests/vectors/acrobot.json"));
        assert!(runs.iter().any(|run| run.terminated.contains(&true)));
        for run in runs {
            let state = State {
                motion: run.start,
                steps: 0,
            };
            let mut episode = Episode::resume(Acrobot { state });
            for (at, action) in run.actions.iter().enumerate() {
                let step = episode.choose(*action);
                assert_close(episode.seen.of(0), &run.observations[at], 1e-4);
                let theirs = (run.rewards[at], run.terminated[at]);
                assert_eq!((step.reward, step.terminated), theirs);
            }
        }
    }

    #[test]
    fn hanging_links_without_torque_are_truncated_at_the_step_limit() {
        let mut episode = Episode::start(Acrobot::default(), 1);
        for n in 1..=500 {
            let step = episode.choose(1);
            assert_eq!((step.reward, step.terminated), (-1.0, false));
            assert_eq!(step.truncated, n == 500, "{n}");
        }
    }

    #[test]
    fn a_restored_episode_goes_on_where_it_was_and_an_impossible_one_is_refused() {
        let episode = Episode::start(Acrobot::default(), 1);
        assert_restores(episode, Acrobot::default(), |at| {
            vec![Action::Discrete(at % 3)]
        });
        let mut impossible = Acrobot::default();
        impossible.state.motion[1] = f64::NAN;
        let impossible = impossible.snapshot().unwrap();
        assert_eq!(Acrobot::default().restore(&impossible), Err(BadSnapshot));
    }
}
