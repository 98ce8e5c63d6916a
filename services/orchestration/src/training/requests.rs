//! What is asked of a run while it exists: that it is cancelled, paused, resumed.

use super::{OwnedRun, RunView, STOPS_WITHIN, transitions::Request};
use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    changes::ensure_not_held,
    hosts,
    leases::LearnerLeases,
    store::{self, RunRow, RunState},
    turn::Guards,
};
use std::sync::Arc;
use tars_interceptors::call::in_current_trace;
use tars_runtime::{audit, db::Transaction, tasks::to_the_end};
use uuid::Uuid;

/// How many runs may be paused: each keeps a checkpoint.
const MOST_PAUSED: usize = 64;
/// How many of them may be of one caller, so that nobody takes the places of all.
const MOST_PAUSED_OF_CALLER: usize = MOST_PAUSED / 4;

impl Orchestration {
    /// Cancels a run, whichever replica owns it, and waits briefly for its end. One that has ended is
    /// returned unchanged.
    pub(crate) async fn cancel_training(
        self: &Arc<Self>,
        by: String,
        id: Uuid,
    ) -> Result<RunView, OrchestrationError> {
        let this = Arc::clone(self);
        let cancelled = to_the_end(async move { this.request_cancel(&by, id).await }).await?;
        self.settled(cancelled).await
    }

    async fn request_cancel(&self, by: &str, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let mut tx = self.store.begin("training_runs.cancel").await?;
        let mut row = store::run_in(&mut tx, id).await?;
        match Request::Cancel.next(row.state)? {
            None => return Ok(row),
            Some(next @ RunState::Cancelled) => {
                row.state = next;
                row.ended_us = Some(self.clock.now_us());
                store::end_run(&mut tx, &row).await?;
            }
            Some(next) => self.change_state(&mut tx, &mut row, next).await?,
        }
        self.audit_request(&mut tx, "training.cancelled", by, &row)
            .await?;
        self.runs.commit(tx).await?;
        self.record_end(row.state, row.queued_us);
        Ok(row)
    }

    /// Pauses a run, whichever replica owns it, and waits briefly until it is.
    pub(crate) async fn pause_training(
        self: &Arc<Self>,
        by: String,
        id: Uuid,
    ) -> Result<RunView, OrchestrationError> {
        let this = Arc::clone(self);
        let paused = to_the_end(async move { this.request_pause(&by, id).await }).await?;
        self.settled(paused).await
    }

    async fn request_pause(&self, by: &str, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let mut tx = self.store.begin("training_runs.pause").await?;
        let mut row = store::run_in(&mut tx, id).await?;
        let Some(next) = Request::Pause.next(row.state)? else {
            return Ok(row);
        };
        if hosts::is_external(&row.environment) {
            return Err(OrchestrationError::NotSaved(row.environment));
        }
        ensure_place_to_pause(&mut tx, id).await?;
        self.change_state(&mut tx, &mut row, next).await?;
        self.audit_request(&mut tx, "training.paused", by, &row)
            .await?;
        self.runs.commit(tx).await?;
        Ok(row)
    }

    /// Records a request once for each agent of the run.
    async fn audit_request(
        &self,
        tx: &mut Transaction,
        event: &'static str,
        by: &str,
        row: &RunRow,
    ) -> Result<(), OrchestrationError> {
        for member in self.store.members(row.id).await? {
            let record = self.run_record(event, by, row, &member.agent);
            audit::insert(tx, &record).await?;
        }
        Ok(())
    }

    async fn change_state(
        &self,
        tx: &mut Transaction,
        row: &mut RunRow,
        next: RunState,
    ) -> Result<(), OrchestrationError> {
        store::set_state(tx, row, next).await?;
        row.state = next;
        Ok(())
    }

