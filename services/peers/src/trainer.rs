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
pub struct Run {
    updates: BoxStream<'static, Result<Update, PeerError>>,
    /// Whether it is known to have left the queue.
    began: bool,
    /// What showed that it had.
    next: Option<Update>,
}

impl Run {
    /// A run with these updates. A stream that ends without [`Update::Ended`] is a lost run.
    pub fn new(updates: impl Stream<Item = Result<Update, PeerError>> + Send + 'static) -> Self {
        Self {
            updates: updates.boxed(),
            began: false,
            next: None,
        }
    }

    /// Waits for the next update, the first of which is [`Update::Began`]: a replica of an earlier version does not
    /// tell, and what takes steps has begun. This method is cancel safe.
    ///
    /// # Errors
    ///
    /// When the run fails. A run that ends without a result is [`Failure::Transient`].
    ///
    /// [`Failure::Transient`]: crate::Failure::Transient
    pub async fn next(&mut self) -> Result<Update, PeerError> {
        if let Some(next) = self.next.take() {
            return Ok(next);
        }
        let update = self.updates.next().await;
        let early = || Err(Status::unavailable("the trainer's stream ended early").into());
        let update = update.unwrap_or_else(early)?;
        if !std::mem::replace(&mut self.began, true) && update != Update::Began {
            self.next = Some(update);
            return Ok(Update::Began);
        }
        Ok(update)
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
        let told = [Update::Began, PROGRESS, Update::Ended(7.0)];
        let mut run = Run::new(stream::iter(told.map(Ok)));
        for update in told {
            assert_eq!(run.next().await.unwrap(), update);
        }
    }

    #[tokio::test]
    async fn a_run_of_which_nobody_tells_that_it_began_began_before_what_is_told_first() {
        for told in [&[PROGRESS, Update::Ended(7.0)][..], &[Update::Ended(7.0)]] {
            let mut run = Run::new(stream::iter(told.iter().copied().map(Ok)));
            assert_eq!(run.next().await.unwrap(), Update::Began);
            for update in told {
                assert_eq!(run.next().await.unwrap(), *update);
            }
        }
        let away = PeerError::from(Status::unavailable("no route"));
        let mut run = Run::new(stream::iter([Err(away)]));
        assert!(
            run.next().await.is_err(),
            "one that fails before has not begun"
        );
    }

    #[tokio::test]
    async fn a_run_that_ends_without_a_result_is_transient() {
        let mut run = Run::new(stream::iter([Ok(Update::Began), Ok(PROGRESS)]));
        assert_eq!(run.next().await.unwrap(), Update::Began);
        assert_eq!(run.next().await.unwrap(), PROGRESS);
        assert_eq!(run.next().await.unwrap_err().failure(), Failure::Transient);
    }
}
