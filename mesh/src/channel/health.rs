//! What the calls to an address tell of it: how slow it is, and whether it gets calls at all.

use super::{
    breaker::{Breaker, Change, Verdict},
    ejections::Ejections,
    metrics::PeerMetrics,
    slowness::{MAX_RATIO, Slowness, Usual},
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_proto::table::outlined;
use tars_runtime::seeds::Seeds;
use tokio::time::Instant;

/// What all addresses of a channel are compared by.
#[derive(Debug)]
pub(super) struct Common {
    usual: Usual,
    pub(super) ejections: Arc<Ejections>,
    /// Whether the time to a response tells how slow an address is. That to the first byte of a stream
    /// does not: the load of streams is their number.
    measures: bool,
    metrics: Arc<PeerMetrics>,
}

impl Common {
    pub(super) fn new(measures: bool, metrics: &Arc<PeerMetrics>) -> Self {
        Self {
            usual: Usual::new(outlined()),
            ejections: Arc::new(Ejections::new(metrics.ejected.clone())),
            measures,
            metrics: Arc::clone(metrics),
        }
    }
}

/// What a call is to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Call,
    /// It shows whether an ejected address works again.
    Probe,
}

/// The health of one address. Methods are the positions of their outlines.
#[derive(Debug)]
pub(super) struct Health {
    /// The address, for the log.
    name: Arc<str>,
    slowness: Slowness,
    breaker: Mutex<Breaker>,
    /// Whether the breaker is not closed, so that those who choose an address need no lock.
    ejected: AtomicBool,
    common: Arc<Common>,
}

impl Health {
    pub(super) fn new(name: &Arc<str>, common: &Arc<Common>) -> Arc<Self> {
        Arc::new(Self {
            name: Arc::clone(name),
            slowness: Slowness::default(),
            breaker: Mutex::new(Breaker::new(Seeds::system(), Instant::now())),
            ejected: AtomicBool::new(false),
            common: Arc::clone(common),
        })
    }

    /// Whether the address gets no calls, except for probes.
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Returns how many times as long as usual the address takes.
    pub(super) fn slowness(&self, now: Instant) -> f64 {
        self.slowness.at(now)
    }

    /// Returns what a method usually takes, over all addresses.
    pub(super) fn usual(&self, method: Option<usize>) -> Option<Duration> {
        self.common.usual.of(method)
    }

    /// Whether an ejected address gets a call, to show whether it works again. `spare` tells whether that can
    /// be sent to another address when it fails.
    pub(super) fn try_probe(&self, spare: bool, now: Instant) -> bool {
        let mut breaker = self.breaker.lock();
        let settled = breaker.settle(now);
        self.changed(settled);
        let probed = breaker.try_probe(spare, now);
        self.changed(probed.unwrap_or(Change::None));
        probed.is_some()
    }

    /// Records that a response to a probe has begun.
    pub(super) fn accept_probe(&self, now: Instant) {
        self.breaker.lock().accept_probe(now);
    }

    /// Records what a call has shown.
    pub(super) fn judge(&self, verdict: Verdict, role: Role, now: Instant) {
        let mut breaker = self.breaker.lock();
        let change = match role {
            Role::Probe => breaker.record_probe(verdict, now),
            Role::Call => breaker.record(verdict, now, || self.common.ejections.place()),
        };
        self.changed(change);
    }

    /// Called while the breaker is locked, so that changes are shown in their order.
    fn changed(&self, change: Change) {
        let (address, metrics) = (&*self.name, &self.common.metrics);
        if let Some((from, to)) = change.phases() {
            metrics.step(from, to);
        }
        match change {
            Change::None | Change::Probed | Change::Reopened => {}
            Change::Ejected => {
                self.ejected.store(true, Ordering::Relaxed);
                tracing::warn!(address, "an address fails, and gets no calls for a while");
            }
            Change::Readmitted => {
                self.slowness.reset();
                self.ejected.store(false, Ordering::Relaxed);
                tracing::info!(address, "an address works again");
            }
        }
    }

    /// Records how long a call took that brought what was asked for.
    pub(super) fn record_success(&self, method: Option<usize>, took: Duration, now: Instant) {
        let ratio = self.common.usual.record(method, took);
        if let Some(ratio) = ratio.filter(|_| self.common.measures) {
            self.slowness.observe(ratio, now);
        }
    }

    /// Records that a call has brought nothing in that time, or nothing that was asked for. It shows by how
    /// much the address is slower than usual at least, and never that it is fast: a refusal costs nothing.
    /// Returns the ratio, where the method's time is known.
    pub(super) fn record_without_success(
        &self,
        method: Option<usize>,
        elapsed: Duration,
        now: Instant,
    ) -> Option<f64> {
        let ratio = self.common.usual.compare(method, elapsed);
        if let Some(ratio) = ratio.filter(|ratio| self.common.measures && *ratio > 1.0) {
            self.slowness.observe(ratio, now);
        }
        ratio
    }

    /// Records that the address is as slow as can be.
    pub(super) fn record_failure(&self, now: Instant) {
        self.slowness.observe(MAX_RATIO, now);
    }
}
