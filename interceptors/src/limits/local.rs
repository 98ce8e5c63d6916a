//! Limits that are counted in this process: GCRA for volume, and the time of every call where the count
//! is exact. Time is passed in, and is never the wall clock: one that is set back would refuse everybody
//! until it has caught up.

use super::{
    Charge, Charges, Decision, Each, Limit, LimitName, Outcome,
    bounded::{Bounded, Keys},
    log::Log,
    logs::Logs,
};
use std::{hash::Hash, time::Duration};
use tars_runtime::{
    clock::Monotonic,
    rate::{Cell, Rate},
};

/// GCRA (ITU-T I.371) at one rate, for what is not one of the limits: the flood guard.
#[derive(Debug)]
pub(crate) struct Gcra {
    rate: Rate,
    keys: Keys,
    cells: Bounded<Cell>,
}

impl Gcra {
    /// Creates a limiter of `limit` calls per `period` and key, of which at most a quarter come at once.
    pub(crate) fn new(limit: u32, period: Duration) -> Self {
        Self {
            rate: Rate::every(period / limit.max(1), (limit / 4).max(1)),
            keys: Keys::default(),
            cells: Bounded::new(),
        }
    }

    /// Takes one call of `key`.
    ///
    /// # Errors
    ///
    /// The time until the next one, when there is none left.
    pub(crate) fn take(&self, key: impl Hash, now: Monotonic) -> Result<(), Duration> {
        let key = self.keys.key(key);
        self.cells.with(key, now, |cell| cell.take(&self.rate, now))
    }

    /// Gives back a call of `key` that was taken.
    pub(crate) fn give_back(&self, key: impl Hash) {
        let key = self.keys.key(key);
        self.cells.peek(key, |cell| cell.give_back(&self.rate));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }
}

/// What was charged in this process.
#[derive(Debug)]
pub(super) struct Local {
    keys: Keys,
    /// By limit: what is tried under one takes no room of another.
    logs: [Logs; LimitName::ALL.len()],
    cells: Bounded<Cell>,
}

impl Local {
    pub(super) fn new() -> Self {
        Self {
            keys: Keys::default(),
            logs: LimitName::ALL.map(|_| Logs::new()),
            cells: Bounded::new(),
        }
    }

    /// The key of a budget. It has no part in the size of the limit: another size begins with what was
    /// spent before.
    pub(super) fn key(&self, charge: &Charge<'_>) -> u64 {
        self.keys.key((charge.limit.name, charge.subject))
    }

    /// The key of what is known of a limit of this very size.
    pub(super) fn sized_key(&self, charge: &Charge<'_>) -> u64 {
        self.keys.key((charge.limit, charge.subject))
    }

    /// Charges all limits of a call, or none.
    pub(super) fn charge(&self, charges: &Charges<'_>, now: Monotonic) -> Outcome {
        self.charge_keys(&charges.map(|charge| (charge.limit, self.key(charge))), now)
    }

    pub(super) fn charge_keys(&self, each: &Each<(Limit, u64)>, now: Monotonic) -> Outcome {
        let take = |(limit, key): (Limit, u64)| (limit, self.take(limit, key, now));
        let give_back = |(limit, key): (Limit, u64)| self.give_back(limit, key, now);
        // The site first: the addresses of one that may do nothing leave no trace.
        let site = each.site.map(take);
        if let Some((limit, refused)) = site.filter(|(_, decision)| !decision.passed()) {
            return Outcome::of(limit, refused);
        }
        let give_back_site = || each.site.into_iter().for_each(give_back);
        let (limit, class) = take(each.class);
        let mut outcome = Outcome::of(limit, class).with_site(site);
        if !outcome.passed() {
            give_back_site();
            return outcome;
        }
        outcome.budget = each.budget.map(take);
        if !outcome.passed() {
            give_back(each.class);
            give_back_site();
            outcome.give_back_class();
        }
        outcome
    }

    /// Takes one call, if there is one left.
    pub(super) fn take(&self, limit: Limit, key: u64, now: Monotonic) -> Decision {
        if limit.is_exact() {
            let logs = self.logs(limit.name);
            logs.with(key, limit.window, now, |log| log.take(limit.calls, now))
        } else {
            let rate = limit.rate();
            self.cells
                .with(key, now, |cell| take_cell(cell, &rate, now))
        }
    }

    /// Gives back the newest call.
    pub(super) fn give_back(&self, limit: Limit, key: u64, now: Monotonic) {
        if limit.is_exact() {
            let logs = self.logs(limit.name);
            logs.with(key, limit.window, now, Log::give_back);
        } else {
            let rate = limit.rate();
            self.cells.with(key, now, |cell| cell.give_back(&rate));
        }
    }

    /// Records a call that was decided elsewhere.
    pub(super) fn record(&self, limit: &Limit, key: u64, now: Monotonic) {
        let logs = self.logs(limit.name);
        logs.with(key, limit.window, now, |log| log.record(now));
    }

    fn logs(&self, name: LimitName) -> &Logs {
        &self.logs[name as usize]
    }
}

fn take_cell(cell: &mut Cell, rate: &Rate, now: Monotonic) -> Decision {
    let taken = cell.take(rate, now);
    Decision {
        remaining: cell.left(rate, now),
        reset: cell.full_in(now),
        retry: taken.err().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
