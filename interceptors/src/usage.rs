//! What callers use: counted where they enter the mesh, and refused where a quota does not allow it.
//!
//! A call is counted once it is admitted, at the first service that a caller reaches; hops between workloads are
//! not, nor is what was sent again. It is counted in memory, and [drained](Usage::drain) into the service's outbox every second, so that a
//! process that is killed loses at most what it has counted since. Nothing on the way of a call waits: whether a
//! quota is used up is decided by what Auth has counted of all processes, as it was last
//! [learnt](Usage::learn), and what this one has counted since. So a user can exceed a quota by what the other
//! processes admit within a few seconds. Before Auth has first answered, whoever has a quota is
//! [refused](QuotaRefusal::Unknown): what they have used is not known.

mod accounts;
mod layer;
mod quotas;
mod refusal;

pub(crate) use layer::UsageLayer;
pub use layer::{Counted, CountedFuture};
pub use quotas::{Allowance, OverQuota, QuotaHandle, QuotaRefusal, Quotas};

use crate::Call;
use accounts::Accounts;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_credentials::{Caller, View};
use tars_runtime::{
    clock::{Clock, Monotonic},
    db::{DbError, Fetch},
    metrics::Metrics,
    usage::{self, Answer, Dimension, Item, Month},
};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    dimension: &'static str,
}

/// The counters of usage of a process. Clones share them.
#[derive(Debug, Clone)]
pub struct UsageMetrics {
    counted: [Counter; Dimension::ALL.len()],
    refused: [Counter; Dimension::ALL.len()],
    set_aside: Counter,
}

impl UsageMetrics {
    /// Registers the counters.
    pub fn new(metrics: &Metrics) -> Self {
        let family = |name, help| -> Family<Labels, Counter> {
            metrics.register(name, help, Family::default())
        };
        let counted = family(
            "usage_counted",
            "What this process has counted: calls, training steps, and microseconds of solvers",
        );
        let refused = family(
            "usage_quota_refusals",
            "Refusals for a quota of a month, by dimension",
        );
        let each = |family: &Family<Labels, Counter>, name: fn(Dimension) -> &'static str| {
            Dimension::ALL.map(|of| {
                let dimension = name(of);
                family.get_or_create(&Labels { dimension }).clone()
            })
        };
        Self {
            counted: each(&counted, Dimension::counted_as),
            refused: each(&refused, Dimension::as_str),
            set_aside: metrics.register(
                "usage_items_set_aside",
                "Amounts that Auth does not take, which are kept in the service's database and counted for nobody",
                Counter::default(),
            ),
        }
    }
}

/// The usage that one service of a process counts. Clones share it.
#[derive(Debug, Clone)]
pub struct Usage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    accounts: Accounts,
    quotas: QuotaHandle,
    metrics: UsageMetrics,
    clock: Clock,
    /// This service of this process, from its start to its end.
    source: String,
    drained: Mutex<Drained>,
    /// Whether Auth has told what it has counted.
    is_known: AtomicBool,
    /// The latest month that there was.
    latest: Mutex<Month>,
}

/// What has left the accounts, and is not known to be counted, in the order of its numbers.
#[derive(Debug, Default)]
struct Drained {
    last: i64,
    items: VecDeque<Item>,
    /// How many there may be before those of the same user, month and dimension are merged.
    most: usize,
}

/// The least number of drained items that are merged.
const MERGED_FROM: usize = 4096;

impl Drained {
    /// While Auth is out of reach, there are as many items as users, and not one more a second.
    fn add(&mut self, items: &[Item]) {
        self.items.extend(items.iter().cloned());
        if self.items.len() <= self.most.max(MERGED_FROM) {
            return;
        }
        let mut merged: HashMap<_, Item> = HashMap::new();
        for item in self.items.drain(..) {
            let key = (item.user_id.clone(), item.month, item.dimension);
            match merged.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert(item)),
                // It is forgotten once all of it is counted.
                Entry::Occupied(mut entry) => {
                    let before = entry.get().amount;
                    let amount = before.saturating_add(item.amount);
                    entry.insert(Item { amount, ..item });
                }
            }
        }
        self.items = merged.into_values().collect();
        self.items.make_contiguous().sort_by_key(|item| item.number);
        self.most = self.items.len() * 2;
    }
}

/// Work that may take solver time, until it is dropped.
#[derive(Debug)]
pub struct Solving {
    usage: Usage,
    user_id: String,
    /// What is promised; `None` where nothing is limited.
    most_us: Option<u64>,
    /// Since when it takes time.
    begun: Option<Monotonic>,
}

impl Usage {
    /// Nothing is counted yet.
    pub fn new(clock: Clock, quotas: QuotaHandle, metrics: UsageMetrics) -> Self {
        Self(Arc::new(Inner {
            accounts: Accounts::default(),
            quotas,
            metrics,
            latest: Mutex::new(Month::at(clock.now())),
            clock,
            source: Uuid::now_v7().to_string(),
            drained: Mutex::default(),
            is_known: AtomicBool::new(false),
        }))
    }

