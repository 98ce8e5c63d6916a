//! Training runs that evaluate hyperparameters, as a search and a measurement see them.

use crate::PeerError;
use futures_util::{Stream, StreamExt, stream::BoxStream};
use std::fmt;
use tars_proto::params::Params;
use tonic::Status;

/// Episodes of the greedy evaluation that ends a run. A search and what confirms it count alike.
pub(crate) const EVAL_EPISODES: u32 = 20;

/// A training run from scratch, and the return that it reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    pub agent_type: String,
    pub environment: String,
    pub hyperparameters: Params,
    pub seed: u64,
    pub steps: u64,
    /// Intermediate reports.
    pub reports: u32,
    /// Whose share of the learners the run takes.
    pub on_behalf_of: String,
    /// Part of applying a proposal, with a learner of its own.
    pub verification: bool,
}

/// What is heard of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    Progress {
        step: u64,
        mean_return: f64,
    },
    /// The last one: the mean return of the greedy evaluation.
    Ended(f64),
}

/// A run under way. Dropping it stops the run.
pub struct Run(BoxStream<'static, Result<Update, PeerError>>);

impl Run {
    pub fn new(updates: impl Stream<Item = Result<Update, PeerError>> + Send + 'static) -> Self {
        Self(updates.boxed())
    }

    /// The next update. A run that ends without a result was lost. Cancel safe.
    pub async fn next(&mut self) -> Result<Update, PeerError> {
        let update = self.0.next().await;
        update
            .unwrap_or_else(|| Err(Status::unavailable("the trainer's stream ended early").into()))
    }

    /// The mean return that the run reaches.
    pub async fn mean_return(mut self) -> Result<f64, PeerError> {
        loop {
            if let Update::Ended(mean_return) = self.next().await? {
                return Ok(mean_return);
            }
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

/// Whoever trains.
pub trait Trainer: fmt::Debug + Send + Sync {
    /// Begins a run once it is polled.
    fn evaluate(&self, evaluation: Evaluation) -> Run;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Failure;
    use futures_util::stream;

    const PROGRESS: Update = Update::Progress {
        step: 10,
        mean_return: 1.0,
    };

    #[tokio::test]
    async fn progress_comes_before_the_result() {
        let run = || Run::new(stream::iter([Ok(PROGRESS), Ok(Update::Ended(7.0))]));
        assert_eq!(run().mean_return().await.unwrap(), 7.0);
        let mut run = run();
        assert_eq!(run.next().await.unwrap(), PROGRESS);
        assert_eq!(run.next().await.unwrap(), Update::Ended(7.0));
    }

    #[tokio::test]
    async fn a_run_that_ends_without_a_result_may_be_tried_again() {
        let lost = Run::new(stream::iter([Ok(PROGRESS)])).mean_return().await;
        assert_eq!(lost.unwrap_err().failure(), Failure::Transient);
    }
}
