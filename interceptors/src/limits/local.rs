//! Two limiters that decide in process over bounded maps: GCRA for volume, and an exact sliding log
//! for the small numbers that guard logins. Time is passed in, and is never the wall clock: one that
//! is set back would refuse everybody until it has caught up.

use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    time::Duration,
};
use tars_runtime::{
    clock::Monotonic,
    rate::{Cell, Rate},
};

/// Maximum number of keys. Further ones evict the least recently used of their shard, so that
/// strangers cannot fill the memory.
const MAX_KEYS: usize = 65_536;
const SHARDS: usize = 16;

/// The outcome of a limiter, in calls that may come at once. `remaining` never exceeds `limit`, and
/// equals it once `reset` has passed without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// How many calls may come at once after a period without any.
    pub limit: u32,
    /// How many more calls may come at once now.
    pub remaining: u32,
    /// Time until `remaining` equals `limit`.
    pub reset: Duration,
    /// Time until another call may pass; zero when this one passed.
    pub retry: Duration,
}

impl Decision {
    /// Returns whether the call may pass.
    pub(crate) fn passed(&self) -> bool {
        self.retry.is_zero()
    }
}

/// A sharded map of bounded size. Keys are stored as 64-bit hashes under a secret of the process:
/// nobody outside can make two keys collide, and a lookup allocates nothing.
#[derive(Debug)]
struct Bounded<V> {
    shards: Vec<Mutex<HashMap<u64, (Monotonic, V)>>>,
    hasher: RandomState,
}

impl<V: Default> Bounded<V> {
    fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    fn with<T>(&self, key: impl Hash, now: Monotonic, work: impl FnOnce(&mut V) -> T) -> T {
        let key = self.hasher.hash_one(key);
        let shard = usize::try_from(key % SHARDS as u64).unwrap_or(0);
        let mut map = self.shards[shard].lock();
        if let Some((used, value)) = map.get_mut(&key) {
            *used = now;
            return work(value);
        }
        if map.len() >= MAX_KEYS / SHARDS {
            evict(&mut map);
        }
        let (_, value) = map.entry(key).or_insert((now, V::default()));
        work(value)
    }
}

/// Drops the half that has not been used for longest.
fn evict<V>(map: &mut HashMap<u64, (Monotonic, V)>) {
    let mut ages: Vec<Monotonic> = map.values().map(|(used, _)| *used).collect();
    let middle = ages.len() / 2;
    let (_, median, _) = ages.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, (used, _)| *used > median);
}

/// The generic cell rate algorithm (ITU-T I.371): `limit` calls per period, of which at most a
/// quarter may come at once.
#[derive(Debug)]
pub(crate) struct Gcra {
    rate: Rate,
    cells: Bounded<Cell>,
}

impl Gcra {
    /// Creates a limiter of `limit` calls per `period` and key.
    pub(crate) fn new(limit: u32, period: Duration) -> Self {
        Self {
            rate: Rate::every(period / limit.max(1), (limit / 4).max(1)),
            cells: Bounded::new(),
        }
    }

    /// Takes one call of `key`, if there is one left.
    pub(crate) fn take(&self, key: impl Hash, now: Monotonic) -> Decision {
        self.cells.with(key, now, |cell| {
            let taken = cell.take(&self.rate, now);
            Decision {
                limit: self.rate.burst(),
                remaining: cell.left(&self.rate, now),
                reset: cell.full_in(now),
                retry: taken.err().unwrap_or_default(),
            }
        })
    }
}

/// A sliding log: exactly `limit` calls in any period. Refused calls do not count.
#[derive(Debug)]
pub(crate) struct SlidingLog {
    limit: u32,
    period: Duration,
    logs: Bounded<VecDeque<Monotonic>>,
}

impl SlidingLog {
    /// Creates a limiter of `limit` calls in any `period`, per key.
    pub(crate) fn new(limit: u32, period: Duration) -> Self {
        Self {
            limit,
            period,
            logs: Bounded::new(),
        }
    }