    /// Whether it is known what callers have used, or nobody has a quota.
    pub fn is_ready(&self) -> bool {
        self.is_known() || !self.0.quotas.limit_anything()
    }

    fn is_known(&self) -> bool {
        self.0.is_known.load(Ordering::Acquire)
    }

    /// The users with quotas of their own who do not exist.
    pub fn strangers(&self, view: &View) -> Vec<String> {
        self.0.quotas.strangers(view)
    }

    /// What numbers the items that are drained.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The present month. It never turns back: an earlier one, of a clock that is set back, would have quotas of
    /// which nothing is known to be used.
    pub fn month(&self) -> Month {
        let now = Month::at(self.0.clock.now());
        let mut latest = self.0.latest.lock();
        *latest = now.max(*latest);
        *latest
    }

    /// What a caller may use.
    pub fn allowance(&self, caller: &Caller) -> Allowance {
        self.0.quotas.allowance(caller)
    }

    /// What the caller of a call may use.
    pub fn allowance_of(&self, call: &Call) -> Allowance {
        let caller = call.caller();
        caller.map_or_else(Allowance::default, |caller| self.allowance(caller))
    }

    /// Counts for tests, without quotas.
    pub fn detached(clock: Clock) -> Self {
        let metrics = UsageMetrics::new(&Metrics::default());
        Self::for_tests(clock, QuotaHandle::default(), metrics)
    }

    /// Counts for tests, as after Auth's first answer.
    pub fn for_tests(clock: Clock, quotas: QuotaHandle, metrics: UsageMetrics) -> Self {
        let usage = Self::new(clock, quotas, metrics);
        usage.learn(&Answer::default());
        usage
    }

    /// Admits a call, unless it exceeds the quota of its caller. It is used until [`end_call`](Self::end_call).
    fn begin_call(&self, caller: &Caller) -> Result<(), QuotaRefusal> {
        let (month, calls) = (self.month(), Dimension::Calls);
        let limit = self.0.quotas.limit(caller, calls);
        self.ensure_known(limit)?;
        let begun = self.0.accounts.with(&caller.owner_id, month, |account| {
            let used = account.used(calls);
            if limit.is_some_and(|limit| used >= limit) {
                return Err(used);
            }
            account.begin_call();
            Ok(())
        });
        begun.map_err(|used| {
            self.refuse(OverQuota {
                dimension: calls,
                limit: limit.unwrap_or_default(),
                used,
                asked: 1,
                month,
                at: self.0.clock.now(),
            })
        })
    }

    /// Counts a call that was admitted, or gives it back.
    fn end_call(&self, user_id: &str, counts: bool) {
        let (accounts, metrics) = (&self.0.accounts, &self.0.metrics);
        accounts.with(user_id, self.month(), |account| account.end_call(counts));
        if counts {
            metrics.counted[Dimension::Calls as usize].inc();
        }
    }

    /// Checks that `asked` training steps fit into what is left, where `promised` are those that other work of the
    /// user may still take. What waits in the outbox of the service is used as well.
    ///
    /// # Errors
    ///
    /// [`QuotaRefusal`] where they do not fit, and [`DbError`] where the outbox cannot be read.
    pub async fn ensure_steps<E>(
        &self,
        tx: &mut impl Fetch,
        allowance: &Allowance,
        promised: u64,
        asked: u64,
    ) -> Result<(), E>
    where
        E: From<DbError> + From<QuotaRefusal>,
    {
        let (user_id, dimension) = (&allowance.user_id, Dimension::TrainingSteps);
        if allowance.of(dimension).is_none() {
            return Ok(());
        }
        let waiting = usage::waiting(tx, user_id, dimension, self.month()).await?;
        let more = promised.saturating_add(waiting);
        Ok(self.check_steps(allowance, more, asked)?)
    }

    /// Refuses what has a limit while it is not known what is used.
    fn ensure_known(&self, limit: Option<u64>) -> Result<(), QuotaRefusal> {
        match limit.is_some() && !self.is_known() {
            true => Err(QuotaRefusal::Unknown),
            false => Ok(()),
        }
    }

    fn check_steps(
        &self,
        allowance: &Allowance,
        more: u64,
        asked: u64,
    ) -> Result<(), QuotaRefusal> {
        let (month, dimension) = (self.month(), Dimension::TrainingSteps);
        let Some(limit) = allowance.of(dimension) else {
            return Ok(());
        };
        self.ensure_known(Some(limit))?;
        let known = self
            .0
            .accounts
            .with(&allowance.user_id, month, |account| account.used(dimension));
        let used = known.saturating_add(more);
        if used.saturating_add(asked) <= limit {
            return Ok(());
        }
        Err(self.refuse(OverQuota {
            dimension,
            limit,
            used,
            asked,
            month,
            at: self.0.clock.now(),
        }))
    }

