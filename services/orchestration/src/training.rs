//! Training runs: started, watched, cancelled, and completed with new weights of the agent.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
    changes::ensure_not_held,
    learners::{Class, Event, Owner, Running, Stop},
    ownership::learner_lease,
    store::{self, RunRow, RunState},
    turn::Turn,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_interceptors::call::in_current_trace;
use tars_learn::{Outcome, Progress, Run, RunError};
use tars_runtime::{
    audit::{self, Record},
    backoff::Backoff,
    db::DbError,
    events::EventLog,
    lease::{Fence, Lease},
    page,
    tasks::to_the_end,
};
use tokio::sync::Notify;
use uuid::Uuid;

const DEFAULT_STEPS: u64 = 20_000;
const REPORTS: u64 = 100;
/// The most steps between two reports, so that watchers of a long run do not wait for minutes.
const MOST_STEPS_A_REPORT: u64 = 2000;
const EVAL_EPISODES: u32 = 20;
/// Logs that are retained, for late watchers of ended runs.
const KEPT: usize = 64;
/// How long a cancellation waits for the end of the run. A learner polls before every step.
const STOPS_WITHIN: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long writing the end of a run is retried while the database is busy or unreachable, as the sum
/// of the delays.
const PATIENCE: Duration = Duration::from_secs(1800);

#[derive(Debug, Clone)]
pub(crate) enum TrainingEvent {
    Progress { progress: Progress, version: i64 },
    Ended(Box<RunView>),
}

/// A run with its position in the queue.
#[derive(Debug, Clone)]
pub(crate) struct RunView {
    pub(crate) row: RunRow,
    pub(crate) position: Option<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Trainings {
    runs: Mutex<HashMap<Uuid, Arc<Training>>>,
}

#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) log: EventLog<TrainingEvent>,
    agent_id: String,
    stop: Stop,
    /// Notified once the run is stopped.
    stopped: Notify,
    latest: Mutex<(u64, u64)>,
    ended: AtomicBool,
}

impl Trainings {
    pub(crate) fn get(&self, id: Uuid) -> Option<Arc<Training>> {
        self.runs.lock().get(&id).cloned()
    }

    fn is_training(&self, agent: &str) -> bool {
        self.runs
            .lock()
            .values()
            .any(|t| t.agent_id == agent && !t.ended.load(Ordering::Relaxed))
    }

    fn insert(&self, id: Uuid, training: Arc<Training>) {
        let mut runs = self.runs.lock();
        if runs.len() >= KEPT {
            let oldest = runs
                .iter()
                .filter(|(_, t)| t.ended.load(Ordering::Relaxed))
                .map(|(id, _)| *id)
                .min();
            if let Some(id) = oldest {
                runs.remove(&id);
            }
        }
        runs.insert(id, training);
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
        let lease = match self.trainings.is_training(agent.id()) {
            true => None,
            false => self.leases.acquire(&learner_lease(agent.id())).await?,
        };
        let tx = self.store.begin("training_runs.start").await?;
        let mut tx = self.turn_in(&agent, guard, tx).await?;
        ensure_not_held(&mut tx, agent.id(), None).await?;
        let lease = lease.ok_or(OrchestrationError::TrainingRuns)?;
        lease.fence().enforce(&mut tx).await?;
        let row = queued(agent.id(), steps, seed, self.clock.now_us());
        store::insert_run(&mut tx, &row).await?;
        audit::insert(&mut tx, &self.started(&row, &by)).await?;
        let owner = Owner {
            class: Class::Training,
            caller: owner,
        };
        let run = run_of(&agent.live(), &agent, steps, seed);
        let running = self.learners.start(owner, run, Some(agent.followed()))?;
        // Dropped when the run was not written; driven when it was, whoever has heard of it.
        let (tx, _guard) = tx.into_parts();
        tx.commit_with_proof(store::proof_of_run(row.id)).await?;
        let training = Arc::new(Training::new(agent.id(), running.stop()));
        self.trainings.insert(row.id, Arc::clone(&training));
        let view = training.view(row.clone());
        let follow = Arc::clone(self).follow(training, Arc::clone(&agent), running, row, lease);
        tokio::spawn(in_current_trace(follow));
        Ok(view)
    }

