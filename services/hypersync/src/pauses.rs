//! How long a proposal waits for what should pass by itself.

use crate::HyperSyncError;
use std::time::Duration;
use tars_peers::Failure;
use tars_runtime::backoff::Backoff;

/// How long to wait, and for how long in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pacing {
    /// The first pause between two tries; the next is twice as long.
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    /// How long one state waits for what should pass by itself, its pauses added up. An agent is
    /// held meanwhile, so whatever lasts longer is not waited for but taken back, or told to a person.
    pub(crate) patience: Duration,
    /// Between two tries of a training run that found no learner.
    pub(crate) busy: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            patience: Duration::from_secs(3600),
            busy: Duration::from_secs(1),
        }
    }
}

/// The pauses between the tries of a step.
#[derive(Debug)]
pub(crate) struct Pauses {
    pacing: Pacing,
    backoff: Backoff,
    waited: Duration,
}

impl Pauses {
    pub(crate) fn new(pacing: Pacing) -> Self {
        Self {
            pacing,
            backoff: Backoff::new(pacing.first, pacing.longest),
            waited: Duration::ZERO,
        }
    }

    /// Begins anew: what was waited for has come.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.pacing);
    }

    /// How long to wait after an error. What is busy is there and answers: patience begins anew.
    pub(crate) fn after(&mut self, error: &HyperSyncError) -> Duration {
        let pause = self.backoff.next_delay();
        self.waited = match error.failure() {
            Some(Failure::Busy) => Duration::ZERO,
            _ => self.waited + pause,
        };
        pause
    }

    pub(crate) fn is_patient(&self) -> bool {
        self.waited < self.pacing.patience
    }
}
