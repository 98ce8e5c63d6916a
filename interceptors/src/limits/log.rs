//! When the calls of one caller passed.

use super::Decision;
use std::{collections::VecDeque, iter::repeat_n, time::Duration};
use tars_runtime::clock::Monotonic;

/// The most runs that one log has.
pub(super) const MOST_RUNS: usize = 1024;

/// Calls that count from the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    at: Monotonic,
    calls: u32,
}

/// The calls that passed within a window, oldest first; refused ones do not count.
///
/// A log that becomes long is made coarser: calls that were close to each other count from the last of them. They
/// are forgotten later than each by itself would be, never earlier, so that what is saved in memory is paid by
/// refusing for a little longer and never by admitting more than the limit in any window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Log {
    runs: VecDeque<Run>,
    calls: u32,
    window: Duration,
}

impl Log {
    /// Forgets what does not count within `window` any more, and from now on what is older than that.
    pub(super) fn keep(&mut self, window: Duration, now: Monotonic) {
        self.window = window;
        self.expire(now);
    }

    /// The same for one of several who share the log, of whom each needs what is as old as its own window.
    pub(super) fn keep_for_all(&mut self, window: Duration, now: Monotonic) {
        self.expire(now);
        self.window = match self.is_empty() {
            true => window,
            false => self.window.max(window),
        };
    }

    pub(super) fn expire(&mut self, now: Monotonic) {
        while let Some(first) = self.runs.front()
            && first.at + self.window <= now
        {
            self.calls = self.calls.saturating_sub(first.calls);
            self.runs.pop_front();
        }
    }

    /// Takes one call, if fewer than `most` have passed.
    pub(super) fn take(&mut self, most: u32, now: Monotonic) -> Decision {
        let passed = self.calls < most;
        // More than the limit remain after it was lowered: as many must expire.
        let retry = match passed {
            true => Duration::ZERO,
            false => self.forgets_in(self.calls.saturating_sub(most), now),
        };
        if passed {
            self.record(now);
        }
        Decision {
            remaining: most.saturating_sub(self.calls),
            reset: self.ends().since(now),
            retry,
        }
    }

    /// Adds a call that was decided elsewhere.
    pub(super) fn record(&mut self, now: Monotonic) {
        self.push(Run { at: now, calls: 1 });
    }

    /// Adds what another log has, of which nothing is older.
    pub(super) fn append(&mut self, newer: Self) {
        for run in newer.runs {
            self.push(run);
        }
    }

    fn push(&mut self, mut run: Run) {
        self.calls = self.calls.saturating_add(run.calls);
        if let Some(last) = self.runs.back_mut() {
            // Two calls that arrived at the same time may come the other way round.
            run.at = run.at.max(last.at);
            if run.at == last.at {
                last.calls = last.calls.saturating_add(run.calls);
                return;
            }
        }
        if self.runs.len() >= MOST_RUNS {
            self.coarsen(MOST_RUNS / 2 - 1);
        }
        self.runs.push_back(run);
    }

    /// Takes back the newest call.
    pub(super) fn give_back(&mut self) {
        let Some(last) = self.runs.back_mut() else {
            return;
        };
        self.calls = self.calls.saturating_sub(1);
        last.calls = last.calls.saturating_sub(1);
        if last.calls == 0 {
            self.runs.pop_back();
        }
    }

    /// Makes it coarser if it has more than half of its share of the room for several; returns its runs.
    pub(super) fn thin(&mut self, share: usize) -> usize {
        let most = (share / 2).max(2);
        if self.len() > most {
            self.coarsen(most - 1);
        }
        self.len()
    }

    /// Divides the window into so many slots, and lets the calls of each count from the last of them. One more slot
    /// than that can have calls, as a window begins anywhere in one.
    fn coarsen(&mut self, slots: usize) {
        let slot = (self.window.as_nanos() / slots.max(1) as u128).max(1);
        let slot_of = |at: Monotonic| at.since(Monotonic::default()).as_nanos() / slot;
        let mut kept: VecDeque<Run> = VecDeque::with_capacity(slots + 1);
        for run in self.runs.drain(..) {
            match kept.back_mut() {
                Some(last) if slot_of(last.at) == slot_of(run.at) => {
                    last.at = run.at;
                    last.calls = last.calls.saturating_add(run.calls);
                }
                _ => kept.push_back(run),
            }
        }
        self.runs = kept;
    }

    /// How many runs it has, which is what it takes of memory.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// When all of it is forgotten.
    pub(super) fn ends(&self) -> Monotonic {
        let last = self.runs.back();
        last.map_or_else(Monotonic::default, |last| last.at + self.window)
    }