    fn started(&self, row: &RunRow, by: &str) -> Record {
        Record::new(&self.clock, "orchestration", "training.started")
            .caller(by)
            .resource(&row.agent_id)
            .detail("run", row.id)
            .detail("steps", row.steps)
    }

    /// Follows a run to its end, for as long as the lease of the agent's learner is held.
    async fn follow(
        self: Arc<Self>,
        training: Arc<Training>,
        agent: Arc<Agent>,
        running: Running,
        mut row: RunRow,
        lease: Lease,
    ) {
        let fence = lease.fence();
        let run = self.follow_owned(&training, &agent, running, &mut row, &fence);
        if lease.run(run).await.is_none() {
            // The run is stopped. Whoever has the lease next writes that.
            training.take_latest(&mut row);
            row.state = RunState::Interrupted;
        }
        if let Err(e) = lease.release().await {
            tracing::debug!(error = %e, "the lease of a learner is given up later");
        }
        training.ended.store(true, Ordering::Relaxed);
        let outcome = row.state.as_str();
        self.runs_ended.record(outcome, row.queued_us, &self.clock);
        let ended = RunView::from(row);
        training.log.push(TrainingEvent::Ended(Box::new(ended)));
        training.log.close();
    }

    async fn follow_owned(
        &self,
        training: &Training,
        agent: &Agent,
        mut running: Running,
        row: &mut RunRow,
        fence: &Fence,
    ) {
        // Dropping the run stops it, so that it is kept until its end is written.
        let result = self
            .outcome(training, agent, &mut running, row, fence)
            .await;
        training.take_latest(row);
        let end = || self.end(training, agent, row, &result, fence);
        match retry_while_database_is_busy(end).await {
            Ok(ended) => *row = ended,
            Err(OrchestrationError::NotOwned(_)) => row.state = RunState::Interrupted,
            Err(e) => {
                tracing::error!(run = %row.id, error = %e, "the end of a training run could not be stored");
                row.state = RunState::Failed;
                row.error = e.to_string();
            }
        }
    }

    /// The outcome of a run; none when it was stopped.
    async fn outcome(
        &self,
        training: &Training,
        agent: &Agent,
        running: &mut Running,
        row: &mut RunRow,
        fence: &Fence,
    ) -> Result<Option<Outcome>, OrchestrationError> {
        loop {
            match running.next().await {
                Some(Event::Began) => self.began(row, fence).await,
                Some(Event::Progress(progress)) => {
                    *training.latest.lock() = (progress.step, progress.episode);
                    let version = agent.followed().load().version;
                    training
                        .log
                        .push(TrainingEvent::Progress { progress, version });
                }
                Some(Event::Ended(result)) => return result.map_err(OrchestrationError::from),
                None if training.stop.is_stopped() => return Ok(None),
                None => return Err(OrchestrationError::Worker("the learner thread died")),
            }
        }
    }

    async fn began(&self, row: &mut RunRow, fence: &Fence) {
        let now = self.clock.now_us();
        row.running_us = Some(now);
        if let Err(e) = self.store.begin_run(row.id, now, fence).await {
            tracing::warn!(run = %row.id, error = %e, "the start of a training run could not be stored");
        }
    }

    /// Writes the end of a run and returns the updated row.
    async fn end(
        &self,
        training: &Training,
        agent: &Agent,
        row: &RunRow,
        result: &Result<Option<Outcome>, OrchestrationError>,
        fence: &Fence,
    ) -> Result<RunRow, OrchestrationError> {
        let mut tx = self.turn_for_end(training, agent, result, fence).await?;
        let mut ended = row.clone();
        ended.ended_us = Some(self.clock.now_us());
        let mut next = None;
        match result {
            Ok(Some(outcome)) if !training.stop.is_stopped() => {
                ended.state = RunState::Completed;
                ended.steps_done = i64::try_from(outcome.steps).unwrap_or(i64::MAX);
                ended.episodes_done = i64::try_from(outcome.episodes).unwrap_or(i64::MAX);
                ended.final_return = Some(outcome.evaluation.mean());
                next = Some(self.agents.install(&mut tx, agent, outcome).await?);
            }
            Ok(_) => ended.state = RunState::Cancelled,
            Err(e) => {
                ended.state = RunState::Failed;
                ended.error = e.to_string();
            }
        }
        store::end_run(&mut tx, &ended).await?;
        match next {
            Some(next) => drop(tx.commit(next).await?),
            None => {
                let (tx, _guard) = tx.into_parts();
                tx.commit().await?;
            }
        }
        Ok(ended)
    }