    /// Takes one call of `key`, if there is one left.
    pub(crate) fn take(&self, key: impl Hash, now: Monotonic) -> Decision {
        self.logs.with(key, now, |log| {
            while log.front().is_some_and(|at| *at + self.period <= now) {
                log.pop_front();
            }
            let passed = log.len() < self.limit as usize;
            if passed {
                log.push_back(now);
            }
            let ends =
                |at: Option<&Monotonic>| (at.copied().unwrap_or(now) + self.period).since(now);
            let retry = ends(log.front());
            Decision {
                limit: self.limit,
                remaining: self.limit - u32::try_from(log.len()).unwrap_or(self.limit),
                reset: ends(log.back()),
                retry: if passed { Duration::ZERO } else { retry },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));

    #[test]
    fn a_sliding_log_admits_exactly_the_limit_in_any_window() {
        let log = SlidingLog::new(10, Duration::from_secs(60));
        let mut admitted = Vec::new();
        for tenth in 0..3000u32 {
            let now = T + Duration::from_millis(100) * tenth;
            if log.take("a", now).passed() {
                admitted.push(now);
            }
        }
        for window in admitted.windows(11) {
            assert!(window[10].since(window[0]) >= Duration::from_secs(60));
        }
        assert_eq!(admitted.len(), 50);
        assert!(log.take("b", T).passed(), "another key has its own limit");
    }

    #[test]
    fn a_refusal_has_a_retry_time_and_does_not_extend_it() {
        let log = SlidingLog::new(1, Duration::from_secs(60));
        assert!(log.take("a", T).passed());
        for second in 1..60 {
            let refused = log.take("a", T + Duration::from_secs(second));
            assert_eq!(refused.retry, Duration::from_secs(60 - second));
        }
        assert!(log.take("a", T + Duration::from_secs(60)).passed());
    }

    #[test]
    fn gcra_admits_a_quarter_at_once_and_then_keeps_the_rate() {
        let gcra = Gcra::new(100, Duration::from_secs(60));
        let burst = (0..100).filter(|_| gcra.take("a", T).passed()).count();
        assert_eq!(burst, 25);
        let refused = gcra.take("a", T);
        assert!(!refused.passed() && gcra.take("a", T + refused.retry).passed());
        let minute = (0..6000u32).filter(|i| {
            gcra.take("a", T + Duration::from_millis(u64::from(*i) * 10))
                .passed()
        });
        assert!(minute.count() <= 100);
    }

    /// Checks that a limiter does what its decisions say: exactly as many calls as remain pass at once,
    /// and after the reset the whole limit does.
    fn check_decisions(limiter: impl Fn(&str, Monotonic) -> Decision) {
        let at_once = |now| (0..5000).filter(|_| limiter("a", now).passed()).count();
        let first = limiter("a", T);
        assert_eq!(first.remaining, first.limit - 1);
        assert_eq!(at_once(T), first.remaining as usize);
        let refused = limiter("a", T);
        assert_eq!((refused.limit, refused.remaining), (first.limit, 0));
        let later = T + refused.reset;
        assert_eq!(at_once(later), first.limit as usize);
        let whole = limiter("a", later).reset;
        let early = later + whole.saturating_sub(Duration::from_millis(1));
        assert!(
            at_once(early) < first.limit as usize,
            "not before the reset"
        );
    }

    #[test]
    fn limit_remaining_and_reset_are_in_one_unit() {
        for (limit, period) in [(600, 60), (100, 60), (7, 60), (1, 60), (4000, 1)] {
            let period = Duration::from_secs(period);
            let gcra = Gcra::new(limit, period);
            check_decisions(|key, now| gcra.take(key, now));
            let log = SlidingLog::new(limit, period);
            check_decisions(|key, now| log.take(key, now));
        }
        let gcra = Gcra::new(600, Duration::from_secs(60));
        assert_eq!(
            gcra.take("a", T).limit,
            150,
            "a quarter of a minute's at once"
        );
    }

    #[test]
    fn a_machine_that_has_just_booted_limits_like_any_other() {
        let start = Monotonic::default();
        let gcra = Gcra::new(100, Duration::from_secs(60));
        assert_eq!(
            (0..100).filter(|_| gcra.take("a", start).passed()).count(),
            25
        );
        let log = SlidingLog::new(10, Duration::from_secs(60));
        assert_eq!(
            (0..100).filter(|_| log.take("a", start).passed()).count(),
            10
        );
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let gcra = Gcra::new(10, Duration::from_secs(1));
        for n in 0..200_000u32 {
            gcra.take(n, T + Duration::from_micros(u64::from(n)));
        }
        let kept: usize = gcra.cells.shards.iter().map(|s| s.lock().len()).sum();
        assert!(kept <= MAX_KEYS, "{kept}");
    }
}
