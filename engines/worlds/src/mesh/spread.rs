//! How the times of calls are spread, where that was measured. Real times have no simple form: most calls are
//! alike, some are of another kind, and a few wait for a disk. A log-normal distribution with their moments has
//! neither their median nor their tail.

use super::latency::Latency;
use serde::{Deserialize, Serialize};

/// How many quantiles describe a distribution.
pub(crate) const QUANTILES: usize = 200;
/// Exponents this near to 1 are 1: nothing waits.
const UNCHANGED: f64 = 1e-3;

/// The distribution of the times of all calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The middle quantiles of parts of equal chance, as factors of the mean, rising.
    pub quantiles: Vec<f64>,
    /// The squared coefficient of variation.
    pub cv2: f64,
}

/// The distribution of one latency: a power of the measured one, scaled. As with logarithms of normal numbers,
/// the exponent is the ratio of the deviations of the logarithms, so that where nothing waits it is 1.
pub(crate) struct Spreading<'a> {
    quantiles: &'a [f64],
    scale: f64,
    exponent: f64,
}

impl Spread {
    /// The form of a latency's distribution. The latency's shift is a part of its mean, as in a mixture.
    pub(crate) fn of(&self, latency: &Latency) -> Spreading<'_> {
        let deviation = |cv2: f64| (1.0 + cv2).ln().sqrt();
        let own = deviation(latency.variance / (latency.mean * latency.mean));
        let exponent = own / deviation(self.cv2).max(f64::MIN_POSITIVE);
        let exponent = match (exponent - 1.0).abs() < UNCHANGED || !exponent.is_finite() {
            true => 1.0,
            false => exponent.max(UNCHANGED),
        };
        let mean = |power: f64| {
            let all = self.quantiles.iter().map(|factor| factor.powf(power));
            all.sum::<f64>()
        };
        let scale = match exponent == 1.0 {
            true => latency.mean,
            false => latency.mean * mean(1.0) / mean(exponent),
        };
        Spreading {
            quantiles: &self.quantiles,
            scale,
            exponent,
        }
    }
}

impl Spreading<'_> {
    /// The time that a share of calls take at most.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let last = self.quantiles.len() - 1;
        let place = share * self.quantiles.len() as f64 - 0.5;
        let place = place.clamp(0.0, last as f64);
        let below = place as usize;
        let (low, high) = (self.quantiles[below], self.quantiles[(below + 1).min(last)]);
        let factor = low + (high - low) * (place - below as f64);
        self.scale * factor.powf(self.exponent)
    }

    /// The median, the 95th and the 99th percentile in s.
    pub(crate) fn quantiles(&self) -> [f64; 3] {
        [0.5, 0.95, 0.99].map(|share| self.quantile(share))
    }

    /// The chance that a latency exceeds a time: of [`quantile`](Self::quantile), the inverse.
    pub(crate) fn exceeds(&self, time: f64) -> f64 {
        let factor = (time.max(0.0) / self.scale).powf(1.0 / self.exponent);
        let above = self
            .quantiles
            .partition_point(|quantile| *quantile <= factor);
        let all = self.quantiles.len() as f64;
        if above == 0 || above == self.quantiles.len() {
            return if above == 0 { 1.0 } else { 0.0 };
        }
        let (low, high) = (self.quantiles[above - 1], self.quantiles[above]);
        let part = (factor - low) / (high - low);
        1.0 - (above as f64 - 0.5 + part) / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nine calls in ten take a half, one takes 5.5 times the mean.
    fn two_kinds() -> Spread {
        let quick = vec![0.5; 180];
        Spread {
            quantiles: [quick, vec![5.5; 20]].concat(),
            cv2: 2.25,
        }
    }

    fn latency(mean: f64, cv2: f64) -> Latency {
        Latency {
            shift: [0.0; 2],
            mean,
            variance: cv2 * mean * mean,
        }
    }

    #[test]
    fn where_nothing_waits_it_is_what_was_measured() {
        let spread = two_kinds();
        let own = spread.of(&latency(0.01, 2.25));
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let [p50, p95, p99] = own.quantiles();
        assert!(close(p50, 0.005) && close(p95, 0.055) && close(p99, 0.055));
        assert_eq!(own.exceeds(0.004), 1.0);
        assert!((own.exceeds(0.03) - 0.1).abs() < 0.005);
        assert_eq!(own.exceeds(0.06), 0.0);
    }

    #[test]
    fn a_time_is_exceeded_by_the_share_above_it() {
        let spread = Spread {
            quantiles: (1..=200).map(|at| f64::from(at) / 100.0).collect(),
            cv2: 1.0 / 3.0,
        };
        for cv2 in [1.0 / 3.0, 0.1, 3.0] {
            let own = spread.of(&latency(0.2, cv2));
            for share in [0.01, 0.3, 0.5, 0.95, 0.99] {
                let time = own.quantile(share);
                assert!(
                    (own.exceeds(time) - (1.0 - share)).abs() < 1e-9,
                    "{cv2} {share}"
                );
            }
        }
    }

    #[test]
    fn what_waits_longer_for_more_varies_more() {
        let spread = two_kinds();
        let [alike, apart] = [0.5, 9.0].map(|cv2| spread.of(&latency(0.01, cv2)).quantiles());
        let ratio = |[p50, p95, _]: [f64; 3]| p95 / p50;
        assert!(
            ratio(alike) < 11.0 && ratio(apart) > 11.0,
            "{alike:?} {apart:?}"
        );
        let constant = spread.of(&latency(0.01, 0.0)).quantiles();
        assert!((ratio(constant) - 1.0).abs() < 0.01, "{constant:?}");
    }

    #[test]
    fn its_mean_is_that_of_the_latency() {
        let spread = two_kinds();
        for cv2 in [0.2, 2.25, 6.0] {
            let own = spread.of(&latency(0.01, cv2));
            let all = (0..200).map(|at| own.quantile((f64::from(at) + 0.5) / 200.0));
            assert!((all.sum::<f64>() / 200.0 - 0.01).abs() < 1e-6, "{cv2}");
        }
    }
}
