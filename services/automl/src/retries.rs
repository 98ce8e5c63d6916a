//! How long a study waits for failures that should pass.

use crate::AutomlError;
use std::time::Duration;
use tars_peers::Failure;
use tars_runtime::backoff::{Backoff, Patience};

/// Consecutive attempts of a trial while Orchestration is unreachable.
const MAX_RETRIES: u32 = 20;

/// The delays between attempts, and their bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pacing {
    /// The delay before a trial is retried, which grows by this much each time.
    pub(crate) trial: Duration,
    /// The delay before a database access is retried, which then doubles.
    pub(crate) access: Duration,
    /// The bound on every delay.
    pub(crate) longest: Duration,
    /// How long one database access is retried, as the sum of its delays.
    pub(crate) patience: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            trial: Duration::from_secs(1),
            access: Duration::from_millis(100),
            longest: Duration::from_secs(30),
            patience: Duration::from_secs(1800),
        }
    }
}

/// The attempts of one trial. Waiting for capacity is unbounded, because a full queue is no failure of
/// the trial.
#[derive(Debug)]
pub(crate) struct TrialRetries {
    pacing: Pacing,
    next: Duration,
    away: u32,
}

impl TrialRetries {
    pub(crate) fn new(pacing: Pacing) -> Self {
        Self {
            pacing,
            next: pacing.trial,
            away: 0,
        }
    }

    /// The delay before the next attempt; `None` when the failure is final.
    pub(crate) fn after(&mut self, failure: Failure) -> Option<Duration> {
        self.away = match failure {
            Failure::Busy => 0,
            Failure::Transient if self.away < MAX_RETRIES => self.away + 1,
            _ => return None,
        };
        let pause = self.next.min(self.pacing.longest);
        self.next = pause + self.pacing.trial;
        Some(pause)
    }
}

/// The attempts of one database access.
#[derive(Debug)]
pub(crate) struct AccessRetries(Patience);

impl AccessRetries {
    pub(crate) fn new(pacing: Pacing) -> Self {
        let backoff = Backoff::new(pacing.access, pacing.longest);
        Self(Patience::new(backoff, pacing.patience))
    }

    /// How long to wait before the next try; `None` when the failure does not pass, or has not for
    /// too long.
    pub(crate) fn after(&mut self, error: &AutomlError) -> Option<Duration> {
        let passes = matches!(error, AutomlError::Store(e) if e.is_transient());
        (passes && self.0.is_left()).then(|| self.pause())
    }

    /// How long to wait before the next try of what must be done, whatever the failure.
    pub(crate) fn pause(&mut self) -> Duration {
        self.0.next_delay()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_peers::PeerError;
    use tars_runtime::db::DbError;
    use tonic::Status;

    const PACING: fn() -> Pacing = Pacing::default;

    #[test]
    fn waiting_for_capacity_never_fails_a_trial() {
        let mut retries = TrialRetries::new(PACING());
        for _ in 0..1000 {
            let pause = retries.after(Failure::Busy).expect("waits");
            assert!(pause >= PACING().trial && pause <= PACING().longest);
        }
    }

    #[test]
    fn an_unreachable_trainer_is_retried_a_bounded_number_of_times() {
        let mut retries = TrialRetries::new(PACING());
        for n in 1..=MAX_RETRIES {
            let pause = retries.after(Failure::Transient);
            assert_eq!(pause, Some(PACING().trial * n));
        }
        assert_eq!(retries.after(Failure::Transient), None);
        assert!(retries.after(Failure::Busy).is_some(), "it is there again");
        assert!(retries.after(Failure::Transient).is_some());
        for outcome in [Failure::Refused, Failure::VersionChanged, Failure::Failed] {
            assert_eq!(TrialRetries::new(PACING()).after(outcome), None);
        }
    }

    #[test]
    fn a_busy_database_is_retried_for_a_bounded_time() {
        let busy = AutomlError::Store(DbError::Unavailable("busy".to_owned()));
        let (mut accesses, mut waited) = (AccessRetries::new(PACING()), Duration::ZERO);
        while let Some(pause) = accesses.after(&busy) {
            assert!(pause <= PACING().longest);
            waited += pause;
        }
        let patience = PACING().patience;
        assert!(waited >= patience && waited < patience + PACING().longest);
    }

    #[test]
    fn permanent_failures_are_not_retried() {
        for error in [
            AutomlError::Store(DbError::Failed("no row".to_owned())),
            AutomlError::StudyFull,
            AutomlError::Worker,
            AutomlError::from(PeerError::from(Status::unavailable("no route"))),
        ] {
            assert_eq!(
                AccessRetries::new(PACING()).after(&error),
                None,
                "{error:?}"
            );
        }
    }
}
