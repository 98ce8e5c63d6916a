//! Cart-pole balancing (Barto, Sutton and Anderson, "Neuronlike Adaptive Elements That Can Solve
//! Difficult Learning Control Problems", 1983), with the constants and the 500-step limit of
//! Gymnasium's CartPole-v1. Each step earns a reward of 1.

use super::{Environment, TimeStep};
use rand::{RngExt, rngs::StdRng};

const GRAVITY: f32 = 9.8;
const CART_MASS: f32 = 1.0;
const POLE_MASS: f32 = 0.1;
const TOTAL_MASS: f32 = CART_MASS + POLE_MASS;
const HALF_LENGTH: f32 = 0.5;
const FORCE: f32 = 10.0;
const DT: f32 = 0.02;
const MAX_ANGLE: f32 = 12.0 * std::f32::consts::PI / 180.0;
const MAX_POSITION: f32 = 2.4;
const MAX_STEPS: u32 = 500;

/// A pole on a cart that is pushed left or right. The episode terminates when the pole leans more
/// than 12 degrees or the cart leaves ±2.4 m, and is truncated after 500 steps, the best return.
#[derive(Debug, Default)]
pub struct CartPole {
    /// Position in m, velocity in m/s, angle in rad, angular velocity in rad/s.
    state: [f32; 4],
    steps: u32,
}

impl Environment for CartPole {
    fn observation_names(&self) -> &'static [&'static str] {
        &[
            "cart_position_m",
            "cart_velocity_m_s",
            "pole_angle_rad",
            "pole_velocity_rad_s",
        ]
    }

    fn action_names(&self) -> &'static [&'static str] {
        &["push_left", "push_right"]
    }

    fn reset(&mut self, rng: &mut StdRng, observation: &mut [f32]) {
        self.state = std::array::from_fn(|_| rng.random_range(-0.05..0.05));
        self.steps = 0;
        observation.copy_from_slice(&self.state);
    }

    fn step(&mut self, action: usize, _: &mut StdRng, observation: &mut [f32]) -> TimeStep {
        let [x, v, angle, spin] = self.state;
        let force = if action == 1 { FORCE } else { -FORCE };
        let (sin, cos) = angle.sin_cos();
        let pull = (force + POLE_MASS * HALF_LENGTH * spin * spin * sin) / TOTAL_MASS;
        let spin_rate = (GRAVITY * sin - cos * pull)
            / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos * cos / TOTAL_MASS));
        let rate = pull - POLE_MASS * HALF_LENGTH * spin_rate * cos / TOTAL_MASS;
        self.state = [
            x + DT * v,
            v + DT * rate,
            angle + DT * spin,
            spin + DT * spin_rate,
        ];
        self.steps += 1;
        observation.copy_from_slice(&self.state);
        let fallen = self.state[0].abs() > MAX_POSITION || self.state[2].abs() > MAX_ANGLE;
        TimeStep {
            reward: 1.0,
            terminated: fallen,
            truncated: !fallen && self.steps >= MAX_STEPS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_constant_push_terminates_and_a_balancing_rule_reaches_the_step_limit() {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut env, mut obs) = (CartPole::default(), [0.0; 4]);
        env.reset(&mut rng, &mut obs);
        let mut steps = 0;
        loop {
            steps += 1;
            let step = env.step(1, &mut rng, &mut obs);
            if step.is_last() {
                assert!(step.terminated && !step.truncated);
                break;
            }
        }
        assert!((5..15).contains(&steps), "{steps}");

        env.reset(&mut rng, &mut obs);
        for n in 1..=500 {
            let push = usize::from(obs[2] + 0.5 * obs[3] + 0.05 * obs[0] + 0.1 * obs[1] > 0.0);
            let step = env.step(push, &mut rng, &mut obs);
            assert_eq!(step.is_last(), n == 500, "step {n}");
            assert!(!step.terminated);
        }
    }
}
