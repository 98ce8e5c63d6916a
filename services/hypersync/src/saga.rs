//! Applying: reload, read back, verify by training, or roll back.
//!
//! Each step commits its state before the next begins, and each call to Orchestration carries an
//! operation id that is done once: whenever the process stops, the saga goes on from the last
//! committed state and repeats at most what changes nothing when repeated.

use crate::{
    HyperSync, HyperSyncError,
    store::{Proposal, State, Verification},
};
use std::{sync::Arc, time::Duration};
use tars_interceptors::{
    call::{in_current_trace, with_trace},
    client::finish,
};
use tars_proto::{
    fault,
    orchestration::v1::{
        ApplyHyperparametersRequest, EvaluateHyperparametersRequest, ReadHyperparametersRequest,
    },
    params::{self, Params},
};
use tars_runtime::trace::{Kind, Parent, Tracer};
use tars_search::interval::bootstrap;
use tokio::task::JoinSet;
use tonic::{Code, Status};

const EVAL_EPISODES: u32 = 20;
const DEFAULT_STEPS: u64 = 20_000;
const MAX_BACKOFF: Duration = Duration::from_secs(30);

impl HyperSync {
    /// Goes on with every proposal that was being applied.
    pub async fn resume(self: &Arc<Self>, tracer: &Tracer) -> Result<usize, HyperSyncError> {
        let proposals = self.store.unfinished().await?;
        let count = proposals.len();
        for proposal in proposals {
            tracing::info!(proposal = %proposal.id, state = proposal.state.as_str(), "proposal resumed");
            self.run_in_background(proposal, tracer);
        }
        Ok(count)
    }

    pub(crate) fn run_in_background(self: &Arc<Self>, proposal: Proposal, tracer: &Tracer) {
        let this = Arc::clone(self);
        let parent = Parent::kept(&proposal.traceparent);
        let mut span = tracer.start("hypersync.apply", Kind::Internal, parent);
        span.set("tars.proposal.id", proposal.id.to_string());
        span.set("tars.agent.id", proposal.agent_id.clone());
        tokio::spawn(with_trace(span, async move {
            let id = proposal.id;
            if let Err(e) = this.run(proposal).await {
                // The state is committed: the next start goes on from it.
                tracing::error!(proposal = %id, error = %e, "applying stopped");
            }
        }));
    }

