//! How slow an address is: by how much its responses take longer than those to the same method usually do.
//!
//! The estimate is a *peak* exponentially weighted moving average, as in Finagle's `PeakEwma` balancer: a slow
//! response raises it at once, and it comes down as time passes, so that an address that was slow is tried
//! again. When it is slow again, it is left alone for longer the next time, as an address is that fails: each
//! try is a call for which somebody waits. The estimate counts in multiples of the usual time of the method,
//! because methods differ by orders of magnitude: an address that has just solved a large problem is not slower
//! than others for it. A failure counts as the slowest response there is. Otherwise a server that refuses quickly
//! would draw all calls.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// The time in which an estimate loses two thirds of its excess, at first.
const DECAY: Duration = Duration::from_secs(2);
/// The same of an address that was slow whenever it was tried again.
const MAX_DECAY: Duration = Duration::from_secs(16);
/// A response that takes less than this is not slow.
const SLOW: f64 = 2.0;
/// The most that an address counts as slower than usual.
pub(super) const MAX_RATIO: f64 = 32.0;

/// Returns how many streams one stream at an address of this slowness counts as, when addresses are compared: as many
/// as it is slower, and beyond [`SLOW`] more than that. How much is in use tells how long a call will wait only where
/// calls wait for each other. What is slow for another reason would get every call that comes while others are
/// busy, and with one in a hundred it decides the 99th percentile of all. Nothing counts as more than what fails.
pub(super) fn weight(ratio: f64) -> f64 {
    (ratio * (ratio / SLOW).max(1.0)).min(MAX_RATIO)
}

/// The estimate of one address.
#[derive(Debug, Default)]
pub(super) struct Slowness(Mutex<Option<Estimate>>);

#[derive(Debug, Clone, Copy)]
struct Estimate {
    ratio: f64,
    at: Instant,
    decay: Duration,
    /// Whether the last response was slow.
    is_slow: bool,
}

impl Estimate {
    fn weight(self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / self.decay.as_secs_f64()).exp()
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
            decay: self.decay_after(sample, now),
            is_slow: sample >= SLOW,
        }
    }

    fn decay_after(self, sample: f64, now: Instant) -> Duration {
        if sample < SLOW {
            return DECAY;
        }
        // What was on its way when the first slow response came says nothing new.
        let was_tried_again = self.is_slow && self.at(now) <= sample / 2.0;
        match was_tried_again {
            true => (self.decay * 2).min(MAX_DECAY),
            false => self.decay,
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
            decay: DECAY,
            is_slow: sample >= SLOW,
        };
        *estimate = Some(estimate.map_or(first, |before| before.with(sample, now)));
    }

    /// Forgets what was: the address works again.
    pub(super) fn reset(&self) {
        *self.0.lock() = None;
    }
}

/// The usual time of each method of the contract, over all addresses, by the position of its outline. A call of
/// no such method is compared with nothing.
#[derive(Debug)]
pub(super) struct Usual(Mutex<Box<[Option<Duration>]>>);

impl Usual {
    pub(super) fn new(methods: usize) -> Self {
        Self(Mutex::new(vec![None; methods].into()))
    }

    /// Records how long a call took that brought what was asked for, and returns how many times as long as
    /// usual that is. The usual time follows faster calls quickly and slower ones slowly: it is what the
    /// method takes where nothing is wrong.
    pub(super) fn record(&self, method: Option<usize>, took: Duration) -> Option<f64> {
        let mut methods = self.0.lock();
        let known = methods.get_mut(method?)?;
        let Some(usual) = known else {
            *known = Some(took);
            return Some(1.0);
        };
        let ratio = ratio(took, *usual);
        *usual = match took.checked_sub(*usual) {
            Some(above) => *usual + above.min(*usual) / 32,
            None => *usual - (*usual - took) / 4,
        };
        Some(ratio)
    }

    /// Returns the usual time of a method, where it is known.
    pub(super) fn of(&self, method: Option<usize>) -> Option<Duration> {
        *self.0.lock().get(method?)?
    }

    /// Returns how many times as long as usual a call has taken; `None` where the method's time is not known.
    pub(super) fn compare(&self, method: Option<usize>, elapsed: Duration) -> Option<f64> {
        Some(ratio(elapsed, self.of(method)?))
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
    fn an_address_that_is_slow_again_and_again_is_left_alone_for_longer() {
        let (slowness, mut now) = (Slowness::default(), Instant::now());
        // How long until it seems to be no more than four times as slow.
        let tried_after = |mut now: Instant| {
            let began = now;
            while slowness.at(now) > 4.0 {
                now += MS;
            }
            now - began
        };
        let mut waits = Vec::new();
        for _ in 0..6 {
            // Those that are in flight at once count as one.
            for _ in 0..8 {
                slowness.observe(20.0, now);
            }
            let wait = tried_after(now);
            waits.push(wait.as_millis() / 100);
            now += wait;
        }
        assert_eq!(waits, [36, 73, 147, 295, 295, 295]);
        slowness.observe(1.0, now);
        slowness.observe(20.0, now);
        assert_eq!(
            tried_after(now).as_millis() / 100,
            36,
            "it was fast in between"
        );
    }

    #[test]
    fn what_is_a_little_slow_shares_the_load_and_what_is_slow_hardly_gets_any() {
        assert_eq!([1.0, 1.5, SLOW].map(weight), [1.0, 1.5, SLOW]);
        assert_eq!(weight(3.0), 4.5);
        assert_eq!(weight(6.0), 18.0);
        let all: Vec<f64> = (4..=128).map(|q| weight(f64::from(q) / 4.0)).collect();
        assert!(all.is_sorted(), "{all:?}");
        assert_eq!(weight(MAX_RATIO), MAX_RATIO);
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
        let (usual, quick, long) = (Usual::new(3), Some(0), Some(1));
        for _ in 0..10 {
            assert_eq!(usual.record(quick, MS), Some(1.0));
            assert_eq!(usual.record(long, MS * 1000), Some(1.0));
        }
        assert_eq!(usual.compare(quick, MS * 50), Some(50.0));
        assert_eq!(usual.compare(Some(2), MS), None);
        let slow = usual.record(long, MS * 3000).unwrap();
        assert!((2.9..3.1).contains(&slow), "{slow}");
    }

    #[test]
    fn what_is_no_method_of_the_contract_is_compared_with_nothing() {
        let usual = Usual::new(1);
        for unknown in [None, Some(1)] {
            assert_eq!(usual.record(unknown, MS), None);
            assert_eq!(usual.of(unknown), None);
        }
        assert_eq!(usual.of(Some(0)), None);
    }

    #[test]
    fn a_slow_address_does_not_make_slow_usual() {
        let (usual, method) = (Usual::new(1), Some(0));
        // The first of all happens to be slow, and so is every tenth.
        for at in 0..200 {
            let took = if at % 10 == 0 { MS * 50 } else { MS };
            usual.record(method, took);
        }
        let ratio = usual.compare(method, MS * 50).unwrap();
        assert!(ratio > 25.0, "{ratio}");
    }
}
