//! Which process trains an agent: the one that has the lease of the agent's learner.
//!
//! A run lives in the memory of its learner and cannot be continued elsewhere. One lease of an agent
//! therefore owns both its live learner and the run: whoever has it knows that no process follows the
//! runs that have not ended, and ends them as interrupted.

use crate::{Orchestration, OrchestrationError, store};
use std::sync::Arc;
use tars_runtime::lease::Lease;

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
            self.interrupt_runs(&agent, lease).await?;
        }
        Ok(())
    }

    async fn interrupt_runs(&self, agent: &str, lease: Lease) -> Result<(), OrchestrationError> {
        let (now_us, fence) = (self.clock.now_us(), lease.fence());
        let mut tx = self.store.begin("training_runs.interrupt").await?;
        store::interrupt_runs(&mut tx, agent, now_us).await?;
        fence.release(&mut tx).await?;
        self.runs.commit(tx).await?;
        lease.released();
        Ok(())
    }

    /// Looks for runs that no process follows any more, as long as the service exists. There are none
    /// where no other process uses the database.
    pub(crate) fn look_for_left_runs(self: &Arc<Self>) {
        let look = |this: Arc<Self>| async move { this.interrupt_left_runs().await };
        self.leases.look_for_free("training runs", self, look);
    }
}

#[cfg(test)]
mod tests;
