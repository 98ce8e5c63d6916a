//! Whether an address gets calls.
//!
//! ```text
//!            five failures in a row, or half of the
//!            calls of a while, and others are left
//!   Closed ───────────────────────────────────────► Open ◄───┐
//!      ▲                                              │      │ the probe failed:
//!      │ the probe succeeded               its time is up    │ for longer
//!      │                                              ▼      │
//!      └────────────────────────────────────────── HalfOpen ─┘
//! ```
//!
//! An address that fails is *ejected*: it gets no calls for a while that doubles. Then one call is let
//! through as a probe. That is one that can be sent again elsewhere, so that nobody feels it when the probe
//! fails, or is not responded to in time; only after a further while without such a call it may be any. A
//! response that says nothing about the address's health, such as an exceeded limit, neither ejects nor
//! readmits it.
//!
//! A probe is judged by its end. Where its response has begun and may take long, it has succeeded once nothing
//! bad has followed for a while; and a probe without any result does not keep the address out for as long as its
//! caller waits: after a while the next one may show more.

use super::ejections::Ejection;
use std::time::Duration;
use tars_runtime::{backoff::Backoff, seeds::Seeds};
use tokio::time::Instant;

/// So many failures in a row eject an address.
const FAILURES_IN_A_ROW: u32 = 5;
/// The time over which the share of failures is counted.
const WINDOW: Duration = Duration::from_secs(10);
/// The minimum number of calls in it that tell anything.
const MIN_CALLS: u32 = 20;
/// How long the first ejection lasts at most.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// How long an ejection lasts at most, however often it is repeated.
const MAX_EJECTION: Duration = Duration::from_secs(30);
/// How long an address waits for a call that can be sent again, before any call is its probe.
const ANY_PROBE_AFTER: Duration = Duration::from_secs(10);
/// How long nothing may follow the beginning of a response to a probe, before the probe has succeeded.
const PROBATION: Duration = Duration::from_secs(1);
/// How long a probe may have no result, before another call is a probe, too.
const NEXT_PROBE_AFTER: Duration = Duration::from_secs(10);

/// What a call tells of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It works.
    Healthy,
    /// It does not.
    Failed,
    /// Nothing.
    Unknown,
}

/// Where a breaker stands, as those see it who watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    Open,
    HalfOpen,
}

impl Phase {
    /// Its name as a metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What a change of the breaker means for the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing changed.
    None,
    /// The address was ejected.
    Ejected,
    /// A call shows whether the address works again.
    Probed,
    /// The probe brought nothing good, and the address stays ejected.
    Reopened,
    /// The address gets calls again.
    Readmitted,
}

impl Change {
    /// From where to where it led.
    pub(super) fn phases(self) -> Option<(Phase, Phase)> {
        match self {
            Self::None => None,
            Self::Ejected => Some((Phase::Closed, Phase::Open)),
            Self::Probed => Some((Phase::Open, Phase::HalfOpen)),
            Self::Reopened => Some((Phase::HalfOpen, Phase::Open)),
            Self::Readmitted => Some((Phase::HalfOpen, Phase::Closed)),
        }
    }
}

#[derive(Debug)]
enum State {
    Closed(Counts),
    Open {
        until: Instant,
    },
    HalfOpen {
        /// When the last probe was sent.
        sent: Instant,
        /// When a response to one of them began.
        accepted: Option<Instant>,
    },
}

/// The results of the calls of a while.
#[derive(Debug)]
struct Counts {
    since: Instant,
    calls: u32,
    failures: u32,
    in_a_row: u32,
}

impl Counts {
    fn new(since: Instant) -> Self {
        Self {
            since,
            calls: 0,
            failures: 0,
            in_a_row: 0,
        }
    }

    fn record(&mut self, failed: bool, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            *self = Self {
                in_a_row: self.in_a_row,
                ..Self::new(now)
            };
        }
        self.calls += 1;
        self.failures += u32::from(failed);
        self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
    }

    fn are_too_bad(&self) -> bool {
        let half = self.calls >= MIN_CALLS && self.failures * 2 >= self.calls;
        self.in_a_row >= FAILURES_IN_A_ROW || half
    }
}

