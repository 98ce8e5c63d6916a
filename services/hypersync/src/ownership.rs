//! Which process applies or assesses a proposal: the one that has the lease for it.
//!
//! What a process cannot finish is continued by whichever process next finds the lease free. Everything
//! that the owner writes carries the lease's token, so that a process which was suspended and replaced
//! changes nothing here; what it asks of Orchestration it asks only while the lease has not ended.

use crate::{
    HyperSync, HyperSyncError,
    pauses::Pauses,
    store::{Assessment, Proposal},
};
use std::sync::Arc;
use tars_runtime::lease::Lease;
use uuid::Uuid;

/// The name of the lease for applying a proposal.
pub(crate) fn saga_lease(proposal: Uuid) -> String {
    format!("saga/{proposal}")
}

/// The name of the lease for assessing a proposal.
pub(crate) fn assessment_lease(proposal: Uuid) -> String {
    format!("assessment/{proposal}")
}

impl HyperSync {
    /// Takes the lease for applying a proposal; `None` when another process has it.
    pub(crate) async fn acquire_saga(&self, id: Uuid) -> Option<Lease> {
        let mut pauses = Pauses::new(self.pacing);
        loop {
            let error = match self.leases.acquire_next(&saga_lease(id)).await {
                Ok(lease) => return lease,
                Err(e) => HyperSyncError::from(e),
            };
            tracing::warn!(proposal = %id, ?error, "a proposal waits for its lease");
            tokio::time::sleep(pauses.after(&error)).await;
        }
    }

    /// Looks for proposals that no process works on any more, as long as the service exists. There are
    /// none where no other process uses the database.
    pub(crate) fn take_over_in_background(self: &Arc<Self>) {
        let look = |this: Arc<Self>| async move { this.take_over().await };
        self.leases.look_for_free("proposals", self, look);
    }

    pub(crate) async fn take_over(self: &Arc<Self>) -> Result<(), HyperSyncError> {
        for proposal in self.store.unfinished().await? {
            if proposal.state.is_driven() {
                if self.leases.is_free(&saga_lease(proposal.id)).await? {
                    tracing::info!(proposal = %proposal.id, "proposal taken over");
                    self.run_in_background(proposal);
                }
            } else if self.is_left(&proposal).await? {
                self.assess_in_background(&proposal);
            }
        }
        // A replica that was about to hold an agent may be gone.
        self.take_missing_holds().await
    }

    /// Whether a proposal waits for an assessment that nobody makes.
    async fn is_left(&self, proposal: &Proposal) -> Result<bool, HyperSyncError> {
        let name = assessment_lease(proposal.id);
        let waits = proposal.assessed() == Assessment::Pending;
        Ok(waits && !self.in_progress.contains(&name) && self.leases.is_free(&name).await?)
    }
}

#[cfg(test)]
mod tests;
