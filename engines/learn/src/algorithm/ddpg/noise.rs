//! The noise that is added to the actor's choice.

use crate::net::standard_normal;
use serde::{Deserialize, Serialize};
use tars_worlds::Generator;

/// How noise is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Correlated in time: the process of Ornstein and Uhlenbeck (1930).
    Correlated,
    /// The same, with a standard deviation that falls with the episodes.
    Adaptive,
    /// Independent and normally distributed.
    Independent,
}

/// The constants of noise, in units of half the range of an action.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Constants {
    pub kind: Kind,
    pub sigma: f32,
    /// Where adaptive noise ends.
    pub sigma_end: f32,
    /// The factor of adaptive noise after each episode.
    pub decay: f32,
    /// How fast correlated noise returns to zero, for a unit of time.
    pub theta: f32,
    /// The time of one step.
    pub dt: f32,
}

/// The state of the noise of all copies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Noise {
    width: usize,
    values: Vec<f32>,
    sigma: f32,
}

impl Noise {
    pub(super) fn new(copies: usize, width: usize, sigma: f32) -> Self {
        Self {
            width,
            values: vec![0.0; copies * width],
            sigma,
        }
    }

    /// The standard deviation of a step's noise at present.
    pub(super) fn sigma(&self) -> f32 {
        self.sigma
    }

    pub(super) fn set_sigma(&mut self, sigma: f32) {
        self.sigma = sigma;
    }

    /// The noise of a copy's next action.
    pub(super) fn draw(
        &mut self,
        copy: usize,
        constants: &Constants,
        rng: &mut Generator,
    ) -> &[f32] {
        let values = &mut self.values[copy * self.width..][..self.width];
        let (theta, dt) = (constants.theta, constants.dt);
        for value in &mut *values {
            let normal = self.sigma * standard_normal(rng);
            *value = match constants.kind {
                Kind::Independent => normal,
                Kind::Correlated | Kind::Adaptive => {
                    *value - theta * *value * dt + normal * dt.sqrt()
                }
            };
        }
        values
    }

    pub(super) fn end_episode(&mut self, copy: usize, constants: &Constants) {
        self.values[copy * self.width..][..self.width].fill(0.0);
        if constants.kind == Kind::Adaptive {
            self.sigma = (self.sigma * constants.decay).max(constants.sigma_end);
        }
    }

    /// Whether this is the noise of so many copies and components that can be continued with.
    pub(super) fn fits(&self, copies: usize, width: usize) -> bool {
        self.width == width
            && self.values.len() == copies * width
            && self.values.iter().all(|v| v.is_finite())
            && self.sigma.is_finite()
            && self.sigma >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const CONSTANTS: Constants = Constants {
        kind: Kind::Correlated,
        sigma: 0.3,
        sigma_end: 0.05,
        decay: 0.5,
        theta: 0.5,
        dt: 0.1,
    };

    fn moments(kind: Kind) -> (f32, f32) {
        let constants = Constants { kind, ..CONSTANTS };
        let mut noise = Noise::new(1, 1, 0.3);
        let rng = &mut Generator::seed_from_u64(1);
        let drawn: Vec<f32> = (0..200_000)
            .map(|_| noise.draw(0, &constants, rng)[0])
            .collect();
        let variance = drawn.iter().map(|x| x * x).sum::<f32>() / drawn.len() as f32;
        let lagged = drawn.windows(2).map(|x| x[0] * x[1]).sum::<f32>() / drawn.len() as f32;
        (variance, lagged / variance)
    }

    #[test]
    fn correlated_noise_has_the_variance_and_correlation_of_its_process() {
        let (variance, correlation) = moments(Kind::Correlated);
        let exact = 0.09 * 0.1 / (1.0 - 0.95f32 * 0.95);
        assert!((variance / exact - 1.0).abs() < 0.05, "{variance} {exact}");
        assert!((correlation - 0.95).abs() < 0.01);
    }

    #[test]
    fn independent_noise_is_not_correlated_and_adaptive_noise_falls_to_its_end() {
        let (variance, correlation) = moments(Kind::Independent);
        assert!((variance / 0.09 - 1.0).abs() < 0.05 && correlation.abs() < 0.02);
        let adaptive = Constants {
            kind: Kind::Adaptive,
            ..CONSTANTS
        };
        let mut noise = Noise::new(2, 1, 0.3);
        noise.draw(1, &adaptive, &mut Generator::seed_from_u64(1));
        noise.end_episode(1, &adaptive);
        assert_eq!((noise.sigma(), noise.values[1]), (0.15, 0.0));
        (0..9).for_each(|_| noise.end_episode(0, &adaptive));
        assert_eq!(noise.sigma(), 0.05);
    }
}
