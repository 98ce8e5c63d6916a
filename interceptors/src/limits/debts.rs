//! What this process let pass by itself while the server was out of reach, and owes to the server's count.

use super::{Limit, log::Log};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};
use tars_runtime::clock::Monotonic;

/// Maximum number of callers. A debt of a further one is not kept: it was bounded by the replica's share.
const MAX_CALLERS: usize = 65_536;
/// Maximum number of runs of all logs.
const MAX_RUNS: usize = 524_288;

/// The calls of one caller against one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Debt {
    /// The limit, as large as it is for all replicas together.
    pub(super) limit: Limit,
    /// The key of its count here.
    key: u64,
    /// The key of its count at the server.
    pub(super) remote: String,
    /// When each call passed; of a limit that is not exact, nothing.
    pub(super) log: Log,
    /// How many calls passed.
    calls: u32,
    /// The time for one call at the rate of this process's share, and when at that rate all of them are
    /// forgotten: of a limit that is not exact, what was spent long ago is free again.
    interval: Duration,
    full: Monotonic,
}

impl Debt {
    /// How many calls of a limit that is not exact are owed still. Each process forgets at the rate of its share, so
    /// that all of them together forget no faster than the limit does.
    pub(super) fn owed(&self, now: Monotonic) -> f64 {
        let ahead = self.full.since(now).as_secs_f64();
        (ahead / self.interval.as_secs_f64().max(1e-9)).min(f64::from(self.calls))
    }
}

/// The debts of a process.
#[derive(Debug, Default)]
pub(super) struct Debts(Mutex<Owed>);

#[derive(Debug, Default)]
struct Owed {
    debts: HashMap<u64, Debt>,
    /// How many runs all logs have.
    runs: usize,
}

impl Owed {
    /// Makes room for another call: the longest logs are made coarser.
    fn thin(&mut self) {
        let share = MAX_RUNS / self.debts.len().max(1);
        let logs = self.debts.values_mut().map(|debt| &mut debt.log);
        self.runs = logs.map(|log| log.thin(share)).sum();
    }
}

impl Debts {
    /// Adds one call of a key, of which this process lets one pass each `interval`. The first has the server's key made.
    pub(super) fn add(
        &self,
        key: u64,
        limit: &Limit,
        interval: Duration,
        now: Monotonic,
        remote: impl FnOnce() -> String,
    ) {
        let mut owed = self.0.lock();
        if owed.runs >= MAX_RUNS {
            owed.thin();
        }
        let Owed { debts, runs } = &mut *owed;
        let has_room = debts.len() < MAX_CALLERS;
        let debt = match debts.entry(key) {
            Entry::Occupied(debt) => debt.into_mut(),
            Entry::Vacant(entry) if has_room => entry.insert(Debt {
                limit: *limit,
                key,
                remote: remote(),
                log: Log::default(),
                calls: 0,
                interval,
                full: now,
            }),
            Entry::Vacant(_) => return,
        };
        debt.limit = *limit;
        debt.calls = debt.calls.saturating_add(1);
        debt.interval = interval;
        debt.full = debt.full.max(now) + interval;
        if limit.is_exact() {
            *runs -= debt.log.len();
            debt.log.keep(limit.window, now);
            debt.log.record(now);
            *runs += debt.log.len();
        }
    }

    /// Takes back the newest call of a key, if it is not being settled.
    pub(super) fn give_back(&self, key: u64) {
        let mut owed = self.0.lock();
        let Owed { debts, runs } = &mut *owed;
        let Some(debt) = debts.get_mut(&key) else {
            return;
        };
        debt.calls -= 1;
        debt.full = debt.full.saturating_sub(debt.interval);
        *runs -= debt.log.len();
        debt.log.give_back();
        *runs += debt.log.len();
        if debt.calls == 0 {
            debts.remove(&key);
        }
    }

    /// Takes all of them.
    pub(super) fn take(&self) -> Vec<Debt> {
        let owed = std::mem::take(&mut *self.0.lock());
        owed.debts.into_values().collect()
    }

    /// Puts back what could not be settled, as far as there is room.
    pub(super) fn put_back(&self, unsettled: Vec<Debt>) {
        let mut owed = self.0.lock();
        let Owed { debts, runs } = &mut *owed;
        for mut old in unsettled {
            if let Some(newer) = debts.remove(&old.key) {
                *runs -= newer.log.len();
                old.limit = newer.limit;
                old.calls = old.calls.saturating_add(newer.calls);
                // What it were if all had been added here, one after the other.
                old.full = newer.full.max(old.full + newer.interval * newer.calls);
                old.interval = newer.interval;
                old.log.append(newer.log);
            }
            if debts.len() < MAX_CALLERS {
                *runs += old.log.len();
                debts.insert(old.key, old);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitName;
    use std::time::Duration;

    const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const A: u64 = 1;
    const B: u64 = 2;

    fn remote() -> String {
        "limit".to_owned()
    }

    #[test]
    fn calls_that_count_no_longer_are_not_owed() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::Auth, 10, MINUTE));
        for seconds in [0, 1, 61] {
            let at = T + Duration::from_secs(seconds);
            debts.add(A, &limit, SECOND, at, remote);
        }
        let owed = debts.take();
        let times: Vec<_> = owed[0].log.times().collect();
        assert_eq!(times, [T + Duration::from_secs(61)]);
        assert!(debts.take().is_empty());
    }

