//! Which process follows a run: the one that has the leases of the learners of all its agents.
//!
//! The lease of an agent's learner owns both the live learner and the runs: whoever has those of a run's agents
//! knows that no other process follows it, nor any other run of one of them that has not ended. It resumes the
//! run from its last checkpoint, so that it ends as an undisturbed one would have, or ends it when it cannot be
//! resumed.

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    hosts,
    learners::Running,
    leases::LearnerLeases,
    store::{self, PlanRow, RunRow, RunState, Unfinished},
    task::Task,
    training::OwnedRun,
};
use std::{collections::BTreeMap, sync::Arc};
use tars_interceptors::call::in_current_trace;
use tars_learn::Policy;
use tars_runtime::{audit, db::Transaction};

impl Orchestration {
    /// Resumes or ends the runs that no process follows any more, the newest first.
    pub(crate) async fn resume_left_runs(self: &Arc<Self>) -> Result<(), OrchestrationError> {
        for left in self.store.unfinished_runs().await? {
            let agents = left.agents.iter().map(String::as_str);
            match LearnerLeases::acquire(&self.leases, agents).await {
                Ok(leases) => self.take_over(&left, leases).await?,
                Err(OrchestrationError::TrainingRuns(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn take_over(
        self: &Arc<Self>,
        left: &Unfinished,
        leases: LearnerLeases,
    ) -> Result<(), OrchestrationError> {
        let resumed = match self.left_row(left).await? {
            Some(row) => self.resume(&row, left, &leases).await,
            None => return self.end_left(left, leases, None).await,
        };
        match resumed {
            Ok((owned, running)) => {
                tokio::spawn(in_current_trace(owned.follow(running, leases)));
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                let run = left.id;
                tracing::error!(%run, %error, "a training run cannot be resumed, and ends as interrupted");
                self.end_left(left, leases, Some(&error)).await
            }
        }
    }

    /// The row of a left run, if it is to go on.
    async fn left_row(&self, left: &Unfinished) -> Result<Option<RunRow>, OrchestrationError> {
        let row = self.store.run(left.id).await?;
        Ok(row.filter(|row| matches!(row.state, RunState::Queued | RunState::Running)))
    }

    /// Ends a run that does not go on, and why, or leaves it paused, and gives its learners up.
    async fn end_left(
        &self,
        left: &Unfinished,
        leases: LearnerLeases,
        why: Option<&OrchestrationError>,
    ) -> Result<(), OrchestrationError> {
        let (now_us, fences) = (self.clock.now_us(), leases.fences());
        let begun = self.store.begin_for_run("training_runs.interrupt", &fences);
        let mut tx = begun.await?;
        let row = store::leave_run(&mut tx, left.id, now_us, why).await?;
        fences.release(&mut tx).await?;
        self.runs.commit(tx).await?;
        self.record_end(row.state, row.queued_us);
        leases.released();
        Ok(())
    }

    /// Starts the learners of a run where the run was left, and ends the older runs of its agents.
    async fn resume(
        self: &Arc<Self>,
        row: &RunRow,
        left: &Unfinished,
        leases: &LearnerLeases,
    ) -> Result<(OwnedRun, Running), OrchestrationError> {
        let plan = self.store.plan(row.id).await?;
        let plan = plan.ok_or(OrchestrationError::Worker("the run has no plan"))?;
        if hosts::is_external(&plan.plan.environment) {
            return Err(OrchestrationError::NotSaved(plan.plan.environment));
        }
        let agents = self.agents_of(&plan)?;
        let running = self.start_again(&agents, &plan, row).await?;
        let fences = leases.fences();
        let begun = self.store.begin_for_run("training_runs.resume", &fences);
        let mut tx = begun.await?;
        let older = self.leave_older_runs(&mut tx, left).await?;
        for agent in &left.agents {
            let record = self.run_record("training.resumed", &plan.plan.caller, row, agent);
            audit::insert(&mut tx, &record.detail("reports", plan.reported)).await?;
        }
        self.runs.commit(tx).await?;
        for older in older {
            self.record_end(older.state, older.queued_us);
        }
        let stop = running.stop();
        let owned = OwnedRun::new(Arc::clone(self), agents, row, fences, stop);
        Ok((owned.after(plan.reported), running))
    }

    /// Ends the unfinished runs of the agents of a run that goes on, or leaves them paused: only one of them
    /// can have its learners.
    async fn leave_older_runs(
        &self,
        tx: &mut Transaction,
        left: &Unfinished,
    ) -> Result<Vec<RunRow>, OrchestrationError> {
        let (now_us, mut older) = (self.clock.now_us(), Vec::new());
        for run in store::unfinished(&mut *tx).await? {
            let is_shared = run.agents.iter().any(|agent| left.agents.contains(agent));
            if run.id != left.id && is_shared {
                older.push(store::leave_run(tx, run.id, now_us, None).await?);
            }
        }
        Ok(older)
    }

    /// The agents that a planned run trains.
    pub(crate) fn agents_of(&self, plan: &PlanRow) -> Result<Vec<Arc<Agent>>, OrchestrationError> {
        let learners = plan.plan.learners.iter();
        let found = learners.map(|learner| self.agents.get(&learner.agent).cloned());
        found.collect()
    }

    /// Starts the learners of a planned run where its checkpoint is, or queues it.
    pub(crate) async fn start_again(
        &self,
        agents: &[Arc<Agent>],
        plan: &PlanRow,
        row: &RunRow,
    ) -> Result<Running, OrchestrationError> {
        let blobs = self.checkpoints.blobs();
        let mut policies = BTreeMap::new();
        for (agent, name) in &plan.policies {
            let policy = Policy::from_bytes(&blobs.get(name).await?)?;
            policies.insert(agent.clone(), policy);
        }
        let checkpoint = match &plan.checkpoint {
            Some(name) => Some(blobs.get(name).await?),
            None => None,
        };
        let task = Task::planned(&plan.plan, row, policies);
        self.launch(task, plan, agents, checkpoint)
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