    /// Waits for the agent's turn at the end of a run. A run with new weights waits until no governed change
    /// holds the agent, unless it is stopped meanwhile.
    async fn turn_for_end<'a>(
        &'a self,
        training: &Training,
        agent: &'a Agent,
        result: &Result<Option<Outcome>, OrchestrationError>,
        fence: &Fence,
    ) -> Result<Turn<'a>, OrchestrationError> {
        loop {
            let guard = agent.changing().lock().await;
            let tx = self.store.begin_owned("training_runs.end", fence).await?;
            let mut turn = self.turn_in(agent, guard, tx).await?;
            let installs = matches!(result, Ok(Some(_))) && !training.stop.is_stopped();
            if !installs || store::hold(&mut turn, agent.id()).await?.is_none() {
                return Ok(turn);
            }
            drop(turn);
            tokio::select! {
                () = agent.until_released() => {}
                () = training.stopped.notified() => {}
            }
        }
    }

    /// The present state of a run.
    pub(crate) async fn training(&self, id: Uuid) -> Result<RunView, OrchestrationError> {
        let found = self.store.run(id).await?;
        let row =
            found.ok_or_else(|| OrchestrationError::NotFound("training run", id.to_string()))?;
        Ok(self.view(row))
    }

    /// A run with the latest progress, if it has not ended.
    fn view(&self, row: RunRow) -> RunView {
        match self.trainings.get(row.id) {
            Some(training) if !row.state.has_ended() => training.view(row),
            _ => RunView::from(row),
        }
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

    /// Cancels a run and waits briefly for its end. One that has ended is returned unchanged.
    pub(crate) async fn cancel_training(
        self: &Arc<Self>,
        id: Uuid,
    ) -> Result<RunView, OrchestrationError> {
        let Some(training) = self.trainings.get(id) else {
            return self.training(id).await;
        };
        let agent = Arc::clone(self.agents.get(&training.agent_id)?);
        let (this, stopping) = (Arc::clone(self), Arc::clone(&training));
        let told = to_the_end(async move {
            // Under this lock the run has either ended or will end as cancelled.
            let _one = agent.changing().lock().await;
            let cancelled = this.store.cancel_run(id).await;
            // Stopped too when the commit is in doubt: a row that says so is then true.
            let in_doubt = matches!(
                &cancelled,
                Err(OrchestrationError::Store(DbError::InDoubt(_)))
            );
            if cancelled.is_ok() || in_doubt {
                stopping.stop.stop();
                stopping.stopped.notify_one();
            }
            cancelled
        })
        .await?;
        // After the timeout the run is returned as `Cancelling`.
        tokio::time::timeout(STOPS_WITHIN, training.ended())
            .await
            .ok();
        // The cancellation is durable, even if the run cannot be read now.
        Ok(self.training(id).await.unwrap_or_else(|_| self.view(told)))
    }

    /// Starts a run whose result does not become live.
    pub(crate) fn evaluate(&self, owner: Owner, run: Run) -> Result<Running, OrchestrationError> {
        let spec = tars_learn::spec_of(&run.algorithm)
            .ok_or_else(|| RunError::Algorithm(run.algorithm.clone()))?;
        spec.check(&run.values)
            .map_err(OrchestrationError::Hyperparameters)?;
        if tars_learn::make_environment(&run.environment).is_none() {
            return Err(RunError::Environment(run.environment).into());
        }
        self.learners.start(owner, run, None)
    }
}

