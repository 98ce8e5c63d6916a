//! What this process let pass by itself while the server was out of reach, and owes to the server's count.

use super::Limit;
use parking_lot::Mutex;
use std::collections::HashMap;
use tars_runtime::clock::Monotonic;

/// Maximum number of callers. A debt of a further one is not kept: it was bounded by the replica's share.
const MAX_CALLERS: usize = 65_536;

/// The calls of one caller against one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Debt {
    /// The limit, as large as it is for all replicas together.
    pub(super) limit: Limit,
    /// The key of its count.
    pub(super) key: String,
    /// When each call passed, oldest first; of a limit that is not exact, the last alone.
    pub(super) times: Vec<Monotonic>,
    /// How many calls passed.
    pub(super) calls: u32,
}

/// The debts of a process.
#[derive(Debug, Default)]
pub(super) struct Debts(Mutex<HashMap<String, Debt>>);

impl Debts {
    /// Adds one call.
    pub(super) fn add(&self, limit: &Limit, key: String, now: Monotonic) {
        let mut debts = self.0.lock();
        if debts.len() >= MAX_CALLERS && !debts.contains_key(&key) {
            return;
        }
        let debt = debts.entry(key.clone()).or_insert_with(|| Debt {
            limit: *limit,
            key,
            times: Vec::new(),
            calls: 0,
        });
        debt.calls = debt.calls.saturating_add(1);
        if !limit.is_exact() {
            debt.times.clear();
        }
        let expired = |at: &Monotonic| *at + limit.window > now;
        let first = debt.times.iter().position(expired);
        debt.times.drain(..first.unwrap_or(debt.times.len()));
        debt.times.push(now);
    }

    /// Takes all of them.
    pub(super) fn take(&self) -> Vec<Debt> {
        let debts = std::mem::take(&mut *self.0.lock());
        debts.into_values().collect()
    }

    /// Puts back what could not be settled.
    pub(super) fn put_back(&self, unsettled: Vec<Debt>) {
        let mut debts = self.0.lock();
        for mut old in unsettled {
            if let Some(newer) = debts.remove(&old.key) {
                old.calls = old.calls.saturating_add(newer.calls);
                old.times.extend(newer.times);
            }
            debts.insert(old.key.clone(), old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitName;
    use std::time::Duration;

    const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn calls_that_count_no_longer_are_not_owed() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::Auth, 10, MINUTE));
        for seconds in [0, 1, 61] {
            debts.add(&limit, "a".to_owned(), T + Duration::from_secs(seconds));
        }
        let owed = debts.take();
        assert_eq!(owed[0].times, [T + Duration::from_secs(61)]);
        assert!(debts.take().is_empty());
    }

    #[test]
    fn what_is_put_back_is_owed_with_what_came_meanwhile() {
        let (debts, limit) = (Debts::default(), Limit::new(LimitName::User, 100, MINUTE));
        debts.add(&limit, "a".to_owned(), T);
        let unsettled = debts.take();
        debts.add(&limit, "a".to_owned(), T + MINUTE);
        debts.put_back(unsettled);
        assert_eq!(debts.take()[0].calls, 2);
    }
}