    async fn run(&self, mut proposal: Proposal) -> Result<(), HyperSyncError> {
        let mut backoff = Duration::from_millis(500);
        while !proposal.state.is_final() {
            let committed = proposal.clone();
            match self.step(&mut proposal).await {
                Ok(()) => backoff = Duration::from_millis(500),
                Err(HyperSyncError::Call(status)) if is_passing(&status) => {
                    tracing::info!(proposal = %proposal.id, error = status.message(), "applying waits");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                Err(HyperSyncError::Store(e)) => {
                    tracing::warn!(proposal = %proposal.id, error = %e, "applying waits for the database");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    // Whether the step was committed is not known: look, or try it again.
                    proposal = self.get(committed.id).await.unwrap_or(committed);
                }
                Err(HyperSyncError::Call(status)) => {
                    self.give_up(&mut proposal, status.message()).await?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn step(&self, proposal: &mut Proposal) -> Result<(), HyperSyncError> {
        match proposal.state {
            State::Applying => self.apply(proposal).await,
            State::Verifying => self.verify(proposal).await,
            State::RollingBack => self.roll_back(proposal).await,
            _ => Ok(()),
        }
    }

    /// What failed for good before the change was live fails the proposal; after, it is rolled
    /// back; a rollback that cannot be done is a failure that somebody must look at.
    async fn give_up(&self, proposal: &mut Proposal, why: &str) -> Result<(), HyperSyncError> {
        why.clone_into(&mut proposal.error);
        let next = if proposal.state == State::Verifying {
            State::RollingBack
        } else {
            State::Failed
        };
        self.advance(proposal, next).await
    }

    async fn apply(&self, proposal: &mut Proposal) -> Result<(), HyperSyncError> {
        let operation = proposal.id.to_string();
        let version = self
            .set(
                proposal,
                &proposal.new_params,
                proposal.base_version,
                &operation,
            )
            .await?;
        let (live, live_version) = self.read_back(&proposal.agent_id).await?;
        proposal.applied_version = version;
        proposal.applied_us = Some(self.clock.now_us());
        let same = proposal
            .new_params
            .iter()
            .all(|(name, value)| live.get(name) == Some(value));
        if live_version == version && same {
            return self.advance(proposal, State::Verifying).await;
        }
        proposal.error = "the agent does not have what was applied".to_owned();
        self.advance(proposal, State::RollingBack).await
    }

    /// Trains old and new hyperparameters on the same seeds, none of which the search has used.
    async fn verify(&self, proposal: &mut Proposal) -> Result<(), HyperSyncError> {
        let seeds = verification_seeds(proposal);
        let mut candidate = proposal.current_params.clone();
        candidate.extend(proposal.new_params.clone());
        let mut runs: JoinSet<(usize, bool, Result<f64, HyperSyncError>)> = JoinSet::new();
        for (i, seed) in seeds.iter().enumerate() {
            for (is_candidate, values) in [(false, &proposal.current_params), (true, &candidate)] {
                let run = self.evaluation(proposal, values.clone(), *seed);
                runs.spawn(in_current_trace(
                    async move { (i, is_candidate, run.await) },
                ));
            }
        }
        let mut returns = [vec![0.0; seeds.len()], vec![0.0; seeds.len()]];
        while let Some(done) = runs.join_next().await {
            let (i, is_candidate, result) =
                done.map_err(|_| HyperSyncError::Answer("a training run's end"))?;
            returns[usize::from(is_candidate)][i] = result?;
        }
        let [baseline, candidate] = returns;
        let differences: Vec<f64> = candidate
            .iter()
            .zip(&baseline)
            .map(|(c, b)| c - b)
            .collect();
        let interval =
            bootstrap(&differences, seeds[0]).ok_or(HyperSyncError::Answer("enough seeds"))?;
        proposal.verification = Some(Verification {
            seeds,
            baseline,
            candidate,
            improvement: interval.mean,
            low: interval.low,
            high: interval.high,
            steps: steps(proposal),
        });
        if interval.low > 0.0 {
            return self.advance(proposal, State::Completed).await;
        }
        proposal.error = "the improvement's interval is not above zero".to_owned();
        self.advance(proposal, State::RollingBack).await
    }

    async fn roll_back(&self, proposal: &mut Proposal) -> Result<(), HyperSyncError> {
        let operation = format!("{}:rollback", proposal.id);
        self.set(
            proposal,
            &proposal.current_params,
            proposal.applied_version,
            &operation,
        )
        .await?;
        let (live, _) = self.read_back(&proposal.agent_id).await?;
        if proposal
            .current_params
            .iter()
            .all(|(name, value)| live.get(name) == Some(value))
        {
            return self.advance(proposal, State::RolledBack).await;
        }
        proposal
            .error
            .push_str("; and the agent does not have its old values back");
        self.advance(proposal, State::Failed).await
    }

    async fn set(
        &self,
        proposal: &Proposal,
        values: &Params,
        expected_version: u64,
        operation: &str,
    ) -> Result<u64, HyperSyncError> {
        let request = ApplyHyperparametersRequest {
            agent_id: proposal.agent_id.clone(),
            hyperparameters: Some(params::to_struct(values)),
            expected_version,
            operation_id: operation.to_owned(),
            on_behalf_of: proposal.applied_by.clone(),
        };
        Ok(self
            .peers
            .agents
            .clone()
            .apply_hyperparameters(request)
            .await?
            .into_inner()
            .version)
    }

    async fn read_back(&self, agent_id: &str) -> Result<(Params, u64), HyperSyncError> {
        let request = ReadHyperparametersRequest {
            agent_id: agent_id.to_owned(),
        };
        let answer = self
            .peers
            .agents
            .clone()
            .read_hyperparameters(request)
            .await?
            .into_inner();
        Ok((
            params::from_struct(answer.hyperparameters.unwrap_or_default())?,
            answer.version,
        ))
    }

    /// One training run to its end, as a future of its own.
    fn evaluation(
        &self,
        proposal: &Proposal,
        values: Params,
        seed: u64,
    ) -> impl Future<Output = Result<f64, HyperSyncError>> + Send + 'static {
        let request = EvaluateHyperparametersRequest {
            agent_type: proposal.agent_type.clone(),
            environment: proposal.environment.clone(),
            hyperparameters: Some(params::to_struct(&values)),
            seed,
            steps: steps(proposal),
            eval_episodes: EVAL_EPISODES,
            reports: 1,
            after_sequence: 0,
            on_behalf_of: proposal.applied_by.clone(),
        };
        let mut training = self.peers.training.clone();
        async move {
            let mut items = training
                .evaluate_hyperparameters(request)
                .await?
                .into_inner();
            while let Some(item) = items.message().await? {
                if let Some(result) = item.result {
                    finish(items).await;
                    return Ok(result.mean_return);
                }
            }
            Err(Status::unavailable("the trainer's stream ended early").into())
        }
    }
}

fn steps(proposal: &Proposal) -> u64 {
    if proposal.steps == 0 {
        DEFAULT_STEPS
    } else {
        proposal.steps
    }
}

/// Odd numbers: a search trains on even ones.
fn verification_seeds(proposal: &Proposal) -> Vec<u64> {
    let base = (proposal.id.as_u128() as u64) >> 13;
    (0..u64::from(proposal.verification_seeds))
        .map(|i| ((base + i) << 1 | 1) & ((1 << 53) - 1))
        .collect()
}

fn is_passing(status: &Status) -> bool {
    let busy = fault::reason(status).is_some_and(|r| r == "LEARNERS_BUSY" || r == "RATE_LIMITED");
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    ) || busy
}
