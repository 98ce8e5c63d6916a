//! The saga that applies a proposal: apply, read back, verify, or roll back. What each of these is depends on
//! the kind of change.
//!
//! Each step commits its state before the next one starts, and each call to Orchestration has an
//! idempotent operation id and the fencing token of the process that works on the proposal. A process that
//! stops at any point therefore resumes from the last committed state and repeats only calls without a
//! further effect. Orchestration holds the agent from the first step on; the saga releases it before it
//! writes its final state, so that no hold outlives its proposal. Before it hands over to a person it renews the hold as one that only a decision
//! releases. The consequence of a failed step is decided in [`plan`].

pub(crate) mod measure;
pub(crate) mod plan;
mod promotion;
mod tuning;

pub(crate) use promotion::Watch;

use crate::{
    HyperSync, HyperSyncError,
    change::Change,
    pauses::Pauses,
    store::{Proposal, State},
};
use plan::Recovery;
use std::sync::Arc;
use tars_interceptors::call::with_trace;
use tars_peers::Failure;
use tars_proto::orchestration::v1::SettleHyperparametersRequest;
use tars_runtime::{
    backoff::Backoff,
    lease::{Fence, Lease, LeaseError},
    trace::{Kind, Parent},
};
use uuid::Uuid;

impl HyperSync {
    /// Resumes every proposal that was being applied or assessed and that no other process works on, now
    /// and whenever one becomes free. Holds the agents of those that wait for a person.
    pub(crate) async fn resume_proposals(self: &Arc<Self>) -> Result<usize, HyperSyncError> {
        self.keep_agents_held();
        let proposals = self.store.unfinished().await?;
        let count = proposals.len();
        for proposal in proposals {
            if proposal.state.is_driven() {
                tracing::info!(
                    proposal = %proposal.id,
                    state = proposal.state.as_str(),
                    "a proposal is unfinished; it goes on here unless another replica has its lease"
                );
                self.run_in_background(proposal);
            } else {
                self.assess_in_background(&proposal);
            }
        }
        self.take_over_in_background();
        Ok(count)
    }

    pub(crate) fn run_in_background(self: &Arc<Self>, proposal: Proposal) {
        let this = Arc::clone(self);
        let parent = Parent::stored(&proposal.traceparent);
        let mut span = self.tracer.start("hypersync.apply", Kind::Internal, parent);
        span.set("tars.proposal.id", proposal.id.to_string());
        span.set("tars.agent.id", proposal.agent_id.clone());
        tokio::spawn(with_trace(span, async move {
            if let Some(lease) = this.acquire_saga(proposal.id).await {
                this.run_owned(proposal.id, &lease).await;
            }
        }));
    }

    /// Applies a proposal for as long as its lease is held. Whoever has the lease next continues.
    async fn run_owned(&self, id: Uuid, lease: &Lease) {
        let fence = lease.fence();
        let work = async {
            // Another process may have taken steps before this one had the lease.
            if let Some(proposal) = self.stored(id).await {
                self.run(proposal, &fence).await;
            }
        };
        if lease.run(work).await.is_none() {
            tracing::info!(proposal = %id, "a proposal is no longer applied by this process");
        }
    }

    /// The proposal as it is stored, once it can be read. What was read earlier does not take its place:
    /// another process may have ended the proposal since. `None` when there is no such proposal.
    async fn stored(&self, id: Uuid) -> Option<Proposal> {
        let mut pauses = Backoff::new(self.pacing.first, self.pacing.longest);
        loop {
            match self.get(id).await {
                Ok(proposal) => return Some(proposal),
                Err(error @ HyperSyncError::NotFound(_)) => {
                    tracing::error!(proposal = %id, %error, "a proposal is not applied any further");
                    return None;
                }
                Err(error) => {
                    tracing::warn!(proposal = %id, %error, "a proposal cannot be read; retrying");
                    tokio::time::sleep(pauses.next_delay()).await;
                }
            }
        }
    }