    /// An amount that Auth does not take is kept apart.
    pub fn record_set_aside(&self) {
        self.0.metrics.set_aside.inc();
    }

    /// Counts training steps that a transaction has just committed into the outbox.
    pub fn record_steps(&self, steps: u64) {
        self.0.metrics.counted[Dimension::TrainingSteps as usize].inc_by(steps);
    }

    /// Promises solver time to a caller until what was taken is counted: what is `asked` for, else what there may be
    /// at most, and no more than is left. Other processes know of a promise only once it was counted, so that each of
    /// them may promise what is left: with `n` replicas a user has at most `n` times that, once a month.
    ///
    /// # Errors
    ///
    /// [`QuotaRefusal`] where nothing is left, or less than is asked for.
    pub fn begin_solve(
        &self,
        allowance: &Allowance,
        asked: Option<Duration>,
        most: Option<Duration>,
    ) -> Result<Solving, QuotaRefusal> {
        let dimension = Dimension::SolverSeconds;
        let solving = |most_us| Solving {
            usage: self.clone(),
            user_id: allowance.user_id.clone(),
            most_us,
            begun: None,
        };
        let Some(limit) = allowance.of(dimension) else {
            return Ok(solving(None));
        };
        self.ensure_known(Some(limit))?;
        let (month, asked_us) = (self.month(), asked.map_or(1, micros));
        let user_id = &allowance.user_id;
        let promised = self.0.accounts.with(user_id, month, |account| {
            let used = account.used(dimension).saturating_add(account.promised_us);
            let left = limit.saturating_sub(used);
            if left < asked_us.max(1) {
                return Err(used);
            }
            let most_us = asked.or(most).map_or(left, micros).min(left);
            account.promised_us += most_us;
            Ok(most_us)
        });
        match promised {
            Ok(most_us) => Ok(solving(Some(most_us))),
            Err(used) => Err(self.refuse(OverQuota {
                dimension,
                limit,
                used,
                asked: asked_us,
                month,
                at: self.0.clock.now(),
            })),
        }
    }

    fn refuse(&self, over: OverQuota) -> QuotaRefusal {
        self.0.metrics.refused[over.dimension as usize].inc();
        QuotaRefusal::Over(over)
    }

    /// Takes what was counted since the last time, numbered, to be written into the outbox.
    pub fn drain(&self) -> Vec<Item> {
        let mut drained = self.0.drained.lock();
        let mut items = Vec::new();
        for (month, user_id, amounts) in self.0.accounts.drain(self.month()) {
            for (dimension, amount) in amounts.each() {
                drained.last += 1;
                items.push(Item {
                    source: self.0.source.clone(),
                    number: drained.last,
                    month,
                    user_id: user_id.clone(),
                    dimension,
                    amount,
                });
            }
        }
        drained.add(&items);
        items
    }

    /// Learns what Auth has counted. What it has counted of this process is no longer added to its totals, once all
    /// of these are known.
    pub fn learn(&self, answer: &Answer) {
        let mut drained = self.0.drained.lock();
        let (accounts, month) = (&self.0.accounts, self.month());
        let is_counted = |item: &mut Item| !answer.more && item.number <= answer.counted;
        while let Some(item) = drained.items.pop_front_if(is_counted) {
            accounts.with(&item.user_id, month, |account| account.forget(&item));
        }
        for total in &answer.totals {
            accounts.with(&total.user_id, month, |account| account.learn(total));
        }
        if !answer.more {
            self.0.is_known.store(true, Ordering::Release);
        }
    }
}

impl Solving {
    /// The time that it may take; `None` where that is not limited.
    pub fn most(&self) -> Option<Duration> {
        self.most_us.map(Duration::from_micros)
    }

    /// Runs the work, and counts the time that it takes, also when it panics.
    pub fn time<T>(mut self, work: impl FnOnce() -> T) -> T {
        self.begun = Some(self.usage.0.clock.monotonic());
        work()
    }

    fn count(&self, took: Duration) {
        if self.user_id.is_empty() {
            return;
        }
        let (took_us, dimension) = (micros(took), Dimension::SolverSeconds);
        let Inner {
            accounts, metrics, ..
        } = &*self.usage.0;
        let month = self.usage.month();
        accounts.with(&self.user_id, month, |a| a.count(dimension, took_us));
        metrics.counted[dimension as usize].inc_by(took_us);
    }
}

impl Drop for Solving {
    fn drop(&mut self) {
        // Before the promise ends, so that nothing is free in between.
        if let Some(begun) = self.begun {
            self.count(self.usage.0.clock.monotonic().since(begun));
        }
        let Some(most_us) = self.most_us else {
            return;
        };
        let (accounts, month) = (&self.usage.0.accounts, self.usage.month());
        accounts.with(&self.user_id, month, |account| {
            account.promised_us = account.promised_us.saturating_sub(most_us);
        });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
