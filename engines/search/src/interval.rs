//! The bootstrap interval of a mean (Efron, 1979), by percentiles.

use crate::quantile::quantile;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const RESAMPLES: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// The mean with its 95 % interval; `None` for fewer than two values.
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
    fn the_interval_holds_the_mean_and_narrows_with_more_values() {
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

    /// Of a normal mean, the textbook interval is 1.96 standard errors to each side.
    #[test]
    fn it_agrees_with_the_textbook() {
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