    #[test]
    fn what_is_put_back_is_owed_with_what_came_meanwhile() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::User, 100, MINUTE));
        debts.add(A, &limit, SECOND, T, remote);
        let unsettled = debts.take();
        debts.add(A, &limit, SECOND, T, remote);
        debts.put_back(unsettled);
        let owed = debts.take();
        assert_eq!((owed[0].calls, owed[0].owed(T)), (2, 2.0));
    }

    #[test]
    fn a_caller_who_kept_to_the_rate_owes_one_call_after_a_long_outage() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::User, 60, MINUTE));
        for second in 0..3600 {
            let at = T + SECOND * second;
            debts.add(A, &limit, SECOND, at, remote);
        }
        let last = T + SECOND * 3599;
        for _ in 0..15 {
            debts.add(B, &limit, SECOND, last, remote);
        }
        let owed: HashMap<_, _> = debts
            .take()
            .into_iter()
            .map(|debt| (debt.key, debt))
            .collect();
        assert_eq!(owed[&A].owed(last), 1.0);
        assert_eq!(owed[&B].owed(last), 15.0);
        assert_eq!(owed[&B].owed(last + SECOND * 10), 5.0);
        assert_eq!(owed[&B].owed(last + MINUTE), 0.0);
    }

    #[test]
    fn a_call_that_is_given_back_is_not_owed() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::User, 60, MINUTE));
        for _ in 0..3 {
            debts.add(A, &limit, SECOND, T, remote);
        }
        debts.add(B, &limit, SECOND, T, remote);
        debts.give_back(A);
        debts.give_back(B);
        debts.give_back(3);
        let owed = debts.take();
        assert_eq!(owed.len(), 1);
        assert_eq!(owed[0].owed(T), 2.0);
    }
    #[test]
    fn what_is_owed_takes_no_more_memory_than_there_is_for_it() {
        let (debts, limit) = (
            Debts::default(),
            Limit::new(LimitName::Auth, 10_000, MINUTE),
        );
        let step = Duration::from_micros(10);
        let mut now = T;
        for n in 0..1_200_000u32 {
            now = now + step;
            debts.add(u64::from(n % 600), &limit, SECOND, now, remote);
        }
        let runs = |owed: &Owed| {
            owed.debts
                .values()
                .map(|debt| debt.log.len())
                .sum::<usize>()
        };
        let counted = {
            let owed = debts.0.lock();
            assert_eq!(owed.runs, runs(&owed));
            owed.runs
        };
        assert!(counted <= MAX_RUNS, "{counted}");
        let unsettled = debts.take();
        assert!(
            unsettled
                .iter()
                .all(|debt| debt.log.times().count() == 2000)
        );
        debts.put_back(unsettled);
        let owed = debts.0.lock();
        assert_eq!((owed.runs, owed.debts.len()), (runs(&owed), 600));
    }

    #[test]
    fn the_newest_size_of_a_limit_is_the_one_that_is_owed_to() {
        let limit = |calls| Limit::new(LimitName::Auth, calls, MINUTE);
        let debts = Debts::default();
        debts.add(A, &limit(10), SECOND, T, remote);
        debts.add(A, &limit(20), SECOND, T, remote);
        let unsettled = debts.take();
        assert_eq!(unsettled[0].limit, limit(20));
        debts.add(A, &limit(30), SECOND, T, remote);
        debts.put_back(unsettled);
        assert_eq!(debts.take()[0].limit, limit(30));
    }

    #[test]
    fn no_more_callers_owe_than_there_may_be_also_when_nothing_is_settled() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::Auth, 10, MINUTE));
        let most = MAX_CALLERS as u64;
        let owe = |keys: std::ops::Range<u64>| {
            for key in keys {
                debts.add(key, &limit, SECOND, T, remote);
            }
        };
        owe(0..most + 10);
        let unsettled = debts.take();
        assert_eq!(unsettled.len(), MAX_CALLERS);
        owe(2 * most..3 * most);
        debts.put_back(unsettled);
        let owed = debts.0.lock();
        assert_eq!((owed.debts.len(), owed.runs), (MAX_CALLERS, MAX_CALLERS));
    }
}
