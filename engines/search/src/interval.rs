//! Percentile bootstrap intervals (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).

use crate::quantile::quantile;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const RESAMPLES: usize = 10_000;

/// A mean and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The sample mean.
    pub mean: f64,
    /// The 2.5 % quantile of the resampled means.
    pub low: f64,
    /// The 97.5 % quantile of the resampled means.
    pub high: f64,
}

/// The mean with its 95 % interval over 10000 resamples, which `seed` determines; `None` for fewer
/// than two values.
pub fn bootstrap(values: &[f64], seed: u64) -> Option<Interval> {
    let n = values.len();
    if n < 2 {
        return None;
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| (0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    Some(Interval {
        mean: values.iter().sum::<f64>() / n as f64,
        low: quantile(&means, 0.025)?,
        high: quantile(&means, 0.975)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_contains_the_mean_and_narrows_with_more_values() {
        let few = bootstrap(&[1.0, 2.0, 3.0, 4.0, 5.0], 1).unwrap();
        let many: Vec<f64> = (0..100).map(|i| f64::from(i % 5) + 1.0).collect();
        let many = bootstrap(&many, 1).unwrap();
        assert!(few.low < 3.0 && 3.0 < few.high && few.mean == 3.0);
        assert!(many.high - many.low < 0.5 * (few.high - few.low));
        assert_eq!(
            bootstrap(&[2.0, 2.0], 1).unwrap(),
            Interval {
                mean: 2.0,
                low: 2.0,
                high: 2.0
            }
        );
        assert_eq!(bootstrap(&[1.0], 1), None);
    }

    /// The normal approximation is 1.96 standard errors to each side.
    #[test]
    fn the_interval_agrees_with_the_normal_approximation() {
        let values: Vec<f64> = (0..200)
            .map(|i| ((f64::from(i) * 0.618).fract() - 0.5) * 12f64.sqrt())
            .collect();
        let i = bootstrap(&values, 3).unwrap();
        let expected = 1.96 / 200f64.sqrt();
        assert!(
            ((i.high - i.low) / 2.0 / expected - 1.0).abs() < 0.1,
            "{i:?}"
        );
    }
}
