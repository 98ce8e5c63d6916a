//! What the calls to an address tell of it: how slow it is, and whether it gets calls at all.

use super::{
    breaker::{Breaker, Change, Verdict},
    ejections::Ejections,
    ending::Ending,
    metrics::PeerMetrics,
    slowness::{MAX_RATIO, Slowness, Usual},
};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_runtime::seeds::Seeds;
use tokio::time::Instant;

/// A call that is given up after less than this does not show that the address fails.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// How many times as long as usual a probe may go without a response, and the bounds of that.
const PATIENCE: u32 = 8;
const MIN_PATIENCE: Duration = Duration::from_millis(20);
const MAX_PATIENCE: Duration = Duration::from_secs(1);

/// The states of a breaker, as metric labels.
const CLOSED: &str = "closed";
const OPEN: &str = "open";
const HALF_OPEN: &str = "half_open";

/// What all addresses of a channel are compared by.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) usual: Usual,
    pub(super) ejections: Arc<Ejections>,
    /// Whether the time to a response tells how slow an address is. That to the first byte of a stream
    /// does not: the load of streams is their number.
    pub(super) measures: bool,
    metrics: Arc<PeerMetrics>,
}

impl Common {
    pub(super) fn new(measures: bool, metrics: &Arc<PeerMetrics>) -> Self {
        Self {
            usual: Usual::default(),
            ejections: Arc::new(Ejections::new(metrics.ejected.clone())),
            measures,
            metrics: Arc::clone(metrics),
        }
    }
}

