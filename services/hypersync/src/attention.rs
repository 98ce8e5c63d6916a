//! Proposals that need a person's decision, and whose agents stay held until then.
//!
//! The saga holds the agent before it hands over to a person. That hold may still be missing: when
//! Orchestration was unreachable as the saga gave up, or when a decision released the agent and could
//! not be written. One task therefore checks whenever a proposal changes and takes missing holds,
//! which is idempotent.
//!
//! Replicas may decide and check at the same time. Both do so under the lease of the proposal's saga, so
//! that a hold is never taken for a proposal that was decided meanwhile.

use crate::{
    HyperSync, HyperSyncError,
    ownership::saga_lease,
    pauses::Pauses,
    proposals::require_state,
    saga::{Settled, token_of},
    store::{self, Proposal, State},
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tars_credentials::Caller;
use tars_proto::orchestration::v1::HoldAgentRequest;
use tars_runtime::{
    lease::{Fence, Lease},
    tasks::to_the_end,
};
use tokio::{sync::Mutex as Turn, time::Instant};
use uuid::Uuid;

/// How long a decision waits for another replica that has the proposal's lease, and the delay between two
/// attempts to take it.
const DECIDES_WITHIN: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// A person's decision about a proposal that needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    RollBack,
    KeepLive,
}

/// A proposal, and the revision in which it came to need attention: once it has been decided it may come
/// back.
type Attention = (Uuid, i64);

/// For each agent, what it is known to be held for. The lock of an agent serialises decisions about it and
/// attempts to hold it in this process; agents do not wait for each other. This process's knowledge spares
/// calls and decides nothing.
#[derive(Debug, Default)]
pub(crate) struct HeldAgents(Mutex<HashMap<String, Arc<Turn<Option<Attention>>>>>);

impl HeldAgents {
    fn of(&self, agent: &str) -> Arc<Turn<Option<Attention>>> {
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
    pub(crate) async fn take_missing_holds(&self) -> Result<(), HyperSyncError> {
        let waiting = self.store.needing_attention().await?;
        let taken = join_all(waiting.iter().map(|seen| self.take_hold(seen))).await;
        taken.into_iter().rfind(Result::is_err).unwrap_or(Ok(()))
    }

    async fn take_hold(&self, seen: &Proposal) -> Result<(), HyperSyncError> {
        let turn = self.held.of(&seen.agent_id);
        let mut held = turn.lock().await;
        if *held == Some((seen.id, seen.revision)) {
            return Ok(());
        }
        // Another replica that has the lease holds the agent, or decides. Should it do neither, this is
        // tried again when the next replica looks for work without an owner.
        let name = saga_lease(seen.id);
        let Some(lease) = self.leases.acquire_next(&name).await? else {
            return Ok(());
        };
        // A decision may have been made while the lease was awaited.
        let proposal = self.get(seen.id).await?;
        if proposal.state == State::NeedsAttention {
            self.hold(&proposal, &lease.fence()).await?;
            *held = Some((proposal.id, proposal.revision));
        }
        Ok(lease.release().await?)
    }

    /// Holds the agent with whatever is live until a person decides.
    pub(crate) async fn hold(
        &self,
        proposal: &Proposal,
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let request = HoldAgentRequest {
            agent_id: proposal.agent_id.clone(),
            change_id: proposal.id.to_string(),
            on_behalf_of: proposal.applied_by.clone(),
            fencing_token: token_of(fence)?,
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
        require_state(&self.get(id).await?, State::NeedsAttention)?;
        let lease = self.acquire_decision(id).await?;
        let seen = self.get(id).await?;
        require_state(&seen, State::NeedsAttention)?;
        // From here on the hold may be released, whatever the outcome.
        *held = None;
        let (fence, write) = (lease.fence(), (by, id, resolution, reason));
        let decided = match resolution {
            Resolution::RollBack => self.write_decision(write, &fence).await,
            Resolution::KeepLive => match self.settle(&seen, Settled::Kept, &fence).await {
                Ok(()) => self.write_decision(write, &fence).await,
                Err(e) => Err(e),
            },
        };
        if decided.is_err() {
            self.changes.wake();
        }
        decided
    }

    /// Takes the lease for deciding about a proposal. Another replica has it while it decides too, or
    /// checks that the agent is held, which is waited for.
    async fn acquire_decision(&self, id: Uuid) -> Result<Lease, HyperSyncError> {
        let (name, until) = (saga_lease(id), Instant::now() + DECIDES_WITHIN);
        loop {
            if let Some(lease) = self.leases.acquire_next(&name).await? {
                return Ok(lease);
            }
            if Instant::now() >= until {
                return Err(HyperSyncError::OwnedElsewhere(self.until_owned(&name)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How long a decision has to wait, in whole seconds: until the lease ends, should its owner be gone.
    fn until_owned(&self, name: &str) -> Duration {
        Duration::from_secs(self.leases.until_end(name).as_secs() + 1)
    }

    async fn write_decision(
        &self,
        (by, id, resolution, reason): (&str, Uuid, Resolution, String),
        fence: &Fence,
    ) -> Result<Proposal, HyperSyncError> {
        let mut tx = self.store.begin_owned("proposals.resolve", fence).await?;
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
