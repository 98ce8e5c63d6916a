//! The latest windows of calls, and what a fit sees of them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tars_runtime::metrics::calls::{CallWindow, TenantCalls, latency_bounds};
use tars_worlds::mesh::{
    MAX_TENANTS,
    fit::{Approvals, Histogram, ServiceWindow, TenantWindow, Window},
};

/// How many windows a fit sees. An older one counts less: of those before, together, little is left.
const RETAINED: usize = 16;
/// A window that lasted longer than this many lengths was not read in time, as after a suspension. What was
/// before is no guide to what is now.
const TOO_LONG: u32 = 2;

/// Calls with the time at which their window ended.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) ended_us: i64,
    pub(super) calls: CallWindow,
}

impl Measured {
    pub(super) fn began_us(&self) -> i64 {
        let lasted = i64::try_from(self.calls.lasted.as_micros()).unwrap_or(i64::MAX);
        self.ended_us.saturating_sub(lasted)
    }

    pub(super) fn completed(&self) -> u64 {
        self.calls.total().completed
    }
}

/// The latest windows, which follow one another without a gap.
#[derive(Debug)]
pub(crate) struct Windows {
    length: Duration,
    latest: VecDeque<Measured>,
}

impl Windows {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            latest: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, measured: Measured) {
        if measured.calls.lasted > self.length * TOO_LONG {
            self.latest.clear();
            return;
        }
        if self.latest.len() == RETAINED {
            self.latest.pop_front();
        }
        self.latest.push_back(measured);
    }

    /// Whether nothing was measured yet.
    pub(super) fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    /// The newest window, and those before it, the oldest first, as far back as at least so many calls
    /// completed in each. `None` before there are two windows.
    pub(super) fn split(&self, calls: u64) -> Option<(Vec<&Measured>, &Measured)> {
        let mut newest = self.latest.iter().rev();
        let tested = newest.next()?;
        newest.clone().next()?;
        let mut busy: Vec<_> = newest.take_while(|m| m.completed() >= calls).collect();
        busy.reverse();
        Some((busy, tested))
    }
}

/// Which callers the model tells apart: those who call most. It has room for few.
#[derive(Debug)]
pub(super) struct Callers {
    /// The keys of those who have a tenant of their own, those who call most first.
    own: Vec<u64>,
    /// Whether there are others, who share the last tenant.
    others: bool,
}

impl Callers {
    pub(super) fn of(windows: &[&Measured]) -> Self {
        let (mut calls, mut pooled) = (BTreeMap::<u64, u64>::new(), 0);
        for window in windows {
            pooled += window.calls.pooled.served();
            for tenant in &window.calls.tenants {
                *calls.entry(tenant.key).or_default() += tenant.served();
            }
        }
        let mut own: Vec<_> = calls.into_iter().filter(|(_, calls)| *calls > 0).collect();
        own.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        let others = pooled > 0 || own.len() > MAX_TENANTS;
        own.truncate(MAX_TENANTS - usize::from(others));
        let own = own.into_iter().map(|(key, _)| key).collect();
        Self { own, others }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let own = (1..=self.own.len()).map(|n| format!("caller_{n}"));
        own.chain(self.others.then(|| "others".to_owned()))
            .collect()
    }

    /// The calls of each tenant of the model.
    pub(super) fn group(&self, calls: &CallWindow) -> Vec<TenantCalls> {
        let mut groups = vec![TenantCalls::default(); self.own.len() + usize::from(self.others)];
        for tenant in calls.tenants.iter().chain([&calls.pooled]) {
            let own = self.own.iter().position(|key| *key == tenant.key);
            // Where nobody is left over, the pool is empty.
            if let Some(group) = groups.get_mut(own.unwrap_or(self.own.len())) {
                group.add(tenant);
            }
        }
        groups
    }

    /// A window as the model sees it: one service, all of whose places serve.
    pub(super) fn window(&self, measured: &Measured, places: u32) -> Window {
        let calls = &measured.calls;
        let total = calls.total();
        let counts = calls.latencies.iter().map(|n| *n as f64);
        Window {
            seconds: calls.lasted.as_secs_f64(),
            tenants: self.group(calls).iter().map(tenant_window).collect(),
            services: vec![ServiceWindow {
                calls: total.served() as f64,
                time_s: total.time_s,
                time_squared: calls.time_squared,
                replicas: f64::from(places),
                ..ServiceWindow::default()
            }],
            latencies: Histogram::new(latency_bounds().collect(), counts.collect())
                .expect("a recorder's bounds rise, and its counts are counts"),
            approvals: Approvals::default(),
        }
    }
}

/// The model's demand is what was admitted. It predicts a mesh without limits, and what the limits of this
/// one turned away is counted apart.
fn tenant_window(calls: &TenantCalls) -> TenantWindow {
    TenantWindow {
        attempts: calls.served().saturating_sub(calls.retries) as f64,
        admitted: calls.served() as f64,
        failures: calls.failed as f64,
        retries: calls.retries as f64,
        calls: Vec::new(),
        service_time_s: calls.time_s,
    }
}