    /// Waits briefly until a run is as it was asked to be. After the timeout it is returned as it was
    /// then: the request is durable, even if the run cannot be read now.
    async fn settled(&self, requested: RunRow) -> Result<RunView, OrchestrationError> {
        let id = requested.id;
        let row = match tokio::time::timeout(STOPS_WITHIN, self.at_rest(id)).await {
            Ok(Ok(row)) => row,
            Ok(Err(_)) | Err(_) => self.store.run(id).await.ok().flatten().unwrap_or(requested),
        };
        self.view(row).await
    }

    /// Waits until no process follows a run.
    pub(super) async fn at_rest(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let mut changed = self.runs.subscribe();
        loop {
            changed.borrow_and_update();
            let row = self.run_row(id).await?;
            let rests = row.state.has_ended() || row.state == RunState::Paused;
            if rests || changed.changed().await.is_err() {
                return Ok(row);
            }
        }
    }

    /// Resumes a paused run in this process, whoever owned it before.
    pub(crate) async fn resume_training(
        self: &Arc<Self>,
        by: String,
        id: Uuid,
    ) -> Result<RunView, OrchestrationError> {
        let this = Arc::clone(self);
        let row = to_the_end(async move { this.request_resume(&by, id).await }).await?;
        self.view(row).await
    }

    async fn request_resume(
        self: &Arc<Self>,
        by: &str,
        id: Uuid,
    ) -> Result<RunRow, OrchestrationError> {
        let row = self.run_row(id).await?;
        if Request::Resume.next(row.state)?.is_none() {
            return Ok(row);
        }
        let agents = self.members_of(id).await?;
        let guards = Guards::lock(&agents).await;
        let names = agents.iter().map(|agent| agent.id());
        let leases = LearnerLeases::acquire(&self.leases, names).await?;
        let fences = leases.fences();
        let begun = self.store.begin_for_run("training_runs.resume", &fences);
        let mut tx = begun.await?;
        // It may have been resumed, and even paused again, until the leases were taken.
        let mut row = store::run_in(&mut tx, id).await?;
        let Some(next) = Request::Resume.next(row.state)? else {
            return Ok(row);
        };
        for agent in &agents {
            ensure_not_held(&mut tx, agent.id(), None).await?;
        }
        let plan = store::plan(&mut *tx, id).await?;
        let plan = plan.ok_or(OrchestrationError::Worker("the run has no plan"))?;
        let running = self.start_again(&agents, &plan, &row).await?;
        self.change_state(&mut tx, &mut row, next).await?;
        self.audit_request(&mut tx, "training.resumed", by, &row)
            .await?;
        self.runs.commit(tx).await?;
        drop(guards);
        let stop = running.stop();
        let owned = OwnedRun::new(Arc::clone(self), agents, &row, fences, stop);
        let owned = owned.after(plan.reported);
        tokio::spawn(in_current_trace(owned.follow(running, leases)));
        Ok(row)
    }

    /// The agents that a run trains, in the order of their environment.
    async fn members_of(&self, run: Uuid) -> Result<Vec<Arc<Agent>>, OrchestrationError> {
        let members = self.store.members(run).await?;
        let agents = members.iter().map(|m| self.agents.get(&m.agent).cloned());
        agents.collect()
    }
}

/// Refuses to pause a run when too many are paused already, of its caller or in total.
async fn ensure_place_to_pause(tx: &mut Transaction, run: Uuid) -> Result<(), OrchestrationError> {
    let paused = store::paused(tx).await?;
    if paused.len() >= MOST_PAUSED {
        return Err(OrchestrationError::TooManyPaused(paused.len()));
    }
    let caller = caller_of(tx, run).await?;
    let mut of_caller = 0;
    for other in paused {
        of_caller += usize::from(caller_of(tx, other).await? == caller);
    }
    match of_caller >= MOST_PAUSED_OF_CALLER {
        true => Err(OrchestrationError::TooManyPausedOfCaller(of_caller)),
        false => Ok(()),
    }
}

/// Whose share of the learners a run takes.
async fn caller_of(tx: &mut Transaction, run: Uuid) -> Result<Option<String>, OrchestrationError> {
    let plan = store::plan(&mut *tx, run).await?;
    Ok(plan.map(|row| row.plan.caller))
}
