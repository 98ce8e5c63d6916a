//! Training runs: started, listed, watched, cancelled.
//!
//! The rows of a run are what is known of it, at every replica. The process that has the lease of the
//! agent's learner [runs](run) it. What only that process knows is its place in the queue.

mod journal;
mod run;
mod watch;

pub(crate) use run::OwnedRun;
pub(crate) use watch::{TrainingEvent, Watcher};

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
    changes::ensure_not_held,
    learners::{Class, Durable, Owner, Running, Stop},
    ownership::learner_lease,
    store::{self, PlanRow, RunRow, RunState, WorkToken},
    task::Task,
};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tars_interceptors::call::in_current_trace;
use tars_learn::Policy;
use tars_runtime::{
    audit::{self, Record},
    page,
    tasks::to_the_end,
};
use uuid::Uuid;

const DEFAULT_STEPS: u64 = 20_000;
const REPORTS: u64 = 100;
/// The most steps between two reports, so that watchers of a long run do not wait for minutes.
const MOST_STEPS_A_REPORT: u64 = 2000;
const EVAL_EPISODES: u32 = 20;
/// How many of the newest runs keep their reports, for late watchers.
const REPORTED: u32 = 64;
/// How long a cancellation waits for the end of the run. A learner polls before every step.
const STOPS_WITHIN: Duration = Duration::from_secs(1);
/// The delay before a read that failed is repeated.
const RETRY: Duration = Duration::from_millis(500);

/// A run with its position in the queue.
#[derive(Debug, Clone)]
pub(crate) struct RunView {
    pub(crate) row: RunRow,
    pub(crate) position: Option<u32>,
}

/// The runs of this process, for their places in its queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trainings(Arc<Mutex<HashMap<Uuid, Stop>>>);

/// A run of this process, until it is dropped.
#[derive(Debug)]
struct Entry {
    trainings: Trainings,
    id: Uuid,
}

