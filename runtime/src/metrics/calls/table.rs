//! The counts of one window, as atomics.

use super::{CallOutcome, CallWindow, EndedCall, TenantCalls};
use std::{
    array,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// Maximum number of tenants that a window tells apart.
pub const MAX_TENANTS: usize = 128;
/// How many places are tried before a tenant is counted with the pool.
const PROBES: usize = 16;
/// The first bound of latencies, in s.
const FIRST_BOUND: f64 = 64e-6;
const BOUNDS_AN_OCTAVE: f64 = 4.0;
pub(super) const BOUNDS: usize = 85;

pub(super) fn bound(at: usize) -> f64 {
    FIRST_BOUND * (at as f64 / BOUNDS_AN_OCTAVE).exp2()
}

/// The bucket of a time in s; the last one holds what is above all bounds.
fn bucket(time: f64) -> usize {
    let at = ((time / FIRST_BOUND).log2() * BOUNDS_AN_OCTAVE).ceil();
    // A time of zero has a logarithm of minus infinity, which becomes 0.
    (at as usize).min(BOUNDS)
}

/// A sum of numbers.
#[derive(Debug, Default)]
struct Sum(AtomicU64);

impl Sum {
    fn add(&self, by: f64) {
        let sum = |bits| Some((f64::from_bits(bits) + by).to_bits());
        // The update of `Some` does not fail.
        self.0.fetch_update(Relaxed, Relaxed, sum).ok();
    }

    fn take(&self) -> f64 {
        f64::from_bits(self.0.swap(0, Relaxed))
    }
}

/// One tenant's counts, in a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Tenant {
    /// 0 while nobody has the place.
    key: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    rejected: AtomicU64,
    retries: AtomicU64,
    time_s: Sum,
}

impl Tenant {
    /// Whether the place is that of `key`, which takes it where it is free.
    fn is_of(&self, key: u64) -> bool {
        match self.key.load(Relaxed) {
            0 => {
                let taken = self.key.compare_exchange(0, key, Relaxed, Relaxed);
                taken.map_or_else(|other| other == key, |_| true)
            }
            other => other == key,
        }
    }

    fn add(&self, outcome: CallOutcome, time: f64, is_retry: bool) {
        let count = match outcome {
            CallOutcome::Completed => &self.completed,
            CallOutcome::Failed => &self.failed,
            CallOutcome::Rejected | CallOutcome::Refused => &self.rejected,
        };
        count.fetch_add(1, Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Relaxed);
        if time > 0.0 {
            self.time_s.add(time);
        }
    }

    fn take(&self) -> TenantCalls {
        TenantCalls {
            key: self.key.swap(0, Relaxed),
            completed: self.completed.swap(0, Relaxed),
            failed: self.failed.swap(0, Relaxed),
            rejected: self.rejected.swap(0, Relaxed),
            retries: self.retries.swap(0, Relaxed),
            time_s: self.time_s.take(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    /// How many calls are adding to it.
    pub(super) inside: AtomicUsize,
    tenants: [Tenant; MAX_TENANTS],
    pooled: Tenant,
    refused: AtomicU64,
    time_squared: Sum,
    latencies: [AtomicU64; BOUNDS + 1],
}

impl Default for Table {
    fn default() -> Self {
        Self {
            inside: AtomicUsize::default(),
            tenants: array::from_fn(|_| Tenant::default()),
            pooled: Tenant::default(),
            refused: AtomicU64::default(),
            time_squared: Sum::default(),
            latencies: array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl Table {
    pub(super) fn add(&self, key: u64, call: &EndedCall<'_>) {
        if call.outcome == CallOutcome::Refused {
            self.refused.fetch_add(1, Relaxed);
            return;
        }
        let time = self.time(call.outcome, call.took);
        self.tenant(key.max(1))
            .add(call.outcome, time, call.is_retry);
    }

    /// The service time of a call; 0 for one that was not served.
    fn time(&self, outcome: CallOutcome, took: Duration) -> f64 {
        let time = took.as_secs_f64();
        match outcome {
            CallOutcome::Completed => drop(self.latencies[bucket(time)].fetch_add(1, Relaxed)),
            CallOutcome::Failed => {}
            CallOutcome::Rejected | CallOutcome::Refused => return 0.0,
        }
        self.time_squared.add(time * time);
        time
    }

    fn tenant(&self, key: u64) -> &Tenant {
        let first = (key % MAX_TENANTS as u64) as usize;
        let mut places = (first..first + PROBES).map(|at| &self.tenants[at % MAX_TENANTS]);
        places.find(|t| t.is_of(key)).unwrap_or(&self.pooled)
    }

    /// Takes all counts and leaves none. Nobody may be inside.
    pub(super) fn take(&self) -> CallWindow {
        let tenants = self.tenants.iter().map(Tenant::take);
        CallWindow {
            lasted: Duration::ZERO,
            tenants: tenants.filter(|t| t.key != 0).collect(),
            pooled: self.pooled.take(),
            refused: self.refused.swap(0, Relaxed),
            time_squared: self.time_squared.take(),
            latencies: self.latencies.iter().map(|n| n.swap(0, Relaxed)).collect(),
        }
    }
}