impl Training {
    fn new(agent_id: &str, stop: Stop) -> Self {
        Self {
            log: EventLog::new(1024),
            agent_id: agent_id.to_owned(),
            stop,
            stopped: Notify::new(),
            latest: Mutex::new((0, 0)),
            ended: AtomicBool::new(false),
        }
    }

    /// Waits for the end.
    async fn ended(&self) {
        if let Ok(mut reader) = self.log.read(self.log.last()) {
            while let Ok(Some(_)) = reader.next().await {}
        }
    }

    fn take_latest(&self, row: &mut RunRow) {
        let (steps, episodes) = *self.latest.lock();
        row.steps_done = i64::try_from(steps).unwrap_or(i64::MAX);
        row.episodes_done = i64::try_from(episodes).unwrap_or(i64::MAX);
    }

    fn view(&self, mut row: RunRow) -> RunView {
        self.take_latest(&mut row);
        RunView {
            row,
            position: self.stop.position(),
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

/// Retries writing the end of a run while the database is busy or unreachable, so that a short outage
/// does not lose the trained weights.
async fn retry_while_database_is_busy<T, F>(end: impl Fn() -> F) -> Result<T, OrchestrationError>
where
    F: Future<Output = Result<T, OrchestrationError>>,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut waited = Duration::ZERO;
    loop {
        match end().await {
            Err(e) if e.is_transient() && waited < PATIENCE => {
                tracing::warn!(error = %e, "the end of a training run waits for the database");
            }
            done => return done,
        }
        let pause = backoff.next_delay();
        tokio::time::sleep(pause).await;
        waited += pause;
    }
}

/// A run that continues from the live weights, if they fit.
fn run_of(live: &LiveAgent, agent: &Agent, steps: u64, seed: u64) -> Run {
    let weights = live.weights.as_deref();
    Run {
        algorithm: agent.definition.algorithm.to_owned(),
        environment: agent.definition.environment.to_owned(),
        values: live.row.hyperparameters.clone(),
        seed,
        steps,
        reports: REPORTS.max(steps / MOST_STEPS_A_REPORT),
        eval_episodes: EVAL_EPISODES,
        start: weights
            .filter(|net| fits(net, &live.row.hyperparameters))
            .cloned(),
    }
}

/// Whether the network has the width that the hyperparameters require.
fn fits(net: &tars_learn::nn::Mlp, values: &tars_learn::hyper::Values) -> bool {
    tars_learn::hyper::DqnParams::from_values(values).is_ok_and(|p| {
        net.layers
            .first()
            .is_some_and(|l| l.weights.ncols() == p.hidden_dim)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::time::Instant;

    /// Fails a number of times before it succeeds. Returns the result and the number of attempts.
    async fn failing(
        times: u32,
        error: fn() -> OrchestrationError,
    ) -> (Result<(), OrchestrationError>, u32) {
        let tries = Cell::new(0);
        let end = || {
            let n = tries.replace(tries.get() + 1);
            async move { if n < times { Err(error()) } else { Ok(()) } }
        };
        let ended = retry_while_database_is_busy(end).await;
        (ended, tries.get())
    }

    fn busy() -> OrchestrationError {
        DbError::Unavailable("busy".to_owned()).into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_run_is_retried_while_the_database_is_busy() {
        let begun = Instant::now();
        let (ended, tries) = failing(20, busy).await;
        assert!(ended.is_ok() && tries == 21);
        let waited = begun.elapsed();
        assert!(
            waited > 11 * LONGEST_PAUSE && waited < PATIENCE,
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn retrying_the_end_of_a_run_is_bounded() {
        let begun = Instant::now();
        let (ended, _) = failing(u32::MAX, busy).await;
        assert!(matches!(ended, Err(OrchestrationError::Store(_))));
        let waited = begun.elapsed();
        assert!(
            waited >= PATIENCE && waited <= PATIENCE + LONGEST_PAUSE,
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_failures_are_not_retried() {
        let broken = || DbError::Failed("no row".to_owned()).into();
        let (ended, tries) = failing(u32::MAX, broken).await;
        assert!(ended.is_err() && tries == 1);
    }
}
