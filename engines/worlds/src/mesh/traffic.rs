//! Who calls how often: a daily rhythm, bursts of each tenant (a Markov-modulated Poisson process with two
//! states), and arrivals that vary more than those of a Poisson process do.

use super::{
    calibration::{Calibration, MAX_TENANTS, Traffic},
    fair::PerTenant,
};
use crate::world::Generator;
use rand::RngExt;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

pub(crate) const DAY_S: f64 = 86_400.0;

/// The state of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Load {
    /// The time of the day in s.
    pub(crate) time: f64,
    pub(crate) bursting: [bool; MAX_TENANTS],
}

/// The chance that what lasts `mean` seconds on average ends within an interval.
pub(crate) fn ends_within(interval: f64, mean: f64) -> f64 {
    1.0 - (-interval / mean).exp()
}

/// Moves a state of two on: whether it is on after an interval.
pub(crate) fn switch(on: bool, draw: f64, ends: f64, begins: f64) -> bool {
    if on { draw >= ends } else { draw < begins }
}

impl Load {
    /// A random time of a day on which the bursts have gone on for long.
    pub(crate) fn start(traffic: &Traffic, rng: &mut Generator) -> Self {
        let share = traffic.burst_s / (traffic.burst_s + traffic.calm_s);
        Self {
            time: rng.random_range(0.0..DAY_S),
            bursting: std::array::from_fn(|_| rng.random::<f64>() < share),
        }
    }

    /// The hour as an angle.
    pub(crate) fn angle(&self) -> f64 {
        TAU * self.time / DAY_S
    }

    /// The tenants' rates of first attempts now, in calls/s.
    pub(crate) fn rates(&self, calibration: &Calibration) -> PerTenant {
        let traffic = &calibration.traffic;
        let phase = self.angle() - TAU * traffic.peak_hour / 24.0;
        let daily = 1.0 + traffic.diurnal * phase.cos();
        let mut rates = PerTenant::default();
        for (at, tenant) in calibration.tenants.iter().enumerate() {
            let burst = if self.bursting[at] {
                traffic.burst_factor
            } else {
                1.0
            };
            rates[at] = tenant.rate * daily * burst;
        }
        rates
    }

    /// Moves on by an interval and returns how many first attempts each tenant makes in it. The number of
    /// draws does not depend on what the agents do.
    pub(crate) fn advance(&mut self, calibration: &Calibration, rng: &mut Generator) -> PerTenant {
        let (traffic, interval) = (&calibration.traffic, calibration.interval_s);
        let ends = ends_within(interval, traffic.burst_s);
        let begins = ends_within(interval, traffic.calm_s);
        for burst in &mut self.bursting {
            *burst = switch(*burst, rng.random(), ends, begins);
        }
        self.time = (self.time + interval) % DAY_S;
        let excess = traffic.dispersion - 1.0;
        self.rates(calibration).map(|rate| {
            let mean = rate * interval;
            let noise: f64 = rng.sample(StandardNormal);
            (mean + (excess * mean).sqrt() * noise).max(0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn load_peaks_at_its_hour() {
        let calibration = Calibration::shipped();
        let at = |hour: f64| {
            let time = hour * 3600.0;
            Load {
                time,
                ..Load::default()
            }
            .rates(&calibration)[0]
        };
        assert!((at(14.0) - 50.0 * 1.5).abs() < 1e-9);
        assert!((at(2.0) - 50.0 * 0.5).abs() < 1e-9);
    }

    #[test]
    fn bursts_and_dispersion_are_those_of_the_calibration() {
        let mut calibration = Calibration::shipped();
        calibration.traffic.diurnal = 0.0;
        let mut rng = Generator::seed_from_u64(4);
        let mut load = Load::start(&calibration.traffic, &mut rng);
        let (mut bursts, mut deviations, mut calm) = (0.0, 0.0, 0.0);
        for _ in 0..200_000 {
            let arrivals = load.advance(&calibration, &mut rng);
            if load.bursting[0] {
                bursts += 1.0;
            } else {
                (calm, deviations) = (calm + 1.0, deviations + (arrivals[0] - 250.0).powi(2));
            }
        }
        assert!((bursts / 200_000.0 - 0.25f64).abs() < 0.01, "{bursts}");
        let dispersion: f64 = deviations / calm / 250.0;
        assert!((dispersion - 2.0).abs() < 0.05, "{dispersion}");
    }
}