    /// Takes the steps that are left. Stops when the proposal belongs to another process.
    pub(crate) async fn run(&self, mut proposal: Proposal, fence: &Fence) {
        let mut pauses = Pauses::new(self.pacing);
        while proposal.state.is_driven() {
            let committed = proposal.clone();
            proposal = match self.step(&mut proposal, fence).await {
                Ok(()) => {
                    pauses.reset();
                    proposal
                }
                Err(HyperSyncError::NotOwned(_)) => return,
                Err(error) if error.failure() == Some(Failure::Superseded) => return,
                Err(error) => match self.recover(committed, &error, &mut pauses, fence).await {
                    Some(proposal) => proposal,
                    None => return,
                },
            };
        }
    }

    /// The proposal after a failed step: as it was committed, or in the state that recovery leads to. `None`
    /// when there is no such proposal any more.
    async fn recover(
        &self,
        committed: Proposal,
        error: &HyperSyncError,
        pauses: &mut Pauses,
        fence: &Fence,
    ) -> Option<Proposal> {
        let next = match plan::recovery(committed.state, error, pauses) {
            Recovery::Advance(next) => next,
            recovery => {
                tracing::info!(proposal = %committed.id, ?error, "a step of applying will be retried");
                tokio::time::sleep(pauses.after(error)).await;
                if recovery == Recovery::Retry {
                    return Some(committed);
                }
                return self.stored(committed.id).await;
            }
        };
        tracing::warn!(proposal = %committed.id, ?error, next = next.as_str(), "a step of applying failed");
        let mut turned = committed.clone();
        turned.error = match turned.change {
            Change::Tuning(_) => error.to_string(),
            Change::Promotion { .. } => error.told(),
        };
        if next == State::NeedsAttention {
            turned.attention = format!(
                "{}: {error}; resolve with RESOLUTION_ROLL_BACK to retry, or with RESOLUTION_KEEP_LIVE",
                turned.change.not_rolled_back()
            );
        }
        match self.advance(&mut turned, next, fence).await {
            Ok(()) => {
                pauses.reset();
                Some(turned)
            }
            Err(e) => {
                tracing::warn!(proposal = %committed.id, error = ?e, "the next state could not be written; retrying");
                tokio::time::sleep(pauses.after(&e)).await;
                self.stored(committed.id).await
            }
        }
    }

    async fn step(&self, proposal: &mut Proposal, fence: &Fence) -> Result<(), HyperSyncError> {
        match proposal.change.clone() {
            change if proposal.state == State::GivingUp => {
                self.give_up(proposal, &change, fence).await
            }
            Change::Tuning(tuning) => self.step_tuning(proposal, tuning, fence).await,
            Change::Promotion { promotion } => {
                self.step_promotion(proposal, promotion, fence).await
            }
        }
    }

    /// Ends a proposal that was refused, once no attempt to apply it can take effect any more: one that is still on
    /// its way would hold the agent for a proposal that has ended.
    async fn give_up(
        &self,
        proposal: &mut Proposal,
        change: &Change,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        match change {
            Change::Tuning(_) => self.settle(proposal, Settled::Undone, fence).await?,
            Change::Promotion { promotion } => self.take_back(proposal, promotion, fence).await?,
        }
        self.advance(proposal, State::Failed, fence).await
    }

    /// Releases the agent.
    pub(crate) async fn settle(
        &self,
        proposal: &Proposal,
        settled: Settled,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let approved_version = match settled {
            Settled::Approved(version) => Some(version),
            Settled::Undone | Settled::Kept => None,
        };
        let void_operation_id = (settled == Settled::Undone).then(|| proposal.id.to_string());
        let request = SettleHyperparametersRequest {
            agent_id: proposal.agent_id.clone(),
            change_id: proposal.id.to_string(),
            approved_version,
            on_behalf_of: proposal.applied_by.clone(),
            fencing_token: Some(token_of(fence)?),
            void_operation_id,
        };
        Ok(self.peers.agents.settle(request).await?)
    }
}

/// How a change of hyperparameters ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The version was verified.
    Approved(u64),
    /// The change is not live, and is not to become live.
    Undone,
    /// A person keeps what is live.
    Kept,
}

/// The token that a call to Orchestration carries, while the lease has not ended by this process's clock.
/// A call that is delayed beyond that is refused once another process has made one.
pub(crate) fn token_of(fence: &Fence) -> Result<u64, LeaseError> {
    fence.check()?;
    Ok(u64::try_from(fence.token()).unwrap_or_default())
}

#[cfg(test)]
pub(crate) mod tests;
