//! How long the calls of each method and caller take, against how long they usually do.
//!
//! Methods differ by orders of magnitude, and so do the calls of one method: a page of one row, or of a
//! thousand. A mean over all calls would follow what is asked and by whom, and one caller who asks for much
//! would make the process look slow to everybody. So callers are compared with themselves, method by method,
//! and the process is as slow as the median of them says: a caller moves that by one rank, whatever it sends and
//! however often, and only more than half of them together decide it, which is the best that any estimate can
//! do (its breakdown point; Hampel, Annals of Mathematical Statistics 42:6, 1971). Of two callers it is the
//! faster one: it may be the other that asks for more. Who is alone decides alone, for the callers' parts of the
//! limit leave room for the next in any case. What is learned of a caller who comes while the process is slow is
//! that slow is usual: as long as such callers are half of all, it is not seen how slow the process is for the
//! others.
//!
//! Callers share a fixed number of lanes, by a hash under a secret of the process, so that memory is bounded.
//! A caller in the lane of another spoils that one lane.
//!
//! What is usual falls within seconds and rises within minutes, and slower still while the
//! process is as busy as it may be: overload must not become what is usual. As it falls faster than it rises, the
//! means of a few calls each would pull it down to the fastest of them. So it is learned from a batch of calls
//! at a time, however long that takes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How many lanes there are for callers.
const LANES: usize = 32;
/// How many calls make a batch.
const BATCH: u64 = 32;
/// How fast what is usual follows calls that are faster.
const FASTER: Duration = Duration::from_secs(10);
/// How fast it follows calls that are slower.
const SLOWER: Duration = Duration::from_secs(600);
/// The same while the process is as busy as it may be.
const SLOWER_WHILE_BUSY: Duration = Duration::from_secs(7200);
/// The longest time for which a window teaches: before its calls there was silence.
const LONGEST: Duration = Duration::from_secs(1);
/// The most that one call counts, in terms of the usual duration: a single one says little.
const MOST: u64 = 8;

/// The durations of the calls of one method in one lane.
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

    /// Takes the calls of this window.
    fn take(&self) -> Option<Calls> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(Calls {
            count: self.count.swap(0, Ordering::Relaxed),
            sum: self.sum.swap(0, Ordering::Relaxed),
        })
    }

    /// What is usual, once there is such a thing.
    fn usual(&self) -> Option<f64> {
        let usual = self.usual.load(Ordering::Relaxed);
        (usual > 0).then(|| to_float(usual))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive nanoseconds"
    )]
    fn learn(&self, batch: &Batch) {
        let mean = batch.calls.mean();
        let usual = self.usual().unwrap_or(mean);
        let learned = usual + (mean - usual) * batch.weight(mean > usual);
        self.usual.store(learned.max(1.0) as u64, Ordering::Relaxed);
    }
}

/// A number of calls, and how long all of them took, in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Calls {
    count: u64,
    sum: u64,
}

impl Calls {
    fn mean(&self) -> f64 {
        to_float(self.sum) / to_float(self.count)
    }
}

/// The calls from which the next is learned of what is usual.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    calls: Calls,
    time: Duration,
    busy: bool,
}

impl Batch {
    fn add(&mut self, calls: Calls, length: Duration, is_busy: bool) {
        self.calls.count += calls.count;
        self.calls.sum = self.calls.sum.saturating_add(calls.sum);
        self.time += length.min(LONGEST);
        self.busy |= is_busy;
    }

    /// How much of what the batch says is adopted.
    fn weight(&self, is_slower: bool) -> f64 {
        let pace = match is_slower {
            false => FASTER,
            true if self.busy => SLOWER_WHILE_BUSY,
            true => SLOWER,
        };
        1.0 - (-self.time.as_secs_f64() / pace.as_secs_f64()).exp()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a duration needs no more precision"
)]
fn to_float(number: u64) -> f64 {
    number as f64
}

