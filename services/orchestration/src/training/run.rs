//! One training run from its start to its end, at the replica that owns it.
//!
//! A run is stopped by its row: whoever cancels or pauses it writes that, at any replica, and the owner reads it when
//! it learns of the change. The end of a run and the release of its learners' leases are one transaction.
//! Where other replicas serve the agent too, weights are installed first, in the state `installing`, and the
//! run is completed once the others have reported that they serve them.

use super::{journal::Journal, pace::Pace};
use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, Installed, LiveAgent},
    hosts,
    learners::{Checkpoint, Event, Running, Stop},
    leases::{Fences, LearnerLeases},
    serving::Rollout,
    store::{self, Group, Report, RunRow, RunState},
    turn::{Guards, JointTurn},
};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tars_learn::training::{Outcome, Progress};
use tars_runtime::{
    backoff::{Backoff, Patience},
    db::Transaction,
};
use tokio::sync::Notify;
use uuid::Uuid;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long writing the end of a run is retried while the database is busy or unreachable, as the sum
/// of the delays.
const PATIENCE: Duration = Duration::from_secs(1800);

/// How the learner ended: with an outcome, or stopped.
type Ended = Result<Option<Outcome>, OrchestrationError>;

/// A run that this process owns.
#[derive(Debug)]
pub(crate) struct OwnedRun {
    service: Arc<Orchestration>,
    /// Those that learn, in the order of their environment.
    agents: Vec<Arc<Agent>>,
    id: Uuid,
    queued_us: i64,
    fences: Fences,
    stop: Stop,
    /// Notified once the run is to be stopped or paused.
    requested: Notify,
    journal: Journal,
    pace: Pace,
    /// How many reports were stored before this process owned the run.
    stored: i64,
    /// How many reports the learner made before it began in this process.
    reported: i64,
}

impl OwnedRun {
    pub(crate) fn new(
        service: Arc<Orchestration>,
        agents: Vec<Arc<Agent>>,
        row: &RunRow,
        fences: Fences,
        stop: Stop,
    ) -> Self {
        Self {
            service,
            agents,
            id: row.id,
            queued_us: row.queued_us,
            fences,
            stop,
            requested: Notify::new(),
            journal: Journal::after(row.last_report),
            pace: Pace::default(),
            stored: row.last_report,
            reported: 0,
        }
    }

    /// The same run, whose learner continues after so many reports.
    pub(crate) fn after(self, reported: i64) -> Self {
        Self { reported, ..self }
    }

    /// Follows the run to its end, for as long as the leases of its learners are held. Whoever has them next
    /// resumes or ends a run that is left.
    pub(crate) async fn follow(self, mut running: Running, leases: LearnerLeases) {
        let _entry = self.service.trainings.enter(self.id, self.stop.clone());
        let work = async {
            tokio::select! {
                ended = self.follow_owned(&mut running) => ended,
                never = self.follow_requests() => match never {},
            }
        };
        let ended = leases.run(work).await.flatten();
        match ended {
            Some(state) => {
                self.service.record_end(state, self.queued_us);
                leases.released();
            }
            None => leases.release().await,
        }
    }

    /// Returns how the run ended, if that is stored, and the leases released with it.
    async fn follow_owned(&self, running: &mut Running) -> Option<RunState> {
        // Dropping the run stops it, so that it is kept until its end is written.
        let ended = self.ended(running).await;
        let write = || async {
            self.store_reports().await?;
            self.end(&ended).await
        };
        let error = match retry_while_database_is_busy(write).await {
            Ok(state) => return Some(state),
            Err(OrchestrationError::NotOwned(_)) => return None,
            Err(error) => error,
        };
        tracing::error!(run = %self.id, %error, "the end of a training run could not be stored");
        let failed = Err(error);
        let written = retry_while_database_is_busy(|| self.end(&failed)).await;
        written.ok()
    }

