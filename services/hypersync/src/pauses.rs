//! How long a proposal waits for failures that should pass.

use crate::HyperSyncError;
use std::time::Duration;
use tars_peers::Failure;
use tars_runtime::backoff::{Backoff, Patience};

/// The delays between attempts, and their bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pacing {
    /// The first delay between two attempts, which then doubles.
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    /// How long one state waits for failures that should pass, as the sum of its delays. The agent is
    /// held meanwhile, so a failure that lasts longer leads to a rollback, or to a person's decision.
    pub(crate) patience: Duration,
    /// The delay between two attempts of a training run that found no free learner.
    pub(crate) busy: Duration,
    /// The delay between two looks at a promoted version.
    pub(crate) look: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            patience: Duration::from_secs(3600),
            busy: Duration::from_secs(1),
            look: Duration::from_secs(1),
        }
    }
}

/// The delays between the attempts of a step.
#[derive(Debug)]
pub(crate) struct Pauses(Patience);

impl Pauses {
    pub(crate) fn new(pacing: Pacing) -> Self {
        let backoff = Backoff::new(pacing.first, pacing.longest);
        Self(Patience::new(backoff, pacing.patience))
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    /// The delay after an error. A busy peer is reachable, so it does not use up the patience.
    pub(crate) fn after(&mut self, error: &HyperSyncError) -> Duration {
        let pause = self.0.next_delay();
        if error.failure() == Some(Failure::Busy) {
            self.0.renew();
        }
        pause
    }

    pub(crate) fn is_patient(&self) -> bool {
        self.0.is_left()
    }
}
