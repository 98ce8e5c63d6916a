//! What each user has used in the present month, as far as it is known here. There is an account for each user who
//! has called in that month, and for nobody else: a stranger has none.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};
use tars_runtime::usage::{Amounts, Dimension, Item, Month, Total};

const SHARDS: usize = 16;

/// What one user has used in one month.
#[derive(Debug)]
pub(super) struct Account {
    month: Month,
    /// As Auth has counted it.
    counted: Amounts,
    /// What has left this account, and is not known to be counted.
    drained: Amounts,
    /// What has not left it.
    pending: Amounts,
    /// What work that runs may take of the solvers, in microseconds.
    pub(super) promised_us: u64,
    /// The calls that are admitted and not counted yet.
    begun: u64,
}

impl Account {
    fn of(month: Month) -> Self {
        Self {
            month,
            counted: Amounts::default(),
            drained: Amounts::default(),
            pending: Amounts::default(),
            promised_us: 0,
            begun: 0,
        }
    }

    /// What is used of a dimension.
    pub(super) fn used(&self, dimension: Dimension) -> u64 {
        let parts = [&self.counted, &self.drained, &self.pending];
        let amounts = parts.map(|amounts| amounts.of(dimension));
        let begun = match dimension {
            Dimension::Calls => self.begun,
            Dimension::TrainingSteps | Dimension::SolverSeconds => 0,
        };
        amounts.into_iter().fold(begun, u64::saturating_add)
    }

    pub(super) fn begin_call(&mut self) {
        self.begun += 1;
    }

    /// Ends a call that was begun, also in another month.
    pub(super) fn end_call(&mut self, counts: bool) {
        self.begun = self.begun.saturating_sub(1);
        self.pending.add(Dimension::Calls, counts.into());
    }

    pub(super) fn count(&mut self, dimension: Dimension, amount: u64) {
        self.pending.add(dimension, amount);
    }

    /// Auth has counted an item.
    pub(super) fn forget(&mut self, item: &Item) {
        if item.month == self.month {
            self.drained.subtract(item.dimension, item.amount);
        }
    }

    /// Auth has counted this, in all.
    pub(super) fn learn(&mut self, total: &Total) {
        if total.month == self.month {
            self.counted = total.amounts;
        }
    }

    /// Begins another month. Returns what was not drained of the last one.
    fn turn_to(&mut self, month: Month) -> Option<(Month, Amounts)> {
        if month == self.month {
            return None;
        }
        let next = Self {
            promised_us: self.promised_us,
            begun: self.begun,
            ..Self::of(month)
        };
        let last = std::mem::replace(self, next);
        (!last.pending.is_empty()).then_some((last.month, last.pending))
    }

    fn drain(&mut self) -> Option<Amounts> {
        if self.pending.is_empty() {
            return None;
        }
        let taken = std::mem::take(&mut self.pending);
        for (dimension, amount) in taken.each() {
            self.drained.add(dimension, amount);
        }
        Some(taken)
    }

    fn is_idle(&self) -> bool {
        let is_awaited = self.promised_us > 0 || self.begun > 0;
        !is_awaited && self.counted.is_empty() && self.drained.is_empty()
    }
}

/// Amounts that are taken out of the accounts, with their month and user.
pub(super) type Taken = Vec<(Month, String, Amounts)>;

#[derive(Debug, Default)]
struct Shard {
    accounts: HashMap<String, Account>,
    /// What was not drained when a month ended.
    ended: Taken,
}

/// The accounts of all users.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

impl Accounts {
    /// Runs `work` on the account of a user in a month. An account that is there is found without an allocation.
    pub(super) fn with<T>(
        &self,
        user_id: &str,
        month: Month,
        work: impl FnOnce(&mut Account) -> T,
    ) -> T {
        let at = self.hasher.hash_one(user_id) as usize % SHARDS;
        let Shard { accounts, ended } = &mut *self.shards[at].lock();
        if let Some(account) = accounts.get_mut(user_id) {
            let last = account.turn_to(month);
            ended.extend(last.map(|(month, amounts)| (month, user_id.to_owned(), amounts)));
            return work(account);
        }
        let account = accounts.entry(user_id.to_owned());
        work(account.or_insert_with(|| Account::of(month)))
    }

    /// Takes what was counted, and forgets the accounts of other months.
    pub(super) fn drain(&self, month: Month) -> Taken {
        let mut taken = Vec::new();
        for shard in &self.shards {
            let Shard { accounts, ended } = &mut *shard.lock();
            taken.append(ended);
            accounts.retain(|user_id, account| {
                let last = account.turn_to(month);
                let pending = account.drain().map(|amounts| (month, amounts));
                let both = last.into_iter().chain(pending);
                taken.extend(both.map(|(month, amounts)| (month, user_id.clone(), amounts)));
                !account.is_idle()
            });
        }
        taken
    }
}