/// The meters of all methods and lanes: those of a lane are next to each other.
#[derive(Debug)]
pub(super) struct Meters {
    each: Box<[Meter]>,
    methods: usize,
}

/// What only the end of a window needs of them.
#[derive(Debug)]
pub(super) struct Learning(Box<[Batch]>);

/// Creates the meters of so many methods.
pub(super) fn of(methods: usize) -> (Meters, Learning) {
    let each = (0..methods * LANES).map(|_| Meter::default()).collect();
    let batches = vec![Batch::default(); methods * LANES];
    (Meters { each, methods }, Learning(batches.into()))
}

impl Meters {
    /// The meter of a method and a caller, whose key is a hash.
    ///
    /// # Panics
    ///
    /// When there are fewer methods.
    pub(super) fn of(&self, method: usize, caller: u64) -> &Meter {
        let lane = usize::try_from(caller % LANES as u64).unwrap_or(0);
        &self.each[lane * self.methods + method]
    }
}

impl Learning {
    /// Ends a window: returns how slow its calls were, `None` as long as nothing is known of what is usual,
    /// and learns from them.
    pub(super) fn close(
        &mut self,
        meters: &Meters,
        length: Duration,
        is_busy: bool,
    ) -> Option<f64> {
        let methods = meters.methods.max(1);
        let lanes = meters.each.chunks(methods).zip(self.0.chunks_mut(methods));
        let slowness = lanes.filter_map(|(meters, batches)| {
            close_lane(meters, batches, |batch, calls| {
                batch.add(calls, length, is_busy);
            })
        });
        median(slowness.collect())
    }
}

/// Ends the window of one lane: how slow its calls were on average.
fn close_lane(
    meters: &[Meter],
    batches: &mut [Batch],
    add: impl Fn(&mut Batch, Calls),
) -> Option<f64> {
    let (mut all, mut sum) = (0.0, 0.0);
    for (meter, batch) in meters.iter().zip(batches) {
        let Some(calls) = meter.take() else {
            continue;
        };
        if let Some(usual) = meter.usual() {
            all += to_float(calls.count);
            sum += to_float(calls.sum) / usual;
        }
        add(batch, calls);
        if batch.calls.count >= BATCH {
            meter.learn(&std::mem::take(batch));
        }
    }
    (all > 0.0).then(|| sum / all)
}

