//! What a calibration predicts for a window.

use super::measure::{Histogram, Window};
use crate::mesh::{calibration::Calibration, forecast::Forecast};

/// How many intervals the model runs before it is asked, so that its queues have settled.
const SETTLING: u32 = 60;

/// What a calibration expects of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Completed calls per second.
    pub throughput: f64,
    /// Their latencies, in the buckets of the window.
    pub latencies: Histogram,
}

/// Predicts a window: the load is that of the calibration, and only how many replicas served, which somebody
/// decides, is taken from the window.
pub fn predict(calibration: &Calibration, window: &Window) -> Prediction {
    let mut forecast = Forecast::new(calibration);
    forecast.controls().limit = f64::from(f32::MAX);
    for (at, tenant) in calibration.tenants.iter().enumerate() {
        forecast.set_demand(at, tenant.rate, 0.0);
    }
    let intervals = ((window.seconds / calibration.interval_s).ceil() as u32).max(1);
    let replicas: Vec<u32> = window
        .services
        .iter()
        .map(|s| s.replicas.round() as u32)
        .collect();
    let bounds = window.latencies.bounds();
    let mut below = vec![0.0; bounds.len() + 1];
    let mut completed = 0.0;
    for at in 0..SETTLING + intervals {
        let interval = forecast.run(&replicas);
        if at < SETTLING {
            continue;
        }
        let calls = interval.completed();
        completed += calls;
        let pooled = interval.pooled();
        let spreading = calibration.spread.as_ref().zip(pooled.as_ref());
        let spreading = spreading.map(|(spread, pooled)| spread.of(pooled));
        for (below, bound) in below.iter_mut().zip(bounds) {
            let late = match &spreading {
                Some(spreading) => spreading.exceeds(*bound),
                None => interval.exceeds(*bound),
            };
            *below += calls * (1.0 - late);
        }
    }
    below[bounds.len()] = completed;
    let mut counts = below.clone();
    for at in 1..counts.len() {
        counts[at] = (below[at] - below[at - 1]).max(0.0);
    }
    let latencies = Histogram::new(bounds.to_vec(), counts);
    Prediction {
        throughput: completed / (f64::from(intervals) * calibration.interval_s),
        latencies: latencies.expect("the bounds are those of a histogram"),
    }
}