/// The health of one address.
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

    /// Begins a call, which is no probe.
    pub(super) fn call(self: &Arc<Self>, method: &PathAndQuery, now: Instant) -> Trial {
        self.trial(method, Role::Call, now)
    }

    /// Begins a call that shows whether an ejected address works again, if it is time for one.
    pub(super) fn try_probe(
        self: &Arc<Self>,
        method: &PathAndQuery,
        repeatable: bool,
        now: Instant,
    ) -> Option<Trial> {
        let probes = self.breaker.lock().try_probe(repeatable, now);
        probes.then(|| {
            self.common.metrics.step(OPEN, HALF_OPEN);
            self.trial(method, Role::Probe, now)
        })
    }

    fn trial(self: &Arc<Self>, method: &PathAndQuery, role: Role, now: Instant) -> Trial {
        Trial {
            health: Arc::clone(self),
            method: method.clone(),
            began: now,
            responded: None,
            role: Some(role),
        }
    }

    fn record(&self, verdict: Verdict, role: Role, now: Instant) {
        let mut breaker = self.breaker.lock();
        let change = match role {
            Role::Probe => breaker.record_probe(verdict, now),
            Role::Call => breaker.record(verdict, now, || self.common.ejections.place()),
        };
        let (address, metrics) = (&*self.name, &self.common.metrics);
        match change {
            Change::None => {}
            Change::Ejected => {
                self.ejected.store(true, Ordering::Relaxed);
                metrics.step(CLOSED, OPEN);
                tracing::warn!(address, "an address fails, and gets no calls for a while");
            }
            Change::Reopened => metrics.step(HALF_OPEN, OPEN),
            Change::Readmitted => {
                self.slowness.reset();
                self.ejected.store(false, Ordering::Relaxed);
                metrics.step(HALF_OPEN, CLOSED);
                tracing::info!(address, "an address works again");
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Role {
    Call,
    Probe,
}

/// A call in flight to one address. Dropping it without an ending counts the call as given up.
#[derive(Debug)]
pub(super) struct Trial {
    health: Arc<Health>,
    method: PathAndQuery,
    began: Instant,
    /// When the response began, if what follows is waited for.
    responded: Option<Instant>,
    /// `None` once it has ended.
    role: Option<Role>,
}

impl Trial {
    /// Records that a stream was accepted. It may fail before its first message; until then that it was
    /// accepted is the best that is known. A probe ends with it: a stream may have nothing to say for
    /// long.
    pub(super) fn accepted(mut self) -> Option<Self> {
        if matches!(self.role, Some(Role::Probe)) {
            self.end(Ending::Answered);
            return None;
        }
        self.responded = Some(Instant::now());
        Some(self)
    }

    /// How long the call may go without a response if it is a probe, and can be sent elsewhere: an address
    /// that was silent before the ejection may be so again, and nobody should have to wait for that.
    pub(super) fn patience(&self) -> Option<Duration> {
        matches!(self.role, Some(Role::Probe)).then(|| {
            let usual = self.health.common.usual.of(&self.method);
            usual.map_or(MAX_PATIENCE, |usual| {
                (usual * PATIENCE).clamp(MIN_PATIENCE, MAX_PATIENCE)
            })
        })
    }

    /// Records how the call ended.
    pub(super) fn end(mut self, ending: Ending) {
        if let Some(role) = self.role.take() {
            self.record(ending, role);
        }
    }

    fn record(&self, ending: Ending, role: Role) {
        let now = Instant::now();
        let elapsed = self.responded.unwrap_or(now) - self.began;
        let health = &self.health;
        let verdict = match ending {
            Ending::Answered => {
                let ratio = health.common.usual.record(&self.method, elapsed);
                if health.common.measures {
                    health.slowness.observe(ratio, now);
                }
                Verdict::Healthy
            }
            Ending::Busy => {
                health.slowness.observe(MAX_RATIO, now);
                Verdict::Unknown
            }
            Ending::Failed => {
                health.slowness.observe(MAX_RATIO, now);
                Verdict::Failed
            }
            Ending::Other => Verdict::Unknown,
        };
        health.record(verdict, role, now);
    }

    /// A call that was given up shows that the address is slow by now, and one without a response for very
    /// long that it fails.
    fn give_up(&self, role: Role) {
        let now = Instant::now();
        let (health, elapsed) = (&self.health, now - self.began);
        let ratio = health.common.usual.compare(&self.method, elapsed);
        if let Some(ratio) = ratio.filter(|_| health.common.measures) {
            health.slowness.observe(ratio, now);
        }
        let silent = elapsed >= MIN_SILENCE && ratio.is_none_or(|ratio| ratio >= MAX_RATIO);
        let verdict = match silent {
            true => Verdict::Failed,
            false => Verdict::Unknown,
        };
        health.record(verdict, role, now);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        match (self.role.take(), self.responded) {
            (Some(role), Some(_)) => self.record(Ending::Answered, role),
            (Some(role), None) => self.give_up(role),
            (None, _) => {}
        }
    }
}

/// Records how a call ended, where that is recorded.
pub(super) fn end(trial: Option<Trial>, ending: Ending) {
    if let Some(trial) = trial {
        trial.end(ending);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::metrics::ChannelMetrics, *};
    use tokio::time::advance;

    const METHOD: PathAndQuery = PathAndQuery::from_static("/a");

    fn of_two() -> Arc<Health> {
        measuring(true)
    }

    /// One of two addresses.
    fn measuring(measures: bool) -> Arc<Health> {
        let metrics = ChannelMetrics::default().of("spiffe://tars.local/auth");
        let common = Arc::new(Common::new(measures, &metrics));
        common.ejections.set_addresses(2);
        Health::new(&Arc::from("a:1"), &common)
    }

    fn call(health: &Arc<Health>) -> Trial {
        health.call(&METHOD, Instant::now())
    }

    fn slowness(health: &Health) -> f64 {
        health.slowness(Instant::now())
    }

    /// Fails until the address is ejected.
    fn eject(health: &Arc<Health>) {
        for _ in 0..5 {
            assert!(!health.is_ejected());
            call(health).end(Ending::Failed);
        }
        assert!(health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_counts_as_slow_however_fast_it_is() {
        for ending in [Ending::Failed, Ending::Busy] {
            let health = of_two();
            call(&health).end(Ending::Answered);
            assert_eq!(slowness(&health), 1.0);
            call(&health).end(ending);
            assert_eq!(slowness(&health), MAX_RATIO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_address_is_not_ejected_and_a_refusal_for_the_caller_tells_nothing() {
        let health = of_two();
        for _ in 0..100 {
            call(&health).end(Ending::Other);
        }
        assert_eq!(slowness(&health), 1.0);
        for _ in 0..100 {
            call(&health).end(Ending::Busy);
        }
        assert!(!health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_answered_readmits_the_address_as_if_nothing_had_been() {
        let health = of_two();
        eject(&health);
        assert!(health.try_probe(&METHOD, true, Instant::now()).is_none());
        advance(Duration::from_secs(1)).await;
        let probe = health.try_probe(&METHOD, true, Instant::now());
        probe.unwrap().end(Ending::Answered);
        assert!(!health.is_ejected());
        assert_eq!(slowness(&health), 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_or_limited_leaves_its_place_to_the_next() {
        let health = of_two();
        eject(&health);
        advance(Duration::from_secs(1)).await;
        let probe = || health.try_probe(&METHOD, true, Instant::now());
        drop(probe().unwrap());
        probe().unwrap().end(Ending::Other);
        assert!(probe().is_some());
        assert!(health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_given_up_after_long_silence_eject_and_impatient_ones_do_not() {
        let health = of_two();
        for _ in 0..100 {
            drop(call(&health));
        }
        assert!(!health.is_ejected());
        let calls: Vec<_> = (0..5).map(|_| call(&health)).collect();
        advance(MIN_SILENCE).await;
        drop(calls);
        assert!(health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_a_method_that_takes_long_shows_nothing() {
        let health = of_two();
        let long = call(&health);
        advance(Duration::from_secs(10)).await;
        long.end(Ending::Answered);
        let calls: Vec<_> = (0..5).map(|_| call(&health)).collect();
        advance(Duration::from_secs(10)).await;
        drop(calls);
        assert!(!health.is_ejected());
        assert_eq!(slowness(&health), 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_weigh_nothing_until_one_fails() {
        let health = measuring(false);
        call(&health).end(Ending::Answered);
        let late = call(&health);
        advance(Duration::from_secs(10)).await;
        late.end(Ending::Answered);
        assert_eq!(slowness(&health), 1.0);
        call(&health).end(Ending::Failed);
        assert_eq!(slowness(&health), MAX_RATIO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_counts_as_accepted_until_it_fails_before_its_first_message() {
        let health = measuring(false);
        for _ in 0..5 {
            let silent = call(&health).accepted().unwrap();
            advance(Duration::from_secs(3600)).await;
            drop(silent);
        }
        assert!(!health.is_ejected(), "it had nothing to say");
        for _ in 0..5 {
            call(&health).accepted().unwrap().end(Ending::Failed);
        }
        assert!(health.is_ejected());
        advance(Duration::from_secs(1)).await;
        let probe = health.try_probe(&METHOD, true, Instant::now()).unwrap();
        assert!(probe.accepted().is_none());
        assert!(!health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_address_is_never_ejected() {
        let health = of_two();
        health.common.ejections.set_addresses(1);
        for _ in 0..100 {
            call(&health).end(Ending::Failed);
        }
        assert!(!health.is_ejected());
    }
}
