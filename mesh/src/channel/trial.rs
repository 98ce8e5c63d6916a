//! A call to one of several addresses, and what it shows of that one.

use super::{
    breaker::Verdict,
    ending::Ending,
    health::{Health, Role},
    slowness::MAX_RATIO,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A call that is given up after less than this does not show that the address fails.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// How many times as long as usual a probe may go without a response.
const PATIENCE: u32 = 8;
/// The bounds of that.
const MIN_PATIENCE: Duration = Duration::from_millis(20);
const MAX_PATIENCE: Duration = Duration::from_secs(1);
/// How many times as long as usual it may go in any case: a method that always takes long would never show that
/// an address works.
const LEAST_PATIENCE: u32 = 2;

/// What the time of a call is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timing {
    /// The usual time of a method, by the position of its outline.
    Method(usize),
    /// Nothing: the method waits in a queue or for others, as long as its caller and those before it make it. That
    /// it was given up shows nothing, and it is a probe only where nothing else is called.
    Queued,
    /// Nothing, as the method is not in the contract.
    Unknown,
}

impl Timing {
    fn method(self) -> Option<usize> {
        match self {
            Self::Method(index) => Some(index),
            Self::Queued | Self::Unknown => None,
        }
    }
}

/// A call in flight to one address. Dropping it without an ending counts the call as given up.
#[derive(Debug)]
pub(super) struct Trial {
    health: Arc<Health>,
    timing: Timing,
    began: Instant,
    /// When the response began.
    responded: Option<Instant>,
    /// `None` once it has ended.
    role: Option<Role>,
}

impl Trial {
    /// Begins a call, which is no probe.
    pub(super) fn call(health: &Arc<Health>, timing: Timing, now: Instant) -> Self {
        Self::new(health, timing, Role::Call, now)
    }

    /// Begins a call that shows whether an ejected address works again, if it is time for one.
    pub(super) fn try_probe(
        health: &Arc<Health>,
        timing: Timing,
        spare: bool,
        now: Instant,
    ) -> Option<Self> {
        let shows_soon = spare && timing != Timing::Queued;
        let probes = health.try_probe(shows_soon, now);
        probes.then(|| Self::new(health, timing, Role::Probe, now))
    }

    fn new(health: &Arc<Health>, timing: Timing, role: Role, now: Instant) -> Self {
        Self {
            health: Arc::clone(health),
            timing,
            began: now,
            responded: None,
            role: Some(role),
        }
    }

    /// Records that the response has begun. A fault may follow; until then that it has begun is the best that is
    /// known.
    pub(super) fn responded(&mut self) {
        let now = Instant::now();
        self.responded = Some(now);
        if self.role == Some(Role::Probe) {
            self.health.accept_probe(now);
        }
    }

    /// How long the call may go without a response if it is a probe: an address that was silent before the
    /// ejection may be so again, and nobody should have to wait for that.
    pub(super) fn patience(&self) -> Option<Duration> {
        let usual = self.health.usual(self.timing.method());
        let is_limited = self.role == Some(Role::Probe) && self.timing != Timing::Queued;
        is_limited.then(|| usual.map_or(MAX_PATIENCE, patience))
    }

    /// Records how the call ended.
    pub(super) fn end(mut self, ending: Ending) {
        if let Some(role) = self.role.take() {
            self.record(ending, role);
        }
    }

    fn record(&self, ending: Ending, role: Role) {
        let (health, now) = (&self.health, Instant::now());
        let took = self.responded.unwrap_or(now) - self.began;
        let verdict = match ending {
            Ending::Served => {
                health.record_success(self.timing.method(), took, now);
                Verdict::Healthy
            }
            Ending::Answered => {
                health.record_without_success(self.timing.method(), took, now);
                Verdict::Healthy
            }
            Ending::Busy => {
                health.record_failure(now);
                Verdict::Unknown
            }
            Ending::Failed => {
                health.record_failure(now);
                Verdict::Failed
            }
            Ending::Other => Verdict::Unknown,
        };
        health.judge(verdict, role, now);
    }

    /// A call that was given up shows that the address is slow by now, and one without a response for very
    /// long that it fails.
    fn give_up(&self, role: Role) {
        let now = Instant::now();
        let (health, elapsed) = (&self.health, now - self.began);
        let ratio = health.record_without_success(self.timing.method(), elapsed, now);
        let is_telling = elapsed >= MIN_SILENCE && self.timing != Timing::Queued;
        let silent = is_telling && ratio.is_none_or(|ratio| ratio >= MAX_RATIO);
        let verdict = match silent {
            true => Verdict::Failed,
            false => Verdict::Unknown,
        };
        health.judge(verdict, role, now);
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

/// How long a probe may go without a response by what its method usually takes.
fn patience(usual: Duration) -> Duration {
    let ample = usual.saturating_mul(PATIENCE);
    let least = usual.saturating_mul(LEAST_PATIENCE);
    ample.clamp(MIN_PATIENCE, MAX_PATIENCE).max(least)
}

/// Records how a call ended, where that is recorded.
pub(super) fn end(trial: Option<Trial>, ending: Ending) {
    if let Some(trial) = trial {
        trial.end(ending);
    }
}

#[cfg(test)]
pub(super) mod tests;
