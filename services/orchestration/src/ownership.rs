//! Which process trains an agent: the one that has the lease of the agent's learner.
//!
//! One lease of an agent owns both its live learner and the run: whoever has it knows that no other process
//! follows the runs that have not ended. It resumes the newest of them from its last checkpoint, so that the
//! run ends as an undisturbed one would have, and ends those that cannot be resumed.

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    learners::{Class, Durable, Owner, Running},
    store::{self, PlanRow, RunRow},
    task::Task,
    training::OwnedRun,
};
use std::sync::Arc;
use tars_interceptors::call::in_current_trace;
use tars_learn::Policy;
use tars_runtime::{
    audit::{self, Record},
    lease::Lease,
};
use uuid::Uuid;

/// The name of the lease of an agent's learner.
pub(crate) fn learner_lease(agent: &str) -> String {
    format!("learner/{agent}")
}

impl Orchestration {
    /// Resumes or ends the runs that no process follows any more.
    pub(crate) async fn resume_left_runs(self: &Arc<Self>) -> Result<(), OrchestrationError> {
        for agent in self.store.agents_in_training().await? {
            let Some(lease) = self.leases.acquire(&learner_lease(&agent)).await? else {
                continue;
            };
            self.resume_runs(&agent, lease).await?;
        }
        Ok(())
    }

    async fn resume_runs(
        self: &Arc<Self>,
        agent: &str,
        lease: Lease,
    ) -> Result<(), OrchestrationError> {
        let Some(left) = self.store.left_run(agent).await? else {
            return self.end_runs(agent, lease).await;
        };
        let run = left.run_id;
        match self.resume(left, &lease).await {
            Ok((owned, running)) => {
                tokio::spawn(in_current_trace(owned.follow(running, lease)));
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                tracing::error!(%run, %error, "a training run cannot be resumed, and ends as interrupted");
                self.end_runs(agent, lease).await
            }
        }
    }

    /// Ends all runs of an agent that have not ended, and gives its learner up.
    async fn end_runs(&self, agent: &str, lease: Lease) -> Result<(), OrchestrationError> {
        let (now_us, fence) = (self.clock.now_us(), lease.fence());
        let mut tx = self.store.begin("training_runs.interrupt").await?;
        store::interrupt_runs(&mut tx, agent, Uuid::nil(), now_us).await?;
        store::delete_ended_plans(&mut tx).await?;
        fence.release(&mut tx).await?;
        self.runs.commit(tx).await?;
        lease.released();
        Ok(())
    }

    /// Starts the learner of a run where the run was left, and ends the other runs of the agent.
    async fn resume(
        self: &Arc<Self>,
        left: PlanRow,
        lease: &Lease,
    ) -> Result<(OwnedRun, Running), OrchestrationError> {
        let agent = Arc::clone(self.agents.get(&left.plan.agent)?);
        let row = self.training(left.run_id).await?.row;
        let running = self.start_again(&agent, &left, &row).await?;
        let fence = lease.fence();
        let mut tx = self
            .store
            .begin_owned("training_runs.resume", &fence)
            .await?;
        store::interrupt_runs(&mut tx, agent.id(), row.id, self.clock.now_us()).await?;
        store::delete_ended_plans(&mut tx).await?;
        audit::insert(&mut tx, &self.resumed(&row, &left)).await?;
        self.runs.commit(tx).await?;
        let stop = running.stop();
        let owned = OwnedRun::new(Arc::clone(self), agent, &row, fence, stop);
        Ok((owned.after(left.reported), running))
    }

    async fn start_again(
        &self,
        agent: &Agent,
        left: &PlanRow,
        row: &RunRow,
    ) -> Result<Running, OrchestrationError> {
        let blobs = self.checkpoints.blobs();
        let start = match &left.start {
            Some(name) => Some(Policy::from_bytes(&blobs.get(name).await?)?),
            None => None,
        };
        let checkpoint = match &left.checkpoint {
            Some(name) => Some(blobs.get(name).await?),
            None => None,
        };
        let owner = Owner {
            class: Class::Training,
            caller: left.plan.caller.clone(),
        };
        let durable = Durable {
            live: agent.followed(),
            follows: left.version,
            checkpoint,
            every: self.checkpoint_every,
            clock: self.clock.clone(),
        };
        let task = Task::planned(&left.plan, row, start);
        self.learners.start(owner, task, Some(durable))
    }

    fn resumed(&self, row: &RunRow, left: &PlanRow) -> Record {
        Record::new(&self.clock, "orchestration", "training.resumed")
            .caller(&left.plan.caller)
            .resource(&row.agent_id)
            .detail("run", row.id)
            .detail("reports", left.reported)
    }

    /// Looks for runs that no process follows any more, as long as the service exists. There are none
    /// where no other process uses the database.
    pub(crate) fn look_for_left_runs(self: &Arc<Self>) {
        let look = |this: Arc<Self>| async move { this.resume_left_runs().await };
        self.leases.look_for_free("training runs", self, look);
    }
}

#[cfg(test)]
mod tests;
