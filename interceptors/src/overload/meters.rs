//! How long the calls of each method take, against how long they usually do.
//!
//! Methods differ by orders of magnitude, so that a mean over all of them would follow what is called and not
//! how fast it is. What is usual falls within seconds and rises within minutes, and slower still while the
//! process is as busy as it may be: overload must not become what is usual.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How fast what is usual follows calls that are faster.
const FASTER: Duration = Duration::from_secs(10);
/// How fast it follows calls that are slower.
const SLOWER: Duration = Duration::from_secs(600);
/// The same while the process is as busy as it may be.
const SLOWER_WHILE_BUSY: Duration = Duration::from_secs(7200);
/// The most that one call counts, in terms of the usual duration: a single one says little.
const MOST: u64 = 8;

/// The durations of one method's calls.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The sum of this window, in nanoseconds.
    sum: AtomicU64,
    count: AtomicU64,
    /// The usual duration, in nanoseconds; zero as long as there is none.
    usual: AtomicU64,
}

impl Meter {
    /// Records a call that was answered.
    pub(super) fn record(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let took = match self.usual.load(Ordering::Relaxed) {
            0 => took,
            usual => took.min(usual.saturating_mul(MOST)),
        };
        self.sum.fetch_add(took, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a call that did not end in time: it counts only as slow.
    pub(super) fn record_late(&self, took: Duration) {
        let usual = self.usual.load(Ordering::Relaxed);
        if usual > 0 && took.as_nanos() > u128::from(usual) {
            self.record(took);
        }
    }

    /// Ends the window: returns the number of its calls and how slow they were, and learns from them.
    fn close(&self, length: Duration, is_busy: bool) -> Option<(f64, f64)> {
        let count = self.count.swap(0, Ordering::Relaxed);
        let sum = self.sum.swap(0, Ordering::Relaxed);
        if count == 0 {
            return None;
        }
        let (count, mean) = (to_float(count), to_float(sum) / to_float(count));
        let usual = match self.usual.load(Ordering::Relaxed) {
            0 => mean,
            usual => to_float(usual),
        };
        self.learn(usual, mean, length, is_busy);
        Some((count, mean / usual))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive nanoseconds"
    )]
    fn learn(&self, usual: f64, mean: f64, length: Duration, is_busy: bool) {
        let pace = match mean > usual {
            false => FASTER,
            true if is_busy => SLOWER_WHILE_BUSY,
            true => SLOWER,
        };
        let part = 1.0 - (-length.as_secs_f64() / pace.as_secs_f64()).exp();
        let learned = usual + (mean - usual) * part;
        self.usual.store(learned.max(1.0) as u64, Ordering::Relaxed);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a duration needs no more precision"
)]
fn to_float(number: u64) -> f64 {
    number as f64
}

/// Ends a window of all methods: returns how slow the calls were on average, `None` without any.
pub(super) fn close(meters: &[Meter], length: Duration, is_busy: bool) -> Option<f64> {
    let each = meters
        .iter()
        .filter_map(|meter| meter.close(length, is_busy));
    let (calls, slowness) = each.fold((0.0, 0.0), |(calls, sum), (count, slowness)| {
        (calls + count, sum + count * slowness)
    });
    (calls > 0.0).then(|| slowness / calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A window of one second with calls that take so many milliseconds each.
    fn window(meters: &[Meter], took: &[u64], is_busy: bool) -> Option<f64> {
        for (meter, took) in meters.iter().zip(took) {
            for _ in 0..100 {
                meter.record(millis(*took));
            }
        }
        close(meters, SECOND, is_busy)
    }

    fn meters() -> [Meter; 2] {
        let meters = [Meter::default(), Meter::default()];
        assert_eq!(window(&meters, &[1, 500], false), Some(1.0));
        meters
    }

    fn near(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < expected * 0.02)
    }

    #[test]
    fn methods_are_compared_with_themselves() {
        let meters = meters();
        // Of which there are more or fewer makes no difference.
        assert_eq!(window(&meters, &[1], false), Some(1.0));
        assert_eq!(window(&meters[1..], &[500], false), Some(1.0));
        assert_eq!(close(&meters, SECOND, false), None);
        assert!(near(window(&meters, &[2, 1000], false), 2.0));
    }

    #[test]
    fn what_is_usual_falls_in_seconds_and_rises_in_minutes() {
        let [meter, _] = meters();
        let meter = std::slice::from_ref(&meter);
        for _ in 0..20 {
            assert!(window(meter, &[2], false) > Some(1.8));
        }
        for _ in 0..3000 {
            window(meter, &[2], false);
        }
        assert!(near(window(meter, &[2], false), 1.0));
        for _ in 0..40 {
            window(meter, &[1], false);
        }
        assert!(near(window(meter, &[1], false), 1.0));
    }

    #[test]
    fn overload_does_not_become_usual() {
        let [meter, _] = meters();
        let meter = std::slice::from_ref(&meter);
        // Ten minutes.
        for _ in 0..600 {
            window(meter, &[4], true);
        }
        assert!(window(meter, &[4], true) > Some(3.0));
    }

    #[test]
    fn one_call_that_takes_long_says_little() {
        let [meter, _] = meters();
        meter.record(Duration::from_secs(3600));
        let slowness = window(std::slice::from_ref(&meter), &[1], false);
        assert!(slowness < Some(1.1), "{slowness:?}");
    }

    #[test]
    fn a_call_that_did_not_end_in_time_is_slow_or_says_nothing() {
        let [meter, _] = meters();
        let one = std::slice::from_ref(&meter);
        meter.record_late(Duration::from_micros(10));
        assert_eq!(close(one, SECOND, false), None);
        meter.record_late(millis(5));
        assert!(near(close(one, SECOND, false), 5.0));
        let unknown = Meter::default();
        unknown.record_late(millis(5));
        assert_eq!(close(&[unknown], SECOND, false), None);
    }
}
