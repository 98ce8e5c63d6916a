//! The distribution of latencies. The time that a call takes is the delay of the queue of the fluid model,
//! which shifts it, and a sum of waits and service times, whose two moments a log-normal distribution
//! matches: its quantiles are closed forms, and its median and 95th percentile are within 8 % of those of the
//! exponential distribution.

use serde::{Deserialize, Serialize};

/// A latency's distribution in one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// The shift at the start and at the end of the interval, in s.
    pub(crate) shift: [f64; 2],
    /// The mean of the random part in s.
    pub(crate) mean: f64,
    pub(crate) variance: f64,
}

/// The standard normal distribution's quantiles at 0.95 and 0.99.
const Z_95: f64 = 1.644_853_626_951;
const Z_99: f64 = 2.326_347_874_041;

/// The chance that a standard normal number exceeds z (Abramowitz and Stegun, 26.2.17; the error is below
/// 1e-7).
pub(crate) fn normal_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - normal_tail(-z);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let polynomial = [
        1.330_274_429,
        -1.821_255_978,
        1.781_477_937,
        -0.356_563_782,
        0.319_381_530,
    ];
    let sum = polynomial
        .into_iter()
        .fold(0.0, |sum, term| (sum + term) * t);
    sum * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

impl Latency {
    /// The logarithm's mean and standard deviation.
    fn log_moments(&self) -> (f64, f64) {
        let variance = (1.0 + self.variance / (self.mean * self.mean))
            .ln()
            .max(1e-12);
        (self.mean.ln() - variance / 2.0, variance.sqrt())
    }

    /// The distribution of this latency and another one that follows it.
    pub(crate) fn plus(&self, next: &Self) -> Self {
        Self {
            shift: std::array::from_fn(|at| self.shift[at] + next.shift[at]),
            mean: self.mean + next.mean,
            variance: self.variance + next.variance,
        }
    }

    /// The chance that a latency exceeds a time. The shift changes evenly over the interval, which
    /// Simpson's rule averages.
    pub(crate) fn exceeds(&self, time: f64) -> f64 {
        let [start, end] = self.shift;
        let latest = time - start.max(end) - self.mean;
        // Cantelli's inequality bounds what would be added below by 1e-4.
        if latest > 0.0 && latest * latest > 1e4 * self.variance {
            return 0.0;
        }
        let moments = self.log_moments();
        let beyond = |shift: f64| beyond(moments, time - shift);
        if start == end {
            return beyond(start);
        }
        let middle = beyond((start + end) / 2.0);
        (beyond(start) + 4.0 * middle + beyond(end)) / 6.0
    }

    /// The median, the 95th and the 99th percentile, with the mean shift, in s.
    pub(crate) fn quantiles(&self) -> [f64; 3] {
        let (mean, deviation) = self.log_moments();
        let shift = (self.shift[0] + self.shift[1]) / 2.0;
        [0.0, Z_95, Z_99].map(|z| shift + (mean + z * deviation).exp())
    }
}

fn beyond((mean, deviation): (f64, f64), time: f64) -> f64 {
    if time <= 0.0 {
        return 1.0;
    }
    normal_tail((time.ln() - mean) / deviation)
}

/// Sums up the moments of a mixture of latencies.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mixture {
    weight: f64,
    first: f64,
    second: f64,
}

impl Mixture {
    pub(crate) fn add(&mut self, weight: f64, latency: &Latency) {
        let [start, end] = latency.shift;
        let mean = (start + end) / 2.0 + latency.mean;
        let ramp = (end - start) * (end - start) / 12.0;
        self.weight += weight;
        self.first += weight * mean;
        self.second += weight * (mean * mean + latency.variance + ramp);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.weight += other.weight;
        self.first += other.first;
        self.second += other.second;
    }

    /// The distribution with these moments; `None` when nothing was added.
    pub(crate) fn latency(&self) -> Option<Latency> {
        if self.weight <= 0.0 {
            return None;
        }
        let mean = self.first / self.weight;
        let variance = (self.second / self.weight - mean * mean).max(0.0);
        Some(Latency {
            shift: [0.0; 2],
            mean,
            variance,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(mean: f64) -> Latency {
        Latency {
            shift: [0.0; 2],
            mean,
            variance: mean * mean,
        }
    }

    #[test]
    fn the_normal_tail_has_its_known_values() {
        for (z, tail) in [
            (0.0, 0.5),
            (1.0, 0.158_655_25),
            (Z_95, 0.05),
            (Z_99, 0.01),
            (-1.0, 0.841_344_75),
        ] {
            assert!((normal_tail(z) - tail).abs() < 1e-7, "{z}");
        }
    }

    #[test]
    fn quantiles_of_an_exponential_latency_are_close() {
        let [p50, p95, p99] = exponential(0.1).quantiles();
        for (ours, exact) in [(p50, 0.069_315), (p95, 0.299_573), (p99, 0.460_517)] {
            assert!((ours / exact - 1.0).abs() < 0.08, "{ours} against {exact}");
        }
    }

    #[test]
    fn a_quantile_is_exceeded_by_its_share() {
        let latency = Latency {
            shift: [0.2, 0.2],
            mean: 0.1,
            variance: 0.004,
        };
        let [p50, p95, p99] = latency.quantiles();
        for (time, share) in [(p50, 0.5), (p95, 0.05), (p99, 0.01)] {
            assert!((latency.exceeds(time) - share).abs() < 1e-6);
        }
    }

    #[test]
    fn a_shift_across_the_limit_makes_a_part_late() {
        let latency = Latency {
            shift: [0.0, 2.0],
            mean: 0.01,
            variance: 1e-6,
        };
        assert!((latency.exceeds(1.0) - 0.5).abs() < 0.34);
        assert_eq!(latency.exceeds(5.0), 0.0);
        assert!(
            Latency {
                shift: [3.0, 4.0],
                ..latency
            }
            .exceeds(1.0)
                > 0.999
        );
    }

    #[test]
    fn a_mixture_has_the_moments_of_its_parts() {
        let mut mixture = Mixture::default();
        assert_eq!(mixture.latency(), None);
        mixture.add(
            1.0,
            &Latency {
                shift: [0.0; 2],
                mean: 1.0,
                variance: 0.0,
            },
        );
        mixture.add(
            3.0,
            &Latency {
                shift: [0.0; 2],
                mean: 2.0,
                variance: 0.0,
            },
        );
        let latency = mixture.latency().unwrap();
        assert!((latency.mean - 1.75).abs() < 1e-12 && (latency.variance - 0.1875).abs() < 1e-12);
    }
}
