//! Proposals that need a person's decision, and whose agents stay held until then.
//!
//! The saga holds the agent before it hands over to a person. That hold may still be missing: when
//! Orchestration was unreachable as the saga gave up, or when a decision released the agent and could
//! not be written. One task therefore checks whenever a proposal changes and takes missing holds,
//! which is idempotent.

use crate::{
    HyperSync, HyperSyncError,
    pauses::Pauses,
    proposals::require_state,
    store::{self, Proposal, State},
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tars_credentials::Caller;
use tars_proto::orchestration::v1::HoldAgentRequest;
use tars_runtime::tasks::to_the_end;
use tokio::sync::Mutex as Turn;
use uuid::Uuid;

/// A person's decision about a proposal that needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    RollBack,
    KeepLive,
}

/// For each agent, the proposal for which it is known to be held. The lock of an agent serialises
/// decisions about it and attempts to hold it; agents do not wait for each other.
#[derive(Debug, Default)]
pub(crate) struct HeldAgents(Mutex<HashMap<String, Arc<Turn<Option<Uuid>>>>>);

impl HeldAgents {
    fn of(&self, agent: &str) -> Arc<Turn<Option<Uuid>>> {
        let mut agents = self.0.lock();
        Arc::clone(agents.entry(agent.to_owned()).or_default())
    }
}

impl HyperSync {
    /// Keeps the agents of proposals that need attention held for the lifetime of the service.
    pub(crate) fn keep_agents_held(self: &Arc<Self>) {
        let (weak, mut changed) = (Arc::downgrade(self), self.subscribe());
        let mut pauses = Pauses::new(self.pacing);
        tokio::spawn(async move {
            loop {
                changed.borrow_and_update();
                let Some(this) = weak.upgrade() else { return };
                let taken = this.take_missing_holds().await;
                drop(this);
                if let Err(error) = taken {
                    tracing::warn!(
                        ?error,
                        "an agent that waits for a person could not be held; retrying"
                    );
                    tokio::time::sleep(pauses.after(&error)).await;
                    continue;
                }
                pauses.reset();
                if changed.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Attempts every missing hold. Returns the last error.
    async fn take_missing_holds(&self) -> Result<(), HyperSyncError> {
        let waiting = self.store.needing_attention().await?;
        let taken = join_all(waiting.iter().map(|seen| self.take_hold(seen))).await;
        taken.into_iter().rfind(Result::is_err).unwrap_or(Ok(()))
    }

    async fn take_hold(&self, seen: &Proposal) -> Result<(), HyperSyncError> {
        let turn = self.held.of(&seen.agent_id);
        let mut held = turn.lock().await;
        if *held == Some(seen.id) {
            return Ok(());
        }
        // A decision may have been made while the lock was awaited.
        let proposal = self.get(seen.id).await?;
        if proposal.state == State::NeedsAttention {
            self.hold(&proposal).await?;
            *held = Some(proposal.id);
        }
        Ok(())
    }

    /// Holds the agent with whatever is live until a person decides.
    pub(crate) async fn hold(&self, proposal: &Proposal) -> Result<(), HyperSyncError> {
        let request = HoldAgentRequest {
            agent_id: proposal.agent_id.clone(),
            change_id: proposal.id.to_string(),
            on_behalf_of: proposal.applied_by.clone(),
        };
        Ok(self.peers.agents.hold(request).await?)
    }

    /// Carries out a person's decision about a proposal that needs attention.
    pub(crate) async fn resolve(
        self: &Arc<Self>,
        caller: &Caller,
        id: Uuid,
        resolution: Resolution,
        reason: String,
    ) -> Result<Proposal, HyperSyncError> {
        let (this, by) = (Arc::clone(self), caller.label.clone());
        to_the_end(async move {
            let proposal = this.begin_resolve(&by, id, resolution, reason).await?;
            if proposal.state.is_driven() {
                this.run_in_background(proposal.clone());
            }
            Ok(proposal)
        })
        .await
    }

    async fn begin_resolve(
        &self,
        by: &str,
        id: Uuid,
        resolution: Resolution,
        reason: String,
    ) -> Result<Proposal, HyperSyncError> {
        let seen = self.get(id).await?;
        let turn = self.held.of(&seen.agent_id);
        let mut held = turn.lock().await;
        let seen = self.get(id).await?;
        require_state(&seen, State::NeedsAttention)?;
        // From here on the hold may be released, whatever the outcome.
        *held = None;
        let decided = match resolution {
            Resolution::RollBack => self.write_decision(by, id, resolution, reason).await,
            Resolution::KeepLive => match self.settle(&seen, None).await {
                Ok(()) => self.write_decision(by, id, resolution, reason).await,
                Err(e) => Err(e),
            },
        };
        if decided.is_err() {
            self.changes.wake();
        }
        decided
    }

    async fn write_decision(
        &self,
        by: &str,
        id: Uuid,
        resolution: Resolution,
        reason: String,
    ) -> Result<Proposal, HyperSyncError> {
        let mut tx = self.store.begin("proposals.resolve").await?;
        let mut proposal = store::get_in(&mut tx, id).await?;
        require_state(&proposal, State::NeedsAttention)?;
        proposal.give_reason(by, reason);
        proposal.attention.clear();
        let next = match resolution {
            Resolution::RollBack => {
                proposal.forced = true;
                State::RollingBack
            }
            Resolution::KeepLive => State::Kept,
        };
        self.write(tx, &mut proposal, next, "admin.hypersync.resolve", by)
            .await?;
        Ok(proposal)
    }
}

#[cfg(test)]
mod tests;
