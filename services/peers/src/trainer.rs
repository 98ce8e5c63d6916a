//! Evaluations of hyperparameters by training runs, as used by searches and measurements.

use crate::PeerError;
use futures_util::{Stream, StreamExt, stream::BoxStream};
use std::fmt;
use tars_proto::params::Params;
use tonic::Status;

/// Episodes of the greedy evaluation that ends a run. It is the same for searches and measurements, so
/// that their results are comparable.
pub(crate) const EVAL_EPISODES: u32 = 20;

/// A request to train an agent from scratch and evaluate it.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The algorithm's name, such as `dqn`.
    pub agent_type: String,
    /// The environment's name, such as `cartpole`.
    pub environment: String,
    /// The agent that learns; fixed rules act for the others of its environment.
    pub agent: String,
    /// Hyperparameters; missing ones have the algorithm's defaults.
    pub hyperparameters: Params,
    /// Determines the result: the same request gives the same returns.
    pub seed: u64,
    /// Environment steps to train for.
    pub steps: u64,
    /// The number of progress reports, spread evenly over the steps.
    pub reports: u32,
    /// The owner whose share of the learners the run takes.
    pub on_behalf_of: String,
    /// Whether the run verifies an applied proposal; such runs have a learner of their own.
    pub verification: bool,
    /// The name of the lease for the work that the run is a part of, up to 64 characters.
    pub work_id: String,
    /// The lease's fencing token. Once a larger one was given for the same work, the run ends as
    /// [`Failure::Superseded`](crate::Failure::Superseded).
    pub fencing_token: u64,
}

/// A message from a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// The run has left the queue: from now on it takes steps.
    Began,
    /// An intermediate report.
    Progress {
        /// Environment steps so far.
        step: u64,
        /// The mean return of the episodes since the last report; `None` where none has ended.
        mean_return: Option<f64>,
    },
    /// The last update: the mean return of the greedy evaluation.
    Ended(f64),
}

/// A run in progress. Dropping it stops the run.
pub struct Run(BoxStream<'static, Result<Update, PeerError>>);

impl Run {
    /// A run with these updates. A stream that ends without [`Update::Ended`] is a lost run.
    pub fn new(updates: impl Stream<Item = Result<Update, PeerError>> + Send + 'static) -> Self {
        Self(updates.boxed())
    }

    /// Waits for the next update. This method is cancel safe.
    ///
    /// # Errors
    ///
    /// When the run fails. A run that ends without a result is [`Failure::Transient`].
    ///
    /// [`Failure::Transient`]: crate::Failure::Transient
    pub async fn next(&mut self) -> Result<Update, PeerError> {
        let update = self.0.next().await;
        update
            .unwrap_or_else(|| Err(Status::unavailable("the trainer's stream ended early").into()))
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

/// A service that runs evaluations.
pub trait Trainer: fmt::Debug + Send + Sync {
    /// Requests an evaluation, which starts when the run is first polled.
    fn evaluate(&self, evaluation: Evaluation) -> Run;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Failure;
    use futures_util::stream;

    const PROGRESS: Update = Update::Progress {
        step: 10,
        mean_return: Some(1.0),
    };

    #[tokio::test]
    async fn updates_arrive_in_order_up_to_the_result() {
        let mut run = Run::new(stream::iter([Ok(PROGRESS), Ok(Update::Ended(7.0))]));
        assert_eq!(run.next().await.unwrap(), PROGRESS);
        assert_eq!(run.next().await.unwrap(), Update::Ended(7.0));
    }

    #[tokio::test]
    async fn a_run_that_ends_without_a_result_is_transient() {
        let mut run = Run::new(stream::iter([Ok(PROGRESS)]));
        assert_eq!(run.next().await.unwrap(), PROGRESS);
        assert_eq!(run.next().await.unwrap_err().failure(), Failure::Transient);
    }
}
