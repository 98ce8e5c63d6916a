//! Which process trains an agent: the one that has the lease of the agent's learner.
//!
//! A run lives in the memory of its learner and cannot be continued elsewhere. One lease of an agent
//! therefore owns both its live learner and the run: whoever has it knows that no process follows the
//! runs that have not ended, and ends them as interrupted.

use crate::{Orchestration, OrchestrationError};
use std::sync::{Arc, Weak};

/// The name of the lease of an agent's learner.
pub(crate) fn learner_lease(agent: &str) -> String {
    format!("learner/{agent}")
}

impl Orchestration {
    /// Ends the runs that no process follows any more.
    pub(crate) async fn interrupt_left_runs(&self) -> Result<(), OrchestrationError> {
        for agent in self.store.agents_in_training().await? {
            let Some(lease) = self.leases.acquire(&learner_lease(&agent)).await? else {
                continue;
            };
            let (now_us, fence) = (self.clock.now_us(), lease.fence());
            self.store.interrupt_runs(&agent, now_us, &fence).await?;
            lease.release().await?;
        }
        Ok(())
    }

    /// Looks for runs that no process follows any more, as long as the service exists. There are none
    /// where no other process uses the database.
    pub(crate) fn look_for_left_runs(self: &Arc<Self>) {
        if self.leases.until_next_poll().is_some() {
            tokio::spawn(poll(Arc::downgrade(self)));
        }
    }
}

async fn poll(service: Weak<Orchestration>) {
    while let Some(pause) = service
        .upgrade()
        .and_then(|this| this.leases.until_next_poll())
    {
        tokio::time::sleep(pause).await;
        let Some(this) = service.upgrade() else {
            return;
        };
        if let Err(e) = this.interrupt_left_runs().await {
            tracing::warn!(error = ?e, "training runs without a process could not be looked for");
        }
    }
}

#[cfg(test)]
mod tests;
