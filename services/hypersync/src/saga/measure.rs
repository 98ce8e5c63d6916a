//! Paired measurements: old and new parameters are trained on the same seeds, and the mean of the paired
//! differences gets a bootstrap confidence interval (Efron, 1979). A proposal is measured twice, on
//! different seeds: for the decision about it, and after it was applied.

use super::token_of;
use crate::{
    HyperSync, HyperSyncError,
    change::{Tuning, Verification},
    ownership::{assessment_lease, saga_lease},
    store::Proposal,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tars_peers::{Evaluation, Failure, Run, Update, seeds};
use tars_proto::params::Params;
use tars_runtime::lease::Fence;
use tars_search::interval::bootstrap;
use uuid::Uuid;

/// Training runs of one measurement that are running or queued at the same time.
const AT_ONCE: usize = 8;

/// The purpose of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Assessment,
    Verification,
}

impl Purpose {
    pub(crate) const ALL: [Self; 2] = [Self::Assessment, Self::Verification];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Assessment => "assessment",
            Self::Verification => "verification",
        }
    }
}

/// The seeds of a measurement, which are disjoint between the purposes.
pub(crate) fn seeds_of(id: Uuid, tuning: &Tuning, purpose: Purpose) -> Vec<u64> {
    let base = (id.as_u128() as u64) >> 13;
    let count = u64::from(tuning.verification_seeds);
    let first = match purpose {
        Purpose::Verification => 0,
        Purpose::Assessment => count,
    };
    (first..first + count)
        .map(|i| seeds::for_measurement(base + i))
        .collect()
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn summary(
    seeds: Vec<u64>,
    [baseline, candidate]: [Vec<f64>; 2],
    steps: u64,
) -> Result<Verification, HyperSyncError> {
    let paired = candidate.iter().zip(&baseline);
    let differences: Vec<f64> = paired.map(|(c, b)| c - b).collect();
    let seed = seeds.first().copied().unwrap_or_default();
    let interval =
        bootstrap(&differences, seed).ok_or(HyperSyncError::IncompleteResponse("enough seeds"))?;
    Ok(Verification {
        seeds,
        baseline,
        candidate,
        improvement: interval.mean,
        low: interval.low,
        high: interval.high,
        steps,
    })
}

impl HyperSync {
    pub(crate) async fn measure(
        &self,
        proposal: &Proposal,
        tuning: &Tuning,
        purpose: Purpose,
        fence: &Fence,
    ) -> Result<Verification, HyperSyncError> {
        let token = token_of(fence)?;
        let seeds = seeds_of(proposal.id, tuning, purpose);
        let mut candidate = tuning.current_params.clone();
        candidate.extend(tuning.new_params.clone());
        let each = evaluation(proposal, purpose, token);
        let mut runs = Vec::with_capacity(2 * seeds.len());
        for seed in &seeds {
            for values in [&tuning.current_params, &candidate] {
                runs.push(Evaluation {
                    hyperparameters: values.clone(),
                    seed: *seed,
                    steps: tuning.steps,
                    ..each.clone()
                });
            }
        }
        let shown = self.measurements.begin(proposal.id, purpose, runs.len());
        self.changes.wake();
        let run = async |(evaluation, number)| {
            let began = || self.charge(proposal.id, purpose, (number, tuning.steps), fence);
            let mean_return = self.mean_return(evaluation, began).await?;
            shown.run_ended();
            self.changes.wake();
            Ok::<_, HyperSyncError>(mean_return)
        };
        let runs = stream::iter(runs.into_iter().zip(1..));
        let runs = runs.map(run).buffered(AT_ONCE);
        let returns: Vec<f64> = runs.try_collect().await?;
        let of = |side: usize| returns.iter().skip(side).step_by(2).copied().collect();
        let sides = [of(0), of(1)];
        summary(seeds, sides, tuning.steps)
    }

    /// The mean return of one training run. It is retried while the learners are busy.
    async fn mean_return<F>(
        &self,
        evaluation: Evaluation,
        began: impl Fn() -> F,
    ) -> Result<f64, HyperSyncError>
    where
        F: Future<Output = Result<(), HyperSyncError>>,
    {
        loop {
            let mut run = self.peers.trainer.evaluate(evaluation.clone());
            match ended(&mut run, &began).await {
                Err(HyperSyncError::Call(e)) if e.failure() == Failure::Busy => {
                    tokio::time::sleep(self.pacing.busy).await;
                }
                other => return other,
            }
        }
    }
}

/// Follows a run to its result.
async fn ended<F>(run: &mut Run, began: impl Fn() -> F) -> Result<f64, HyperSyncError>
where
    F: Future<Output = Result<(), HyperSyncError>>,
{
    loop {
        match run.next().await? {
            Update::Began => began().await?,
            Update::Progress { .. } => {}
            Update::Ended(mean_return) => return Ok(mean_return),
        }
    }
}

/// What the training runs of a measurement have in common.
fn evaluation(proposal: &Proposal, purpose: Purpose, fencing_token: u64) -> Evaluation {
    let (on_behalf_of, work_id) = match purpose {
        Purpose::Assessment => (&proposal.proposer_owner, assessment_lease(proposal.id)),
        Purpose::Verification => (&proposal.applied_by, saga_lease(proposal.id)),
    };
    Evaluation {
        agent_type: proposal.agent_type.clone(),
        environment: proposal.environment.clone(),
        agent: proposal.agent_id.clone(),
        hyperparameters: Params::new(),
        seed: 0,
        steps: 0,
        reports: 1,
        on_behalf_of: on_behalf_of.clone(),
        verification: purpose == Purpose::Verification,
        work_id,
        fencing_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::tuning;
    use std::collections::BTreeSet;

    #[test]
    fn assessment_and_verification_share_no_seed() {
        let (id, tuning) = (Uuid::now_v7(), tuning());
        let verification = seeds_of(id, &tuning, Purpose::Verification);
        let assessment = seeds_of(id, &tuning, Purpose::Assessment);
        let all: BTreeSet<u64> = verification.iter().chain(&assessment).copied().collect();
        assert_eq!(all.len(), 2 * tuning.verification_seeds as usize);
        assert_eq!(seeds_of(id, &tuning, Purpose::Verification), verification);
    }

    #[test]
    fn the_improvement_is_the_mean_of_paired_differences() {
        let sides = [vec![10.0, 20.0, 30.0], vec![11.0, 21.0, 31.0]];
        let measured = summary(vec![1, 3, 5], sides, 100).unwrap();
        assert_eq!(
            (measured.improvement, measured.low, measured.high),
            (1.0, 1.0, 1.0)
        );
        assert!(summary(vec![1], [vec![1.0], vec![2.0]], 100).is_err());
    }
}