/// The lower one of two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Two methods, of which the first usually takes a millisecond and the second half a second, whoever calls.
    struct Fixture {
        meters: Meters,
        learning: Learning,
    }

    impl Fixture {
        fn new(callers: u64) -> Self {
            let (meters, learning) = of(2);
            let mut fixture = Self { meters, learning };
            for caller in 0..callers {
                fixture.record(0, caller, 100, 1);
                fixture.record(1, caller, 100, 500);
            }
            assert_eq!(fixture.close(false), None, "nothing is usual yet");
            fixture
        }

        /// So many calls, which take so many milliseconds each.
        fn record(&self, method: usize, caller: u64, calls: usize, took: u64) {
            for _ in 0..calls {
                self.meters.of(method, caller).record(millis(took));
            }
        }

        /// Ends a window of a second.
        fn close(&mut self, is_busy: bool) -> Option<f64> {
            self.learning.close(&self.meters, SECOND, is_busy)
        }

        /// A window in which one caller calls the first method.
        fn window(&mut self, took: u64, is_busy: bool) -> Option<f64> {
            self.record(0, 0, 100, took);
            self.close(is_busy)
        }
    }

    /// A coin, by the finaliser of SplitMix64.
    fn is_heads(n: u64) -> bool {
        let mixed = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)).is_multiple_of(2)
    }

    fn near(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < expected * 0.02)
    }

    #[test]
    fn methods_are_compared_with_themselves() {
        let mut fixture = Fixture::new(1);
        // Of which there are more or fewer makes no difference.
        for (method, took) in [(0, 1), (1, 500)] {
            fixture.record(method, 0, 100, took);
            assert_eq!(fixture.close(false), Some(1.0));
        }
        assert_eq!(fixture.close(false), None);
        fixture.record(0, 0, 100, 2);
        fixture.record(1, 0, 10, 1000);
        assert!(near(fixture.close(false), 2.0));
    }

    #[test]
    fn one_caller_makes_the_process_neither_slow_nor_fast_to_others() {
        for callers in [2, 3, 9] {
            let mut fixture = Fixture::new(callers);
            let others = |fixture: &Fixture, took| {
                for caller in 1..callers {
                    fixture.record(0, caller, 10, took);
                }
            };
            // What it asks for costs ever more, and it asks far more often than all others.
            for _ in 0..100 {
                fixture.record(0, 0, 10_000, 8);
                others(&fixture, 1);
                assert_eq!(fixture.close(false), Some(1.0), "{callers}");
            }
            // Nor does what costs less become usual for others.
            for _ in 0..100 {
                fixture.record(0, 0, 10_000, 0);
                others(&fixture, 1);
                fixture.close(false);
            }
            others(&fixture, 1);
            assert_eq!(fixture.close(false), Some(1.0), "{callers}");
            // When most are slow, so is the process.
            fixture.record(0, 0, 10_000, 24);
            others(&fixture, 3);
            assert!(near(fixture.close(false), 3.0), "{callers}");
        }
    }

    #[test]
    fn what_is_usual_falls_in_seconds_and_rises_in_minutes() {
        let mut fixture = Fixture::new(1);
        for _ in 0..20 {
            assert!(fixture.window(2, false) > Some(1.8));
        }
        for _ in 0..3000 {
            fixture.window(2, false);
        }
        assert!(near(fixture.window(2, false), 1.0));
        for _ in 0..60 {
            fixture.window(1, false);
        }
        assert!(near(fixture.window(1, false), 1.0));
    }

    #[test]
    fn overload_does_not_become_usual() {
        let mut fixture = Fixture::new(1);
        // Ten minutes.
        for _ in 0..600 {
            fixture.window(4, true);
        }
        assert!(fixture.window(4, true) > Some(3.0));
    }

    #[test]
    fn silence_unlearns_nothing() {
        let mut fixture = Fixture::new(1);
        fixture.record(0, 0, 100, 4);
        let night = Duration::from_secs(8 * 3600);
        fixture.learning.close(&fixture.meters, night, false);
        assert!(near(fixture.window(4, false), 4.0));
    }

    #[test]
    fn few_calls_of_any_duration_are_as_slow_as_usual_on_average() {
        // One call a window, of a millisecond or of nine.
        let (meters, learning) = of(1);
        let mut fixture = Fixture { meters, learning };
        let mut sum = 0.0;
        for n in 0..64_000_u64 {
            fixture.record(0, 0, 1, if is_heads(n) { 1 } else { 9 });
            let slowness = fixture.close(false);
            if n >= 32_000 {
                sum += slowness.unwrap();
            }
        }
        let mean = sum / 32_000.0;
        assert!((0.9..1.45).contains(&mean), "{mean}");
    }

    #[test]
    fn one_call_that_takes_long_says_little() {
        let mut fixture = Fixture::new(1);
        fixture.meters.of(0, 0).record(Duration::from_secs(3600));
        let slowness = fixture.window(1, false);
        assert!(slowness < Some(1.1), "{slowness:?}");
    }

    #[test]
    fn a_call_that_did_not_end_in_time_is_slow_or_says_nothing() {
        let mut fixture = Fixture::new(1);
        fixture
            .meters
            .of(0, 0)
            .record_late(Duration::from_micros(10));
        assert_eq!(fixture.close(false), None);
        fixture.meters.of(0, 0).record_late(millis(5));
        assert!(near(fixture.close(false), 5.0));
        let unknown = fixture.meters.of(0, 1);
        unknown.record_late(millis(5));
        assert!(unknown.take().is_none());
    }
}