    /// Pauses or stops the run once its row says so.
    async fn follow_requests(&self) -> Infallible {
        let mut changed = self.service.runs.subscribe();
        loop {
            changed.borrow_and_update();
            match self.service.store.run(self.id).await {
                Ok(Some(row)) if row.state == RunState::Cancelling => break,
                Ok(row) => {
                    if row.is_some_and(|row| row.state == RunState::Pausing) {
                        self.stop.pause();
                        self.requested.notify_one();
                    }
                    if changed.changed().await.is_err() {
                        break;
                    }
                }
                Err(_) => tokio::time::sleep(FIRST_PAUSE).await,
            }
        }
        self.stop.stop();
        self.requested.notify_one();
        std::future::pending().await
    }

    async fn ended(&self, running: &mut Running) -> Ended {
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut reported = self.reported;
        loop {
            let event = tokio::select! {
                event = running.next(), if !self.journal.is_full() => event,
                () = self.journal.due() => {
                    self.store_reports_or_defer(&mut pauses).await?;
                    continue;
                }
            };
            match event {
                Some(Event::Began) => self.began().await,
                Some(Event::Progress(progress, versions)) => {
                    reported += 1;
                    self.pace.record(progress.step, &self.service.clock);
                    // Those before are stored already: the learner repeats them.
                    if reported > self.stored {
                        self.journal.push(self.report(&progress, versions));
                    }
                }
                Some(Event::Checkpoint(taken)) => {
                    self.store_checkpoint_or_go_on(taken, reported).await?;
                }
                Some(Event::Ended(result)) => return result.map_err(OrchestrationError::from),
                None if self.stop.is_stopped() => return Ok(None),
                None => return Err(OrchestrationError::Worker("the learner thread died")),
            }
        }
    }

    fn report(&self, progress: &Progress, versions: Vec<i64>) -> Report {
        let names = self.agents.iter().map(|agent| agent.id());
        let learners: Vec<(&str, i64)> = names.zip(versions).collect();
        Report::new(progress, &learners)
    }

    async fn began(&self) {
        let (store, now_us) = (&self.service.store, self.service.clock.now_us());
        if let Err(e) = store.begin_run(self.id, now_us, &self.fences).await {
            tracing::warn!(run = %self.id, error = %e, "the start of a training run could not be stored");
        }
    }

