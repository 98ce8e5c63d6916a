//! The memory of a process over time.

use crate::Failure;
use serde_json::{Value, json};
use tokio::time::Instant;

/// The share of the samples at the beginning that do not count: caches and pools fill.
const WARM_UP: f64 = 0.25;
/// Fewer samples have no slope.
const FEWEST: usize = 4;

/// The resident set of a process, each time that it was read.
pub(crate) struct Memory {
    process: u32,
    began: Instant,
    /// Hours since the beginning, and MiB.
    samples: Vec<(f64, f64)>,
}

/// The slope of the line with the least squared errors.
fn slope(samples: &[(f64, f64)]) -> Option<f64> {
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|s| s.0), mean(|s| s.1));
    let moments = samples
        .iter()
        .map(|(a, b)| ((a - x) * (b - y), (a - x).powi(2)));
    let (both, square) = moments.fold((0.0, 0.0), |sum, m| (sum.0 + m.0, sum.1 + m.1));
    (samples.len() >= FEWEST && square > 0.0).then(|| both / square)
}

impl Memory {
    pub(crate) fn of(process: u32) -> Self {
        Self {
            process,
            began: Instant::now(),
            samples: Vec::new(),
        }
    }

    pub(crate) fn sample(&mut self) -> Result<(), Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|text| text.split_whitespace().next());
        let kib: f64 = kib.ok_or("no VmRSS")?.parse()?;
        let hours = self.began.elapsed().as_secs_f64() / 3600.0;
        self.samples.push((hours, kib / 1024.0));
        Ok(())
    }

    /// Those after the warm-up.
    fn warm(&self) -> &[(f64, f64)] {
        let cold = (self.samples.len() as f64 * WARM_UP).ceil() as usize;
        &self.samples[cold.min(self.samples.len())..]
    }

    pub(crate) fn describe(&self) -> String {
        let now = self.samples.last().map_or(f64::NAN, |sample| sample.1);
        match slope(self.warm()) {
            Some(slope) => format!("{now:.1} MiB, {slope:+.1} MiB/h"),
            None => format!("{now:.1} MiB"),
        }
    }

    pub(crate) fn report(&self) -> Value {
        let mib = || self.samples.iter().map(|sample| sample.1);
        json!({
            "slope_mib_per_hour": slope(self.warm()),
            "samples": self.samples.len(),
            "samples_of_slope": self.warm().len(),
            "first_mib": mib().next(),
            "last_mib": mib().next_back(),
            "most_mib": mib().reduce(f64::max),
            "all": self.samples,
        })
    }
}
