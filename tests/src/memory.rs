//! The resident memory of a process over time, and whether it grows.

use serde_json::{Value, json};
use std::io;
use tokio::time::Instant;

/// The share of the samples at the beginning that do not count: caches, pools and what is kept for a time fill.
const WARM_UP: f64 = 0.5;
/// Fewer samples have no slope.
const FEWEST: usize = 4;
/// What a process that gives everything back may still grow by, in MiB an hour: an allocator's fragments.
pub const BOUND_MIB_PER_HOUR: f64 = 8.0;
/// Over a shorter time after the warm-up, in hours, the noise of a few MiB exceeds the bound, and nothing is
/// judged.
const SHORTEST: f64 = 0.5;

/// What a process has in memory, in bytes.
///
/// # Errors
///
/// When the process is gone.
pub fn resident(process: u32) -> io::Result<u64> {
    status(process, "VmRSS:")
}

/// The most that a process has had in memory since [`forget_peak`], in bytes.
///
/// # Errors
///
/// When the process is gone.
pub fn peak(process: u32) -> io::Result<u64> {
    status(process, "VmHWM:")
}

/// What a process has in memory now becomes its peak.
///
/// # Errors
///
/// When the process is gone, or is not ours.
pub fn forget_peak(process: u32) -> io::Result<()> {
    std::fs::write(format!("/proc/{process}/clear_refs"), "5")
}

/// A size from the status of a process, in bytes.
fn status(process: u32, field: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|text| text.split_whitespace().next());
    let kib: Option<u64> = kib.and_then(|kib| kib.parse().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("no {field}")))
}

/// The resident set of a process, each time that it was read.
pub struct Memory {
    process: u32,
    began: Instant,
    /// Hours since the beginning, and MiB.
    samples: Vec<(f64, f64)>,
}

/// Whether memory grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Growth {
    /// The samples are too few, or cover too short a time.
    Unknown,
    /// Within the bound.
    Flat,
    /// Above the bound: MiB an hour.
    Grows(f64),
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

/// The samples after the warm-up.
fn warm(samples: &[(f64, f64)]) -> &[(f64, f64)] {
    let cold = (samples.len() as f64 * WARM_UP).ceil() as usize;
    &samples[cold.min(samples.len())..]
}

fn growth(samples: &[(f64, f64)], shortest: f64) -> Growth {
    let warm = warm(samples);
    let hours = match warm {
        [first, .., last] => last.0 - first.0,
        _ => 0.0,
    };
    match slope(warm).filter(|_| hours >= shortest) {
        None => Growth::Unknown,
        Some(slope) if slope <= BOUND_MIB_PER_HOUR => Growth::Flat,
        Some(slope) => Growth::Grows(slope),
    }
}

impl Memory {
    /// Nothing was read yet.
    pub fn of(process: u32) -> Self {
        Self {
            process,
            began: Instant::now(),
            samples: Vec::new(),
        }
    }

    /// Reads the resident set.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn sample(&mut self) -> io::Result<()> {
        let bytes = resident(self.process)?;
        let hours = self.began.elapsed().as_secs_f64() / 3600.0;
        self.samples
            .push((hours, bytes as f64 / f64::from(1 << 20)));
        Ok(())
    }

    /// The last sample.
    pub fn last_mib(&self) -> Option<f64> {
        self.samples.last().map(|sample| sample.1)
    }

    /// Whether it grows after the warm-up.
    pub fn growth(&self) -> Growth {
        self.growth_over(SHORTEST)
    }

    /// The same, where the samples after the warm-up cover so many hours. Fewer than half an hour's need to be
    /// many: a sample every few seconds.
    pub fn growth_over(&self, shortest: f64) -> Growth {
        growth(&self.samples, shortest)
    }

    /// The last sample and the slope, for people.
    pub fn describe(&self) -> String {
        let now = self.last_mib().unwrap_or(f64::NAN);
        match slope(warm(&self.samples)) {
            Some(slope) => format!("{now:.1} MiB, {slope:+.1} MiB/h"),
            None => format!("{now:.1} MiB"),
        }
    }

    /// All of it. `is_flat` is null where nothing can be judged.
    pub fn report(&self) -> Value {
        let mib = || self.samples.iter().map(|sample| sample.1);
        let is_flat = match self.growth() {
            Growth::Unknown => None,
            other => Some(other == Growth::Flat),
        };
        json!({
            "slope_mib_per_hour": slope(warm(&self.samples)),
            "bound_mib_per_hour": BOUND_MIB_PER_HOUR,
            "is_flat": is_flat,
            "samples": self.samples.len(),
            "samples_of_slope": warm(&self.samples).len(),
            "first_mib": mib().next(),
            "last_mib": mib().next_back(),
            "most_mib": mib().reduce(f64::max),
            "all": self.samples,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample every 36 seconds, with noise of 3 MiB.
    fn samples(hours: f64, mib: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        let noise = |n: usize| (n * 7 % 13) as f64 / 2.0 - 3.0;
        let at = |n: usize| n as f64 / 100.0;
        let count = (hours * 100.0) as usize;
        (0..count).map(|n| (at(n), mib(at(n)) + noise(n))).collect()
    }

    #[test]
    fn a_warm_up_is_no_growth() {
        let filled = samples(2.0, |hour| 120.0 + 80.0 * (hour / 0.9).min(1.0));
        assert_eq!(growth(&filled, SHORTEST), Growth::Flat);
    }

    #[test]
    fn a_steady_leak_grows() {
        let leak = samples(2.0, |hour| 200.0 + 12.0 * hour);
        let Growth::Grows(slope) = growth(&leak, SHORTEST) else {
            panic!("{:?}", growth(&leak, SHORTEST));
        };
        assert!((slope - 12.0).abs() < 0.5, "{slope}");
    }

    #[test]
    fn a_short_time_is_not_judged() {
        for hours in [0.0, 0.03, 0.9] {
            let leak = samples(hours, |hour| 200.0 + 100.0 * hour);
            assert_eq!(growth(&leak, SHORTEST), Growth::Unknown, "{hours}");
        }
    }

    #[test]
    fn the_memory_of_this_process_can_be_read() {
        let mut memory = Memory::of(std::process::id());
        memory.sample().unwrap();
        assert!(memory.samples[0].1 > 1.0);
        assert!(memory.report()["is_flat"].is_null());
    }
}