    /// The moments that its calls count from, oldest first.
    pub(super) fn times(&self) -> impl Iterator<Item = Monotonic> {
        let all = self.runs.iter();
        all.flat_map(|run| repeat_n(run.at, run.calls as usize))
    }

    /// In which time one call more than `calls` is forgotten.
    fn forgets_in(&self, mut calls: u32, now: Monotonic) -> Duration {
        for run in &self.runs {
            if calls < run.calls {
                return (run.at + self.window).since(now);
            }
            calls -= run.calls;
        }
        // A limit of no calls at all.
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
    const MINUTE: Duration = Duration::from_secs(60);

    /// What passes of a call each `step`, for `lasts`.
    fn admitted(log: &mut Log, most: u32, step: Duration, lasts: Duration) -> Vec<Monotonic> {
        let tries = u32::try_from(lasts.as_nanos() / step.as_nanos()).unwrap();
        let times = (0..tries).map(|n| T + step * n);
        times
            .filter(|now| {
                log.keep(MINUTE, *now);
                assert!(log.len() <= MOST_RUNS);
                log.take(most, *now).passed()
            })
            .collect()
    }

    #[test]
    fn a_long_log_has_few_runs_and_admits_no_more_than_its_limit_in_any_window() {
        for most in [1000, 1025, 5000, 20_000] {
            let mut log = Log::default();
            let step = MINUTE / (2 * most);
            let all = admitted(&mut log, most, step, 3 * MINUTE);
            for within in all.windows(most as usize + 1) {
                let lasts = within[most as usize].since(within[0]);
                assert!(lasts >= MINUTE, "{most}: {lasts:?}");
            }
            // What is forgotten late is a few slots of the window.
            let least = most as usize * 3 * 95 / 100;
            assert!(
                all.len() >= least && all.len() <= 3 * most as usize,
                "{most}: {}",
                all.len()
            );
            let later = T + 5 * MINUTE;
            log.keep(MINUTE, later);
            assert_eq!(log.take(most, later).remaining, most - 1);
        }
    }

    #[test]
    fn a_log_that_is_made_coarser_forgets_later_and_never_earlier() {
        let mut log = Log::default();
        let times: Vec<_> = (0..100).map(|n| T + MINUTE * n / 100).collect();
        log.keep(MINUTE, T);
        for at in &times {
            log.record(*at);
        }
        for share in [100, 40, 8, 4, 1] {
            let runs = log.thin(share);
            assert!(runs <= (share / 2).max(2), "{share}: {runs}");
            let after: Vec<_> = log.times().collect();
            assert_eq!(after.len(), 100);
            assert!(after.iter().zip(&times).all(|(after, at)| after >= at));
        }
        log.keep(MINUTE, times[99] + MINUTE);
        assert!(log.is_empty());
    }

    #[test]
    fn a_refusal_tells_when_a_call_passes_also_of_a_coarse_log() {
        let mut log = Log::default();
        for n in 0..10 {
            let at = T + MINUTE * n / 10;
            log.keep(MINUTE, at);
            assert!(log.take(10, at).passed());
        }
        log.thin(4);
        let now = T + MINUTE * 95 / 100;
        log.keep(MINUTE, now);
        let refused = log.take(10, now);
        assert_eq!(refused.remaining, 0);
        let early = now + refused.retry.saturating_sub(Duration::from_nanos(1));
        log.keep(MINUTE, early);
        assert!(!log.take(10, early).passed());
        log.keep(MINUTE, now + refused.retry);
        assert!(log.take(10, now + refused.retry).passed());
    }

    #[test]
    fn whoever_shares_a_log_finds_what_is_as_old_as_their_window() {
        let mut log = Log::default();
        log.keep_for_all(60 * MINUTE, T);
        log.record(T);
        log.keep_for_all(MINUTE, T + 5 * MINUTE);
        assert_eq!(log.times().count(), 1, "it counts in the hour");
        log.keep_for_all(MINUTE, T + 60 * MINUTE);
        assert!(log.is_empty());
        log.record(T + 60 * MINUTE);
        log.expire(T + 61 * MINUTE);
        assert!(log.is_empty(), "nobody is there who counts by the hour");
    }

    #[test]
    fn calls_that_come_in_the_wrong_order_count_from_the_later_one() {
        let mut log = Log::default();
        log.keep(MINUTE, T);
        log.record(T + Duration::from_secs(1));
        log.record(T);
        assert_eq!(
            log.times().collect::<Vec<_>>(),
            [T + Duration::from_secs(1); 2]
        );
        log.give_back();
        assert_eq!(log.times().count(), 1);
        log.give_back();
        log.give_back();
        assert!(log.is_empty());
    }
}