impl Trainings {
    fn enter(&self, id: Uuid, stop: Stop) -> Entry {
        self.0.lock().insert(id, stop);
        Entry {
            trainings: self.clone(),
            id,
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn position(&self, id: Uuid) -> Option<u32> {
        self.0.lock().get(&id)?.position()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.trainings.0.lock().remove(&self.id);
    }
}

/// A new run, which waits for a learner.
fn queued(agent_id: &str, steps: u64, seed: u64, now_us: i64) -> RunRow {
    RunRow {
        id: Uuid::now_v7(),
        agent_id: agent_id.to_owned(),
        state: RunState::Queued,
        steps: i64::try_from(steps).unwrap_or(i64::MAX),
        steps_done: 0,
        episodes_done: 0,
        seed: seed as i64,
        final_return: None,
        error: String::new(),
        queued_us: now_us,
        running_us: None,
        ended_us: None,
        last_report: 0,
    }
}

impl Orchestration {
    pub(crate) async fn start_training(
        self: &Arc<Self>,
        by: String,
        owner: String,
        agent_id: &str,
        steps: Option<u64>,
        seed: Option<u64>,
    ) -> Result<RunView, OrchestrationError> {
        let agent = Arc::clone(self.agents.get(agent_id)?);
        let this = Arc::clone(self);
        let steps = steps.unwrap_or(DEFAULT_STEPS);
        let seed = seed.unwrap_or_else(|| self.seeds.draw());
        to_the_end(async move { this.enqueue(by, owner, agent, steps, seed).await }).await
    }

    async fn enqueue(
        self: &Arc<Self>,
        by: String,
        owner: String,
        agent: Arc<Agent>,
        steps: u64,
        seed: u64,
    ) -> Result<RunView, OrchestrationError> {
        let guard = agent.changing().lock().await;
        let lease = self.leases.acquire(&learner_lease(agent.id())).await?;
        let tx = self.store.begin("training_runs.start").await?;
        let mut tx = self.turn_in(&agent, guard, tx).await?;
        ensure_not_held(&mut tx, agent.id(), None).await?;
        let lease = lease.ok_or(OrchestrationError::TrainingRuns)?;
        lease.fence().enforce(&mut tx).await?;
        let row = queued(agent.id(), steps, seed, self.clock.now_us());
        store::insert_run(&mut tx, &row).await?;
        store::drop_old_reports(&mut tx, REPORTED).await?;
        audit::insert(&mut tx, &self.started(&row, &by)).await?;
        let owner = Owner {
            class: Class::Training,
            caller: owner,
        };
        let live = agent.live();
        let task = task_of(&live, &agent, steps, seed);
        let continues = task.start.is_some();
        let plan = PlanRow {
            run_id: row.id,
            plan: task.plan(&owner.caller),
            start: live.row.weights.clone().filter(|_| continues),
            checkpoint: None,
            reported: 0,
            version: live.row.version,
        };
        store::insert_plan(&mut tx, &plan).await?;
        let durable = Durable {
            live: agent.followed(),
            follows: plan.version,
            checkpoint: None,
            every: self.checkpoint_every,
            clock: self.clock.clone(),
        };
        let running = self.learners.start(owner, task, Some(durable))?;
        // Dropped when the run was not written; driven when it was, whoever has heard of it.
        let (tx, guard) = tx.into_parts();
        tx.commit_with_proof(store::proof_of_run(row.id)).await?;
        drop(guard);
        let (stop, fence) = (running.stop(), lease.fence());
        let position = stop.position();
        let owned = OwnedRun::new(Arc::clone(self), agent, &row, fence, stop);
        tokio::spawn(in_current_trace(owned.follow(running, lease)));
        Ok(RunView { row, position })
    }

    fn started(&self, row: &RunRow, by: &str) -> Record {
        Record::new(&self.clock, "orchestration", "training.started")
            .caller(by)
            .resource(&row.agent_id)
            .detail("run", row.id)
            .detail("steps", row.steps)
    }

    /// The present state of a run.
    pub(crate) async fn training(&self, id: Uuid) -> Result<RunView, OrchestrationError> {
        let found = self.store.run(id).await?;
        let row =
            found.ok_or_else(|| OrchestrationError::NotFound("training run", id.to_string()))?;
        Ok(self.view(row))
    }

    fn view(&self, row: RunRow) -> RunView {
        let position = match row.state.has_ended() {
            true => None,
            false => self.trainings.position(row.id),
        };
        RunView { row, position }
    }

    pub(crate) async fn list_trainings(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<RunView>, String), OrchestrationError> {
        let before = page::start(token, Uuid::max())?;
        let size = page::size(page_size);
        let rows = self.store.runs(before, size + 1).await?;
        let (rows, next) = page::cut(rows, size, |r| r.id.to_string());
        Ok((rows.into_iter().map(|r| self.view(r)).collect(), next))
    }

    /// Cancels a run, whichever replica owns it, and waits briefly for its end. One that has ended is
    /// returned unchanged.
    pub(crate) async fn cancel_training(
        self: &Arc<Self>,
        id: Uuid,
    ) -> Result<RunView, OrchestrationError> {
        let this = Arc::clone(self);
        let cancelled = to_the_end(async move { this.request_cancel(id).await }).await?;
        // After the timeout the run is returned as `Cancelling`. The cancellation is durable, even if the
        // run cannot be read now.
        let ended = tokio::time::timeout(STOPS_WITHIN, self.ended(id)).await;
        let row = match ended {
            Ok(Ok(row)) => row,
            Ok(Err(_)) | Err(_) => self.store.run(id).await.ok().flatten().unwrap_or(cancelled),
        };
        Ok(self.view(row))
    }

    async fn request_cancel(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let mut tx = self.store.begin("training_runs.cancel").await?;
        store::cancel_run(&mut tx, id).await?;
        let row = store::run_in(&mut tx, id).await?;
        self.runs.commit(tx).await?;
        Ok(row)
    }

    /// Waits for the end of a run.
    async fn ended(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let mut changed = self.runs.subscribe();
        loop {
            changed.borrow_and_update();
            let row = self.training(id).await?.row;
            if row.state.has_ended() || changed.changed().await.is_err() {
                return Ok(row);
            }
        }
    }

    /// Starts a run whose result does not become live, as a part of work that one process of another
    /// service does at a time.
    pub(crate) async fn evaluate(
        self: &Arc<Self>,
        owner: Owner,
        task: Task,
        given: WorkToken,
    ) -> Result<Running, OrchestrationError> {
        task.check()?;
        if self.store.check_token(&given).await? {
            let this = Arc::clone(self);
            to_the_end(async move { this.admit(&given).await }).await?;
        }
        self.learners.start(owner, task, None)
    }

    /// Remembers the token of the process that does some work from now on, and stops what others run of it.
    async fn admit(&self, given: &WorkToken) -> Result<(), OrchestrationError> {
        let mut tx = self.store.begin("work_tokens.admit").await?;
        store::admit(&mut tx, given).await?;
        Ok(self.owners.commit(tx).await?)
    }

    /// Waits until work has been taken over from whoever has this token.
    pub(crate) async fn superseded(&self, given: &WorkToken) -> OrchestrationError {
        let mut changed = self.owners.subscribe();
        loop {
            changed.borrow_and_update();
            match self.store.check_token(given).await {
                Ok(_) if changed.changed().await.is_ok() => {}
                Ok(_) => std::future::pending().await,
                Err(error @ OrchestrationError::Superseded(_)) => return error,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}

impl From<RunRow> for RunView {
    fn from(row: RunRow) -> Self {
        Self {
            row,
            position: None,
        }
    }
}

/// A run that continues from the live policy, if a learner with the live hyperparameters can.
fn task_of(live: &LiveAgent, agent: &Agent, steps: u64, seed: u64) -> Task {
    let policy = live.policy.as_ref();
    let continues = |policy: &&Policy| agent.continues_from(policy, &live.row.hyperparameters);
    Task {
        algorithm: agent.definition.algorithm.name.to_owned(),
        environment: agent.definition.environment.clone(),
        agent: agent.id().to_owned(),
        values: live.row.hyperparameters.clone(),
        seed,
        steps,
        reports: REPORTS.max(steps / MOST_STEPS_A_REPORT),
        evaluation_episodes: EVAL_EPISODES,
        start: policy.filter(continues).cloned(),
        external: None,
    }
}
