//! How slow an address is: by how much its responses take longer than those to the same method usually do.
//!
//! The estimate is a *peak* exponentially weighted moving average, as in Finagle's `PeakEwma` balancer: a slow
//! response raises it at once, and it comes down as time passes, so that an address that was slow is tried
//! again. It counts in multiples of the usual time of the method, because methods differ by orders of
//! magnitude: an address that has just solved a large problem is not slower than others for it. A failure
//! counts as the slowest response there is. Otherwise a server that refuses quickly would draw all calls.

use http::uri::PathAndQuery;
use parking_lot::Mutex;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// The time in which an estimate loses two thirds of its excess.
const DECAY: Duration = Duration::from_secs(2);
/// The most that an address counts as slower than usual.
pub(super) const MAX_RATIO: f64 = 32.0;
/// Maximum number of methods whose usual time is known.
const MAX_METHODS: usize = 1024;

/// The estimate of one address.
#[derive(Debug, Default)]
pub(super) struct Slowness(Mutex<Option<Estimate>>);

#[derive(Debug, Clone, Copy)]
struct Estimate {
    ratio: f64,
    at: Instant,
}

impl Estimate {
    fn weight(self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    fn at(self, now: Instant) -> f64 {
        1.0 + (self.ratio - 1.0) * self.weight(now)
    }

    fn with(self, sample: f64, now: Instant) -> Self {
        let weight = self.weight(now);
        let average = self.ratio * weight + sample * (1.0 - weight);
        Self {
            ratio: sample.max(average),
            at: now,
        }
    }
}

impl Slowness {
    /// Returns how many times as long as usual the address takes: from 1 to [`MAX_RATIO`], and 1 while
    /// nothing is known.
    pub(super) fn at(&self, now: Instant) -> f64 {
        self.0.lock().map_or(1.0, |estimate| estimate.at(now))
    }

    /// Records a response that took `ratio` times as long as usual.
    pub(super) fn observe(&self, ratio: f64, now: Instant) {
        let sample = ratio.clamp(1.0, MAX_RATIO);
        let mut estimate = self.0.lock();
        let first = Estimate {
            ratio: sample,
            at: now,
        };
        *estimate = Some(estimate.map_or(first, |before| before.with(sample, now)));
    }

    /// Forgets what was: the address works again.
    pub(super) fn reset(&self) {
        *self.0.lock() = None;
    }
}

/// The usual time of each method, over all addresses.
#[derive(Debug, Default)]
pub(super) struct Usual(Mutex<HashMap<PathAndQuery, Duration>>);

impl Usual {
    /// Records how long a call took, and returns how many times as long as usual that is. The usual time
    /// follows faster calls quickly and slower ones slowly: it is what the method takes where nothing is
    /// wrong.
    pub(super) fn record(&self, method: &PathAndQuery, took: Duration) -> f64 {
        let mut methods = self.0.lock();
        let Some(usual) = methods.get_mut(method) else {
            if methods.len() < MAX_METHODS {
                methods.insert(method.clone(), took);
            }
            return 1.0;
        };
        let ratio = ratio(took, *usual);
        *usual = match took.checked_sub(*usual) {
            Some(above) => *usual + above.min(*usual) / 32,
            None => *usual - (*usual - took) / 4,
        };
        ratio
    }

    /// Returns how many times as long as usual a call has taken that has no response yet; `None` where the
    /// method's time is not known.
    pub(super) fn compare(&self, method: &PathAndQuery, elapsed: Duration) -> Option<f64> {
        let usual = self.0.lock().get(method).copied()?;
        Some(ratio(elapsed, usual))
    }
}

fn ratio(took: Duration, usual: Duration) -> f64 {
    took.as_secs_f64() / usual.as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_response_counts_at_once_and_is_forgotten_with_time() {
        let (slowness, now) = (Slowness::default(), Instant::now());
        assert_eq!(slowness.at(now), 1.0);
        slowness.observe(1.0, now);
        slowness.observe(20.0, now);
        assert_eq!(slowness.at(now), 20.0);
        slowness.observe(1.0, now);
        assert_eq!(slowness.at(now), 20.0, "a fast response does not hide it");
        let later = slowness.at(now + DECAY);
        assert!((7.0..9.0).contains(&later), "{later}");
        assert!(slowness.at(now + DECAY * 10) < 1.01);
        slowness.reset();
        assert_eq!(slowness.at(now), 1.0);
    }

    #[test]
    fn the_estimate_is_bounded_whatever_is_observed() {
        let (slowness, now) = (Slowness::default(), Instant::now());
        for odd in [f64::INFINITY, 1e300, 0.0, -1.0] {
            slowness.observe(odd, now);
            assert!((1.0..=MAX_RATIO).contains(&slowness.at(now)), "{odd}");
        }
    }

    #[test]
    fn a_method_is_compared_with_itself() {
        let (quick, long) = (
            PathAndQuery::from_static("/a"),
            PathAndQuery::from_static("/b"),
        );
        let usual = Usual::default();
        for _ in 0..10 {
            assert_eq!(usual.record(&quick, MS), 1.0);
            assert_eq!(usual.record(&long, MS * 1000), 1.0);
        }
        assert_eq!(usual.compare(&quick, MS * 50), Some(50.0));
        assert_eq!(usual.compare(&PathAndQuery::from_static("/c"), MS), None);
        let slow = usual.record(&long, MS * 3000);
        assert!((2.9..3.1).contains(&slow), "{slow}");
    }

    #[test]
    fn a_slow_address_does_not_make_slow_usual() {
        let (usual, method) = (Usual::default(), PathAndQuery::from_static("/a"));
        // The first of all happens to be slow, and so is every tenth.
        for at in 0..200 {
            let took = if at % 10 == 0 { MS * 50 } else { MS };
            usual.record(&method, took);
        }
        let ratio = usual.compare(&method, MS * 50).unwrap();
        assert!(ratio > 25.0, "{ratio}");
    }

    #[test]
    fn the_methods_that_are_known_are_bounded() {
        let usual = Usual::default();
        for at in 0..MAX_METHODS * 2 {
            let method = PathAndQuery::try_from(format!("/{at}")).unwrap();
            usual.record(&method, MS);
        }
        assert_eq!(usual.0.lock().len(), MAX_METHODS);
    }
}