/// The breaker of one address.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// The address's place among those that are ejected.
    held: Option<Ejection>,
    backoff: Backoff,
    /// How often it was ejected, since it last worked for a while.
    ejections: u32,
    readmitted: Instant,
}

impl Breaker {
    pub(super) fn new(seeds: Seeds, now: Instant) -> Self {
        Self {
            state: State::Closed(Counts::new(now)),
            held: None,
            backoff: Backoff::new(FIRST_EJECTION, MAX_EJECTION).with_jitter(seeds),
            ejections: 0,
            readmitted: now,
        }
    }

    /// Lets one call through to an address whose ejection is over, and returns what that changes; `None` when
    /// it is not time for one. `spare` tells whether the call can be sent to another address when it fails.
    pub(super) fn try_probe(&mut self, spare: bool, now: Instant) -> Option<Change> {
        let (due, change) = match self.state {
            State::Closed(_) => return None,
            State::Open { until } if spare => (until, Change::Probed),
            State::Open { until } => (until + ANY_PROBE_AFTER, Change::Probed),
            State::HalfOpen { sent, .. } => (sent + NEXT_PROBE_AFTER, Change::None),
        };
        if now < due {
            return None;
        }
        self.state = State::HalfOpen {
            sent: now,
            accepted: None,
        };
        Some(change)
    }

    /// Records that a response to a probe has begun. A fault may still follow.
    pub(super) fn accept_probe(&mut self, now: Instant) {
        if let State::HalfOpen { accepted, .. } = &mut self.state {
            accepted.get_or_insert(now);
        }
    }

    /// Readmits an address that has accepted a probe, when nothing bad has followed for a while.
    pub(super) fn settle(&mut self, now: Instant) -> Change {
        match self.state {
            State::HalfOpen {
                accepted: Some(at), ..
            } if now.saturating_duration_since(at) >= PROBATION => self.readmit(now),
            _ => Change::None,
        }
    }

    /// Records the result of a probe.
    pub(super) fn record_probe(&mut self, verdict: Verdict, now: Instant) -> Change {
        if !matches!(self.state, State::HalfOpen { .. }) {
            return Change::None;
        }
        match verdict {
            Verdict::Healthy => self.readmit(now),
            Verdict::Failed => {
                self.eject(now);
                Change::Reopened
            }
            // The next call is the probe.
            Verdict::Unknown => {
                self.state = State::Open { until: now };
                Change::Reopened
            }
        }
    }

    fn readmit(&mut self, now: Instant) -> Change {
        self.state = State::Closed(Counts::new(now));
        self.readmitted = now;
        self.held = None;
        Change::Readmitted
    }

    /// Records the result of a call that was no probe. `place` is asked for one among those that are
    /// ejected when the address should be; without one it stays.
    pub(super) fn record(
        &mut self,
        verdict: Verdict,
        now: Instant,
        place: impl FnOnce() -> Option<Ejection>,
    ) -> Change {
        // A call that began before the ejection says nothing new.
        let State::Closed(counts) = &mut self.state else {
            return Change::None;
        };
        if verdict == Verdict::Unknown {
            return Change::None;
        }
        counts.record(verdict == Verdict::Failed, now);
        if verdict == Verdict::Healthy || !counts.are_too_bad() {
            return Change::None;
        }
        self.held = place();
        if self.held.is_none() {
            return Change::None;
        }
        if now.saturating_duration_since(self.readmitted) > MAX_EJECTION {
            self.ejections = 0;
        }
        self.eject(now);
        Change::Ejected
    }

    fn eject(&mut self, now: Instant) {
        self.ejections = self.ejections.saturating_add(1);
        let until = now + self.backoff.after(self.ejections);
        self.state = State::Open { until };
    }
}

#[cfg(test)]
mod tests;
