//! Normal distributions, one for each component of a continuous action.

use super::{Evaluation, Weights};
use crate::net::standard_normal;
use rand::Rng;
use std::f32::consts::TAU;

/// The logarithms of the standard deviations, which are learned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gaussian {
    pub log_std: Vec<f32>,
}

impl Gaussian {
    pub(super) fn sample(&self, means: &[f32], rng: &mut impl Rng, action: &mut [f32]) {
        for ((a, mean), log_std) in action.iter_mut().zip(means).zip(&self.log_std) {
            *a = mean + log_std.exp() * standard_normal(rng);
        }
    }

    pub(super) fn evaluate(&self, means: &[f32], action: &[f32]) -> Evaluation {
        let mut found = Evaluation {
            log_probability: 0.0,
            entropy: 0.0,
        };
        for ((a, mean), log_std) in action.iter().zip(means).zip(&self.log_std) {
            let z = (a - mean) * (-log_std).exp();
            found.log_probability -= 0.5 * (z * z + TAU.ln()) + log_std;
            found.entropy += 0.5 * (1.0 + TAU.ln()) + log_std;
        }
        found
    }

    pub(super) fn differentiate(
        &self,
        row: &mut [f32],
        action: &[f32],
        weights: Weights,
        params: &mut [f32],
    ) {
        let components = row.iter_mut().zip(action);
        for ((mean, a), (log_std, g)) in components.zip(self.log_std.iter().zip(params)) {
            let precision = (-log_std).exp();
            let z = (a - *mean) * precision;
            *g += weights.log_probability * (z * z - 1.0) + weights.entropy;
            *mean = weights.log_probability * z * precision;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tars_worlds::Generator;

    const MEANS: [f32; 2] = [0.4, -1.0];
    const ACTION: [f32; 2] = [1.1, -0.2];
    const WEIGHTS: Weights = Weights {
        log_probability: 0.7,
        entropy: -1.3,
    };

    fn gaussian() -> Gaussian {
        Gaussian {
            log_std: vec![-0.5, 0.3],
        }
    }

    fn weighted(gaussian: &Gaussian, means: &[f32]) -> f32 {
        let found = gaussian.evaluate(means, &ACTION);
        WEIGHTS.log_probability * found.log_probability + WEIGHTS.entropy * found.entropy
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (mut row, mut params) = (MEANS, [0.0; 2]);
        gaussian().differentiate(&mut row, &ACTION, WEIGHTS, &mut params);
        for at in 0..2 {
            let mean = |by: f32| {
                let mut means = MEANS;
                means[at] += by;
                weighted(&gaussian(), &means)
            };
            let deviation = |by: f32| {
                let mut moved = gaussian();
                moved.log_std[at] += by;
                weighted(&moved, &MEANS)
            };
            let numeric = (mean(1e-2) - mean(-1e-2)) / 2e-2;
            assert!((numeric - row[at]).abs() < 1e-3, "mean {at}: {numeric}");
            let numeric = (deviation(1e-2) - deviation(-1e-2)) / 2e-2;
            assert!((numeric - params[at]).abs() < 1e-3, "std {at}: {numeric}");
        }
    }

    #[test]
    fn the_entropy_is_the_mean_of_minus_the_log_density() {
        let (gaussian, rng) = (gaussian(), &mut Generator::seed_from_u64(1));
        let (mut action, mut sum) = ([0.0; 2], 0.0);
        for _ in 0..100_000 {
            gaussian.sample(&MEANS, rng, &mut action);
            sum -= f64::from(gaussian.evaluate(&MEANS, &action).log_probability);
        }
        let entropy = f64::from(gaussian.evaluate(&MEANS, &ACTION).entropy);
        assert!((sum / 100_000.0 - entropy).abs() < 0.02, "{sum} {entropy}");
    }
}
