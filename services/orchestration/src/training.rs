//! Training runs: started, watched, cancelled, and ended with the agent's new weights.

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    learners::{Event, Running},
    store::{self, RunRow, RunState},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tars_interceptors::call::in_current_trace;
use tars_learn::{Outcome, Progress, Run, RunError};
use tars_runtime::{
    audit::{self, Record},
    events::EventLog,
    page,
};
use uuid::Uuid;

const DEFAULT_STEPS: u64 = 20_000;
const REPORTS: u64 = 100;
/// A long run reports more often: who watches should not wait for minutes.
const MOST_STEPS_A_REPORT: u64 = 2000;
const EVAL_EPISODES: u32 = 20;
/// Logs of ended runs that are kept for late watchers.
const KEPT: usize = 64;

#[derive(Debug, Clone)]
pub(crate) enum TrainingEvent {
    Progress { progress: Progress, version: i64 },
    Ended(Box<RunRow>),
}

#[derive(Debug, Default)]
pub(crate) struct Trainings {
    runs: Mutex<HashMap<Uuid, Arc<Training>>>,
}

#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) log: EventLog<TrainingEvent>,
    agent_id: String,
    stop: Arc<AtomicBool>,
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

impl Orchestration {
    pub(crate) async fn start_training(
        self: &Arc<Self>,
        by: &str,
        agent_id: &str,
        steps: u64,
        seed: u64,
    ) -> Result<RunRow, OrchestrationError> {
        let agent = Arc::clone(self.agents.get(agent_id)?);
        let _one = agent.changing().lock().await;
        if self.trainings.is_training(agent_id) {
            return Err(OrchestrationError::TrainingRuns);
        }
        let live = agent.live();
        let steps = if steps == 0 { DEFAULT_STEPS } else { steps };
        let run = Run {
            algorithm: agent.definition.algorithm.to_owned(),
            environment: agent.definition.environment.to_owned(),
            values: live.row.hyperparameters.clone(),
            seed,
            steps,
            reports: REPORTS.max(steps / MOST_STEPS_A_REPORT),
            eval_episodes: EVAL_EPISODES,
            start: live
                .weights
                .as_deref()
                .filter(|net| fits(net, &live.row.hyperparameters))
                .cloned(),
        };
        let row = RunRow {
            id: Uuid::now_v7(),
            agent_id: agent_id.to_owned(),
            state: RunState::Running,
            steps: i64::try_from(steps).unwrap_or(i64::MAX),
            steps_done: 0,
            episodes_done: 0,
            seed: seed as i64,
            final_return: None,
            error: String::new(),
            started_us: self.clock.now_us(),
            ended_us: None,
        };
        let running = self.learners.start(run, Some(agent.values()))?;
        let record = Record::new(&self.clock, "orchestration", "training.started")
            .caller(by)
            .resource(agent_id)
            .detail("run", row.id)
            .detail("steps", steps);
        let mut tx = self.store.begin("training_runs.start").await?;
        store::insert_run(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        let training = Arc::new(Training {
            log: EventLog::new(1024),
            agent_id: agent_id.to_owned(),
            stop: running.stop_flag(),
            latest: Mutex::new((0, 0)),
            ended: AtomicBool::new(false),
        });
        self.trainings.insert(row.id, Arc::clone(&training));
        let follow = Arc::clone(self).follow(training, Arc::clone(&agent), running, row.clone());
        tokio::spawn(in_current_trace(follow));
        Ok(row)
    }

    async fn follow(
        self: Arc<Self>,
        training: Arc<Training>,
        agent: Arc<Agent>,
        mut running: Running,
        mut row: RunRow,
    ) {
        let result = loop {
            match running.next().await {
                Some(Event::Progress(progress)) => {
                    *training.latest.lock() = (progress.step, progress.episode);
                    let version = agent.live().row.version;
                    training
                        .log
                        .push(TrainingEvent::Progress { progress, version });
                }
                Some(Event::Ended(result)) => break result.map_err(OrchestrationError::from),
                None => break Err(OrchestrationError::Worker("the learner thread died")),
            }
        };
        let (steps, episodes) = *training.latest.lock();
        row.steps_done = i64::try_from(steps).unwrap_or(i64::MAX);
        row.episodes_done = i64::try_from(episodes).unwrap_or(i64::MAX);
        if let Err(e) = self.end(&agent, &mut row, result).await {
            tracing::error!(run = %row.id, error = %e, "the end of a training run could not be stored");
            row.state = RunState::Failed;
            row.error = e.to_string();
        }
        training.ended.store(true, Ordering::Relaxed);
        training.log.push(TrainingEvent::Ended(Box::new(row)));
        training.log.close();
    }

    async fn end(
        &self,
        agent: &Agent,
        row: &mut RunRow,
        result: Result<Option<Outcome>, OrchestrationError>,
    ) -> Result<(), OrchestrationError> {
        let _one = agent.changing().lock().await;
        row.ended_us = Some(self.clock.now_us());
        let mut tx = self.store.begin("training_runs.end").await?;
        let mut next = None;
        match result {
            Ok(Some(outcome)) => {
                row.state = RunState::Completed;
                row.steps_done = i64::try_from(outcome.steps).unwrap_or(i64::MAX);
                row.episodes_done = i64::try_from(outcome.episodes).unwrap_or(i64::MAX);
                row.final_return = Some(outcome.evaluation.mean());
                next = Some(self.agents.install(&mut tx, agent, &outcome).await?);
            }
            Ok(None) => row.state = RunState::Cancelled,
            Err(e) => {
                row.state = RunState::Failed;
                row.error = e.to_string();
            }
        }
        store::end_run(&mut tx, row).await?;
        tx.commit().await?;
        if let Some(next) = next {
            agent.publish(next);
        }
        Ok(())
    }

    /// The run as it is now: a running one with what its learner last said.
    pub(crate) async fn training(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let found = self.store.run(id).await?;
        let mut row =
            found.ok_or_else(|| OrchestrationError::NotFound("training run", id.to_string()))?;
        if let Some(training) = self
            .trainings
            .get(id)
            .filter(|_| row.state == RunState::Running)
        {
            let (steps, episodes) = *training.latest.lock();
            row.steps_done = i64::try_from(steps).unwrap_or(i64::MAX);
            row.episodes_done = i64::try_from(episodes).unwrap_or(i64::MAX);
        }
        Ok(row)
    }

    pub(crate) async fn list_trainings(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<RunRow>, String), OrchestrationError> {
        let before = if token.is_empty() {
            Ok(Uuid::max())
        } else {
            Uuid::try_parse(token)
        };
        let before = before.map_err(|_| OrchestrationError::PageToken("page_token"))?;
        let size = page::size(page_size);
        let rows = self.store.runs(before, size + 1).await?;
        Ok(page::cut(rows, size, |r| r.id.to_string()))
    }

    /// Asks a run to stop and waits until it has. One that has ended stays as it is.
    pub(crate) async fn cancel_training(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        if let Some(training) = self.trainings.get(id) {
            training.stop.store(true, Ordering::Relaxed);
            if let Ok(mut reader) = training.log.read(training.log.last()) {
                while let Ok(Some(_)) = reader.next().await {}
            }
        }
        self.training(id).await
    }

    /// A run off to the side: nothing of it becomes live.
    pub(crate) fn evaluate(&self, run: Run) -> Result<Running, OrchestrationError> {
        let spec = tars_learn::spec_of(&run.algorithm)
            .ok_or_else(|| RunError::Algorithm(run.algorithm.clone()))?;
        spec.check(&run.values)
            .map_err(OrchestrationError::Hyperparameters)?;
        if tars_learn::make_environment(&run.environment).is_none() {
            return Err(RunError::Environment(run.environment).into());
        }
        self.learners.start(run, None)
    }
}

/// Whether weights have the width that the hyperparameters ask for.
fn fits(net: &tars_learn::nn::Mlp, values: &tars_learn::hyper::Values) -> bool {
    tars_learn::hyper::DqnParams::from_values(values).is_ok_and(|p| {
        net.layers
            .first()
            .is_some_and(|l| l.weights.ncols() == p.hidden_dim)
    })
}
