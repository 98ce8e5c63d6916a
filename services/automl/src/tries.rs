//! How long a study waits for what should pass by itself.

use crate::AutomlError;
use std::time::Duration;
use tars_proto::fault;
use tars_runtime::db;
use tonic::{Code, Status};

/// How often in succession a trial is tried again while Orchestration is away.
const MAX_RETRIES: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one access to the database is repeated, its pauses added up.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The tries of one trial. There is no end to waiting for room: a full queue or share says nothing of
/// the trial.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    all: u64,
    away: u32,
}

impl Retries {
    /// How long to wait before the next try; `None` when the failure is the outcome.
    pub(crate) fn after(&mut self, status: &Status) -> Option<Duration> {
        if fault::is_busy(status) {
            self.away = 0;
        } else {
            let passes = matches!(status.code(), Code::Unavailable | Code::Unknown);
            if !passes || self.away == MAX_RETRIES {
                return None;
            }
            self.away += 1;
        }
        self.all += 1;
        Some(Duration::from_secs(self.all).min(LONGEST_PAUSE))
    }
}

/// The tries of one access to the database.
#[derive(Debug)]
pub(crate) struct Accesses {
    next: Duration,
    waited: Duration,
}

impl Default for Accesses {
    fn default() -> Self {
        Self {
            next: Duration::from_millis(100),
            waited: Duration::ZERO,
        }
    }
}

impl Accesses {
    /// How long to wait before the next try; `None` when the failure does not pass, or has not for
    /// too long.
    pub(crate) fn after(&mut self, error: &AutomlError) -> Option<Duration> {
        let passes = matches!(error, AutomlError::Store(e) if db::is_passing(e));
        if !passes || self.waited >= PATIENCE {
            return None;
        }
        Some(self.pause())
    }

    /// How long to wait before the next try of what must be done, whatever the failure.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        self.waited += pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_or_share_never_fails_a_trial() {
        let soon = Duration::from_secs(1);
        let full = [
            fault::share_full("peer", "calls", soon),
            fault::overloaded("too many calls are in flight", soon),
            fault::spent("LEARNERS_BUSY", "learners", "too many runs wait", soon),
        ];
        let mut retries = Retries::default();
        for status in full.iter().cycle().take(1000) {
            let pause = retries.after(status).expect("waits");
            assert!(pause >= soon && pause <= soon * 30);
        }
    }

    #[test]
    fn an_absent_trainer_is_waited_for_a_bounded_number_of_times() {
        let away = Status::unavailable("no route");
        let mut retries = Retries::default();
        for _ in 0..MAX_RETRIES {
            assert!(retries.after(&away).is_some());
        }
        assert_eq!(retries.after(&away), None);
        assert_eq!(Retries::default().after(&fault::internal()), None);
    }

    #[test]
    fn a_busy_database_is_waited_for_a_bounded_time() {
        let busy = AutomlError::Store(db::Error::PoolTimedOut);
        let (mut accesses, mut waited) = (Accesses::default(), Duration::ZERO);
        while let Some(pause) = accesses.after(&busy) {
            assert!(pause <= LONGEST_PAUSE);
            waited += pause;
        }
        assert!(waited >= PATIENCE && waited < PATIENCE + LONGEST_PAUSE);
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        for error in [
            AutomlError::Store(db::Error::RowNotFound),
            AutomlError::StudyFull,
            AutomlError::Worker,
            AutomlError::from(Status::unavailable("no route")),
        ] {
            assert_eq!(Accesses::default().after(&error), None, "{error:?}");
        }
    }
}
