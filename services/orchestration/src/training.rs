//! Training runs: started, listed, watched, paused, resumed, cancelled.
//!
//! A run trains one agent, or several of one environment together. The rows of a run are what is known of it,
//! at every replica. The process that has the leases of the learners of all its agents [runs](run) it. What
//! only that process knows is its place in the queue.

mod journal;
mod pace;
mod requests;
mod run;
mod start;
mod team;
mod transitions;
mod watch;

pub(crate) use run::OwnedRun;
pub(crate) use start::Start;
pub(crate) use watch::{TrainingEvent, Watcher};

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    learners::{Owner, Running, Stop},
    store::{self, MemberRow, RunRow, RunState, WorkToken},
    task::{Learning, Task, position},
};
use parking_lot::Mutex;
use start::DEFAULT_STEPS;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tars_learn::hyper::Values;
use tars_runtime::{page, tasks::to_the_end};
use uuid::Uuid;

const REPORTS: u64 = 100;
/// The most steps between two reports, so that watchers of a long run do not wait for minutes.
const MOST_STEPS_A_REPORT: u64 = 2000;
const EVAL_EPISODES: u32 = 20;
/// How many of the newest runs keep their reports, for late watchers.
pub(crate) const REPORTED: u32 = 64;
/// How long a request waits until a run stops. A learner polls before every step.
const STOPS_WITHIN: Duration = Duration::from_secs(1);
/// The delay before a read that failed is repeated.
const RETRY: Duration = Duration::from_millis(500);

/// A run with its members, and its position in the queue.
#[derive(Debug, Clone)]
pub(crate) struct RunView {
    pub(crate) row: RunRow,
    /// In the order of their environment.
    pub(crate) members: Vec<MemberRow>,
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

    #[cfg(test)]
    fn reached(&self, id: Uuid) -> u64 {
        self.0.lock().get(&id).map_or(0, Stop::reached)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.trainings.0.lock().remove(&self.id);
    }
}

impl Orchestration {
    /// The present state of a run.
    pub(crate) async fn training(&self, id: Uuid) -> Result<RunView, OrchestrationError> {
        let row = self.run_row(id).await?;
        self.view(row).await
    }

    async fn run_row(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let found = self.store.run(id).await?;
        found.ok_or_else(|| OrchestrationError::NotFound("training run", id.to_string()))
    }

    /// Counts a run whose end this process has committed. Of one that is only left, whoever ends it does.
    pub(crate) fn record_end(&self, state: RunState, queued_us: i64) {
        if state.has_ended() {
            let outcome = state.as_str();
            self.runs_ended.record(outcome, queued_us, &self.clock);
        }
    }

    /// A run with its members, which are read after it: one that is completed has their results.
    async fn view(&self, row: RunRow) -> Result<RunView, OrchestrationError> {
        let members = self.store.members(row.id).await?;
        Ok(self.view_of(row, members))
    }

    fn view_of(&self, row: RunRow, members: Vec<MemberRow>) -> RunView {
        let position = match row.state.has_ended() {
            true => None,
            false => self.trainings.position(row.id),
        };
        RunView {
            row,
            members,
            position,
        }
    }

    pub(crate) async fn list_trainings(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<RunView>, String), OrchestrationError> {
        let before = page::start(token, Uuid::max())?;
        let size = page::size(page_size);
        let rows = self.store.runs(before, size).await?;
        let (rows, next) = rows.cut(|r| r.id.to_string());
        let (Some(newest), Some(oldest)) = (rows.first(), rows.last()) else {
            return Ok((Vec::new(), next));
        };
        let mut members = self.store.members_between(oldest.id, newest.id).await?;
        let views = rows.into_iter().map(|row| {
            let members = members.remove(&row.id).unwrap_or_default();
            self.view_of(row, members)
        });
        Ok((views.collect(), next))
    }

    /// An environment that an agent's algorithm can search in on behalf of a caller.
    pub(crate) fn searchable(
        &self,
        agent: &Agent,
        caller: &str,
        environment: String,
    ) -> Result<String, OrchestrationError> {
        let spec = self.hosts.spec_for(caller, &environment);
        let Some(spec) = spec else {
            return Err(OrchestrationError::Environment(environment));
        };
        let space = &spec.agents[position(&spec, agent.id())];
        agent.definition.algorithm.fits(space)?;
        Ok(environment)
    }

    /// Refuses values whose learner could not be stored after as many steps, in an environment that a caller may use.
    pub(crate) fn ensure_storable(
        &self,
        agent: &Agent,
        (caller, environment): (&str, &str),
        values: Values,
        steps: u64,
    ) -> Result<(), OrchestrationError> {
        let task = Task {
            environment: environment.to_owned(),
            learners: vec![Learning {
                agent: agent.id().to_owned(),
                algorithm: agent.definition.algorithm.name.to_owned(),
                values,
                start: None,
            }],
            frozen: BTreeMap::new(),
            seed: 0,
            steps,
            reports: REPORTS,
            evaluation_episodes: EVAL_EPISODES,
            external: self.hosts.external(caller, environment),
        };
        task.check()
    }

    /// Refuses values that an agent could not learn by in a run of the usual length where it lives. Those that are
    /// refused for what was live before do not make it worse.
    pub(crate) fn ensure_usable(
        &self,
        agent: &Agent,
        given: &Values,
    ) -> Result<(), OrchestrationError> {
        let mut values = agent.live().row.hyperparameters.clone();
        values.extend(given.clone());
        let home = ("", agent.definition.environment.as_str());
        match self.ensure_storable(agent, home, values, DEFAULT_STEPS) {
            Err(OrchestrationError::Hyperparameters(mut wrong)) => {
                wrong.retain(|violation| given.contains_key(&violation.name));
                match wrong.is_empty() {
                    true => Ok(()),
                    false => Err(OrchestrationError::Hyperparameters(wrong)),
                }
            }
            other => other,
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

#[cfg(test)]
mod tests;
