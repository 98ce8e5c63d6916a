//! Which process runs a study: the one that has its lease.
//!
//! A study that a process cannot run any more is resumed by whichever process next finds its lease free.
//! Everything that its runner writes carries the lease's token, so that a process which was suspended
//! and replaced changes nothing.

use crate::{Automl, AutomlError, cancellation::Cancellation, retries::AccessRetries};
use std::sync::Arc;
use tars_runtime::lease::Lease;
use uuid::Uuid;

/// The name of a study's lease.
pub(crate) fn lease_of(study: Uuid) -> String {
    format!("study/{study}")
}

impl Automl {
    /// Takes a study's lease; `None` when another process has it, or the study is cancelled while the
    /// database gives no answer.
    pub(crate) async fn acquire(&self, study: Uuid, run: &Cancellation) -> Option<Lease> {
        let mut accesses = AccessRetries::new(self.pacing);
        loop {
            match self.leases.acquire(&lease_of(study)).await {
                Ok(lease) => return lease,
                Err(e) => tracing::warn!(%study, error = %e, "a study waits for its lease"),
            }
            if run.is_cancelled_within(accesses.pause()).await {
                return None;
            }
        }
    }

    /// Looks for studies that no process runs any more, as long as the service exists. There are none
    /// where no other process uses the database.
    pub(crate) fn take_over_in_background(self: &Arc<Self>) {
        let look = |this: Arc<Self>| async move { this.take_over().await };
        self.leases.look_for_free("studies", self, look);
    }

    async fn take_over(self: &Arc<Self>) -> Result<(), AutomlError> {
        for study in self.store.unfinished().await? {
            let name = lease_of(study.id);
            if !self.in_progress.contains(&name) && self.leases.is_free(&name).await? {
                tracing::info!(study = %study.id, "study taken over");
                self.run_in_background(study, None);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