    /// A database that cannot be reached delays the reports, and in the end the learner.
    async fn store_reports_or_defer(&self, pauses: &mut Backoff) -> Result<(), OrchestrationError> {
        match self.store_reports().await {
            Ok(()) => pauses.reset(),
            Err(e) if e.is_transient() => {
                tracing::warn!(run = %self.id, error = %e, "reports of a training run wait for the database");
                self.journal.defer(pauses.next_delay());
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// A run whose checkpoint cannot be stored goes on, and would be resumed from the one before, whose step its row
    /// shows.
    async fn store_checkpoint_or_go_on(
        &self,
        taken: Checkpoint,
        reported: i64,
    ) -> Result<(), OrchestrationError> {
        match self.store_checkpoint(taken, reported).await {
            Err(lost @ OrchestrationError::NotOwned(_)) => Err(lost),
            Err(error) => {
                tracing::warn!(run = %self.id, %error, "a checkpoint of a training run could not be stored");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Stores a checkpoint after the reports before it, so that none is missing when the run is resumed.
    async fn store_checkpoint(
        &self,
        taken: Checkpoint,
        reported: i64,
    ) -> Result<(), OrchestrationError> {
        self.store_reports().await?;
        let Orchestration {
            store, checkpoints, ..
        } = &*self.service;
        let begun = store.begin_for_run("run_plans.checkpoint", &self.fences);
        let mut tx = begun.await?;
        let step = i64::try_from(taken.step).unwrap_or(i64::MAX);
        let blob = checkpoints.blobs().put(&mut tx, taken.bytes).await?;
        store::put_checkpoint(&mut tx, self.id, &blob, reported, &taken.versions).await?;
        store::set_checkpoint_step(&mut tx, self.id, step).await?;
        Ok(tx.commit().await?)
    }

    async fn store_reports(&self) -> Result<(), OrchestrationError> {
        while let Some(group) = self.journal.begin() {
            let mut tx = self.service.store.begin_reports(&self.fences).await?;
            let counted = self.count_steps(&mut tx, &group).await?;
            store::insert_reports(&mut tx, self.id, &group, self.pace.rate()).await?;
            self.service.runs.commit(tx).await?;
            self.service.usage.record_steps(counted);
            self.journal.stored();
        }
        Ok(())
    }

    /// Counts the steps up to the end of a group, in the transaction that stores it.
    async fn count_steps(
        &self,
        tx: &mut Transaction,
        group: &Group,
    ) -> Result<u64, OrchestrationError> {
        let Some(newest) = group.reports.last() else {
            return Ok(0);
        };
        let stored = store::run_in(tx, self.id).await?;
        let steps = i64::try_from(newest.step).unwrap_or(i64::MAX);
        store::count_steps(tx, &stored, steps, self.service.usage.month()).await
    }

    /// Writes the end of the run.
    async fn end(&self, ended: &Ended) -> Result<RunState, OrchestrationError> {
        let (mut turn, mut row) = self.turn_for_end(ended).await?;
        match ended {
            _ if row.state == RunState::Installing => {
                drop(turn);
                return self.complete().await;
            }
            // What it has learned since the checkpoint is learned again.
            Ok(_) if row.state == RunState::Pausing => return self.pause(turn, row).await,
            Ok(Some(outcome)) if row.state != RunState::Cancelling => {
                return self.install(turn, row, outcome).await;
            }
            Ok(_) => row.state = RunState::Cancelled,
            Err(e) => {
                row.state = RunState::Failed;
                row.error = e.to_string();
                row.error_reason = e.end_reason().to_owned();
            }
        }
        row.ended_us = Some(self.service.clock.now_us());
        let counted = self.count_rest(&mut turn, &mut row).await?;
        store::end_run(&mut turn, &row).await?;
        self.fences.release(&mut turn).await?;
        let (tx, _guards) = turn.into_parts();
        self.service.runs.commit(tx).await?;
        self.service.usage.record_steps(counted);
        Ok(row.state)
    }

    /// Counts the steps since the last report of a run that stops before its last one: whoever stops it between
    /// two reports has used them.
    async fn count_rest(
        &self,
        turn: &mut JointTurn<'_>,
        row: &mut RunRow,
    ) -> Result<u64, OrchestrationError> {
        let reached = i64::try_from(self.stop.reached()).unwrap_or(i64::MAX);
        let month = self.service.usage.month();
        let counted = store::count_steps(turn, row, reached, month).await?;
        row.steps_done = row.steps_done.max(reached);
        Ok(counted)
    }

    /// Gives the run up until it is resumed.
    async fn pause(
        &self,
        mut turn: JointTurn<'_>,
        mut row: RunRow,
    ) -> Result<RunState, OrchestrationError> {
        let counted = self.count_rest(&mut turn, &mut row).await?;
        store::pause_run(&mut turn, &row).await?;
        self.fences.release(&mut turn).await?;
        let (tx, _guards) = turn.into_parts();
        self.service.runs.commit(tx).await?;
        self.service.usage.record_steps(counted);
        Ok(RunState::Paused)
    }

    /// Writes the new weights of all agents with the end of the run, and waits until they are served.
    async fn install(
        &self,
        mut turn: JointTurn<'_>,
        mut row: RunRow,
        outcome: &Outcome,
    ) -> Result<RunState, OrchestrationError> {
        let is_shared = self.service.presence.is_shared();
        row.state = match is_shared {
            true => RunState::Installing,
            false => RunState::Completed,
        };
        row.ended_us = Some(self.service.clock.now_us());
        let (steps, usage) = (i64::try_from(outcome.steps), &self.service.usage);
        let steps = steps.unwrap_or(i64::MAX);
        let counted = store::count_steps(&mut turn, &row, steps, usage.month()).await?;
        row.steps_done = steps;
        row.episodes_done = i64::try_from(outcome.episodes).unwrap_or(i64::MAX);
        let (next, first_return) = self.write_weights(&mut turn, &row, outcome).await?;
        row.final_return = first_return;
        store::end_run(&mut turn, &row).await?;
        if !is_shared {
            self.fences.release(&mut turn).await?;
        }
        let change = self.service.runs.take(&mut turn).await?;
        let position = turn.commit(&next).await?;
        self.service.runs.publish(change);
        usage.record_steps(counted);
        if !is_shared {
            return Ok(row.state);
        }
        match self.service.rollout(position).await {
            Ok(Rollout::Everywhere) => {}
            waited => {
                tracing::info!(run = %self.id, ?waited, "new weights are not served everywhere yet");
            }
        }
        self.complete().await
    }

    /// Writes what each agent has learned. Returns the next live state of each, and the return of the first one.
    async fn write_weights(
        &self,
        turn: &mut JointTurn<'_>,
        row: &RunRow,
        outcome: &Outcome,
    ) -> Result<(Vec<(&Agent, LiveAgent)>, Option<f64>), OrchestrationError> {
        let evaluation = outcome.evaluations.last();
        let no_result = OrchestrationError::Worker("the learner has no result");
        let evaluation = evaluation.ok_or(no_result)?;
        let mut next = Vec::with_capacity(self.agents.len());
        let mut results = Vec::with_capacity(self.agents.len());
        for (agent, learned) in self.agents.iter().zip(&outcome.learned) {
            let installed = Installed {
                run: self.id,
                policy: &learned.policy,
                final_return: evaluation.mean(learned.agent),
                steps: row.steps_done,
                episodes: row.episodes_done,
                is_lent: hosts::is_external(&row.environment),
            };
            let written = self.service.agents.install(turn, agent, installed);
            let (live, version) = written.await?;
            results.push((installed.final_return, version));
            next.push((&**agent, live));
        }
        store::complete_members(turn, self.id, &results).await?;
        Ok((next, results.first().map(|(mean, _)| *mean)))
    }

    /// Ends a run whose weights are installed.
    async fn complete(&self) -> Result<RunState, OrchestrationError> {
        let store = &self.service.store;
        let begun = store.begin_for_run("training_runs.complete", &self.fences);
        let mut tx = begun.await?;
        store::complete_run(&mut tx, self.id).await?;
        self.fences.release(&mut tx).await?;
        self.service.runs.commit(tx).await?;
        Ok(RunState::Completed)
    }

    /// Waits for the agents' turn at the end of a run. A run with new weights waits until no governed change
    /// holds one of the agents, unless it is cancelled or paused meanwhile.
    async fn turn_for_end(
        &self,
        ended: &Ended,
    ) -> Result<(JointTurn<'_>, RunRow), OrchestrationError> {
        loop {
            let guards = Guards::lock(&self.agents).await;
            let store = &self.service.store;
            let tx = store
                .begin_for_run("training_runs.end", &self.fences)
                .await?;
            let mut turn = self.service.joint_turn(&self.agents, guards, tx).await?;
            let row = store::run_in(&mut turn, self.id).await?;
            let installs = matches!(ended, Ok(Some(_)))
                && matches!(row.state, RunState::Queued | RunState::Running);
            if !installs {
                return Ok((turn, row));
            }
            let Some(held) = self.held(&mut turn).await? else {
                return Ok((turn, row));
            };
            drop(turn);
            tokio::select! {
                () = held.until_released() => {}
                () = self.requested.notified() => {}
            }
        }
    }

    /// The first agent that a governed change holds.
    async fn held(&self, turn: &mut JointTurn<'_>) -> Result<Option<&Agent>, OrchestrationError> {
        for agent in &self.agents {
            if store::hold(turn, agent.id()).await?.is_some() {
                return Ok(Some(agent));
            }
        }
        Ok(None)
    }
}

/// Retries writing the end of a run while the database is busy or unreachable, so that a short outage
/// does not lose the trained weights.
async fn retry_while_database_is_busy<T, F>(end: impl Fn() -> F) -> Result<T, OrchestrationError>
where
    F: Future<Output = Result<T, OrchestrationError>>,
{
    let mut patience = Patience::new(Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), PATIENCE);
    loop {
        match end().await {
            Err(e) if e.is_transient() && patience.is_left() => {
                tracing::warn!(error = %e, "the end of a training run waits for the database");
            }
            done => return done,
        }
        tokio::time::sleep(patience.next_delay()).await;
    }
}

#[cfg(test)]
mod tests;
