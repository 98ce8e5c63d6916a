//! The attempts to connect to one address: one at a time, and after failures a pause that doubles. A
//! connection that ended before it carried a response counts as a failure, so that a server that takes
//! connections and drops them is left alone, too.

use super::{
    connected::{Carried, Connected},
    error::ChannelError,
};
use std::{sync::Arc, time::Duration};
use tars_runtime::{backoff::Backoff, seeds::Seeds};
use tokio::{sync::watch, time::Instant};

/// How long an address is left alone after its first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How long an address is left alone at most.
const MAX_PAUSE: Duration = Duration::from_secs(5);

pub(super) type Outcome = Result<Arc<Connected>, ChannelError>;
pub(super) type Attempt = watch::Receiver<Option<Outcome>>;

/// The attempts to connect to one address.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) running: Option<Attempt>,
    pub(super) failures: u32,
    backoff: Backoff,
    /// Until when the address is left alone.
    paused_until: Option<Instant>,
}

impl Attempts {
    pub(super) fn new() -> Self {
        Self {
            running: None,
            failures: 0,
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE).with_jitter(Seeds::system()),
            paused_until: None,
        }
    }

    pub(super) fn running(&self) -> Option<&Attempt> {
        // A runtime that is shut down drops attempts.
        self.running
            .as_ref()
            .filter(|attempt| attempt.has_changed().is_ok())
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.running().is_none() && self.paused_until.is_none_or(|until| now >= until)
    }

    /// Records an attempt that failed, after a connection that carried this.
    pub(super) fn record_failure(&mut self, last: Carried, now: Instant) {
        if last == Carried::Responses {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.paused_until = Some(now + self.backoff.after(self.failures));
    }

    /// Records the end of a connection.
    pub(super) fn record_end(&mut self, last: Carried, now: Instant) {
        match last {
            Carried::Responses => (self.failures, self.paused_until) = (0, None),
            Carried::Nothing => self.record_failure(last, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the address is left alone from now on.
    fn pause(attempts: &Attempts) -> Duration {
        let until = attempts.paused_until;
        until.map_or(Duration::ZERO, |until| until - Instant::now())
    }

    /// Whether a pause is the one after so many failures, or up to a half shorter.
    fn is_after(attempts: &Attempts, failures: u32) -> bool {
        let whole = Backoff::new(FIRST_PAUSE, MAX_PAUSE).after(failures);
        (whole / 2..=whole).contains(&pause(attempts))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_fails_again_and_again_is_left_alone_for_longer() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        assert!(attempts.is_due(now));
        for failures in 1..=20 {
            // Connections that end before they carry a response are failures, too.
            match failures % 2 {
                0 => attempts.record_failure(Carried::Nothing, now),
                _ => attempts.record_end(Carried::Nothing, now),
            }
            assert!(is_after(&attempts, failures), "{failures}");
            assert!(!attempts.is_due(now));
            assert!(attempts.is_due(now + MAX_PAUSE));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_carried_responses_may_be_replaced_at_once() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        for _ in 0..5 {
            attempts.record_failure(Carried::Nothing, now);
        }
        attempts.record_end(Carried::Responses, now);
        assert!(attempts.is_due(now));
        attempts.record_failure(Carried::Nothing, now);
        assert!(is_after(&attempts, 1), "what was before is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_after_a_connection_that_worked_is_the_first() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        for _ in 0..5 {
            attempts.record_failure(Carried::Nothing, now);
        }
        attempts.record_failure(Carried::Responses, now);
        assert!(is_after(&attempts, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_is_due_beside_one_that_runs() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        let (report, running) = watch::channel(None);
        attempts.running = Some(running);
        assert!(!attempts.is_due(now));
        drop(report);
        assert!(attempts.is_due(now), "its runtime was shut down");
    }
}
