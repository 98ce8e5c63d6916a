//! What the calls of one service were like in a window of time: how many there were, of whom, how they
//! ended and how long they took. Models of the mesh are fitted to it.
//!
//! A service measures the calls that it serves itself, in its own process. Every call passes here when it
//! ends, so that recording one allocates nothing and waits for nobody: it adds to atomics of the current
//! table. A reader ends a window by directing new calls to the other table; it then waits for the few
//! instructions of those that are still adding to the old one, so that each call is in exactly one window.
//!
//! A window has room for [`MAX_TENANTS`] tenants. Those that find none share a pool: the numbers of all
//! together are exact, whoever calls. Tenants are known by a hash under a secret of the process, and no name
//! is stored.

mod table;
#[cfg(test)]
mod tests;

pub use table::MAX_TENANTS;

use crate::clock::Monotonic;
use parking_lot::Mutex;
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};
use table::Table;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// Its handler answered: what was requested, or why the request cannot be met.
    Completed,
    /// It was admitted, and then failed, missed its deadline, or was given up by its caller.
    Failed,
    /// A limit turned it away.
    Rejected,
    /// A check refused it, such as of its credential. It was no demand that could have been served.
    Refused,
}

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub struct EndedCall<'a> {
    /// On whose behalf it was made.
    pub tenant: &'a str,
    /// How it ended.
    pub outcome: CallOutcome,
    /// How long it took, from its arrival.
    pub took: Duration,
    /// Whether its caller had attempted it before.
    pub is_retry: bool,
}

/// The calls of one tenant in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TenantCalls {
    /// The hash by which the tenant is known to this process.
    pub key: u64,
    /// Calls that completed.
    pub completed: u64,
    /// Calls that were admitted and failed.
    pub failed: u64,
    /// Calls that a limit turned away.
    pub rejected: u64,
    /// How many of all these had been attempted before.
    pub retries: u64,
    /// The time that completed and failed calls took, in s.
    pub time_s: f64,
}

impl TenantCalls {
    /// How many calls arrived, the retries among them.
    pub fn arrivals(&self) -> u64 {
        self.served() + self.rejected
    }

    /// How many calls were admitted.
    pub fn served(&self) -> u64 {
        self.completed + self.failed
    }

    /// Adds the calls of another tenant.
    pub fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.rejected += other.rejected;
        self.retries += other.retries;
        self.time_s += other.time_s;
    }
}

/// The calls of one service in a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallWindow {
    /// How long the window lasted.
    pub lasted: Duration,
    /// The tenants, in no order.
    pub tenants: Vec<TenantCalls>,
    /// All tenants beyond the first [`MAX_TENANTS`], together.
    pub pooled: TenantCalls,
    /// Calls that a check refused, of anybody.
    pub refused: u64,
    /// The sum of the squares of the times of completed and failed calls, in s².
    pub time_squared: f64,
    /// How long completed calls took: how many in each bucket of [`latency_bounds`], and then those above.
    pub latencies: Vec<u64>,
}

impl CallWindow {
    /// The calls of all tenants.
    pub fn total(&self) -> TenantCalls {
        let mut total = TenantCalls::default();
        for tenant in self.tenants.iter().chain([&self.pooled]) {
            total.add(tenant);
        }
        total
    }
}

/// The upper bounds of the buckets of latencies, in s: four an octave, from 64 µs to over two minutes.
pub fn latency_bounds() -> impl Iterator<Item = f64> {
    (0..table::BOUNDS).map(table::bound)
}

/// Records the calls of one service. Clones share the record.
#[derive(Debug, Clone, Default)]
pub struct CallRecorder(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hasher: RandomState,
    /// The table of the current window.
    current: AtomicUsize,
    tables: [Table; 2],
    /// When the current window began; `None` before the first.
    began: Mutex<Option<Monotonic>>,
}

impl CallRecorder {
    /// Records a call.
    pub fn record(&self, call: &EndedCall<'_>) {
        let key = self.0.hasher.hash_one(call.tenant);
        self.0.enter().0.add(key, call);
    }

    /// Ends the current window and begins the next. There is none to end the first time: how long calls had
    /// been recorded before is not known, and they are dropped.
    pub fn end_window(&self, now: Monotonic) -> Option<CallWindow> {
        let mut began = self.0.began.lock();
        let ended = self.0.turn();
        let lasted = now.since(began.replace(now)?);
        Some(CallWindow { lasted, ..ended })
    }
}

impl Inner {
    /// Enters the current table. The count of those inside is raised first and the table checked
    /// afterwards, so that a reader that turns in between waits for whoever stays.
    fn enter(&self) -> Entered<'_> {
        loop {
            let at = self.current.load(SeqCst);
            let entered = Entered(&self.tables[at]);
            entered.0.inside.fetch_add(1, SeqCst);
            if self.current.load(SeqCst) == at {
                return entered;
            }
        }
    }

    /// Directs new calls to the other table and empties the old one. One reader at a time.
    fn turn(&self) -> CallWindow {
        let old = self.current.load(SeqCst);
        self.current.store(1 - old, SeqCst);
        let table = &self.tables[old];
        while table.inside.load(SeqCst) > 0 {
            thread::yield_now();
        }
        table.take()
    }
}

/// A call that adds to a table. Its drop tells readers that it is done.
struct Entered<'a>(&'a Table);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}
