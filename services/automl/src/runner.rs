//! Runs studies: a few trials at a time, each a training run in Orchestration that reports its progress
//! and is stopped when the pruner decides so. A trial that was running when the process stopped is run
//! again.
//!
//! A database that is busy or unreachable does not fail a study: every write is idempotent, so accesses
//! are retried for a while. If the study still fails, that is written as soon as it can be.

use crate::{
    Automl, AutomlError,
    cancellation::Cancellation,
    hyper,
    ownership::lease_of,
    peers::{AgentKind, Elsewhere, Most},
    retries::{AccessRetries, TrialRetries},
    store::{StudyRow, TrialRow, TrialState},
    studies::TrialEnd,
};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tars_interceptors::call::{in_current_trace, with_trace};
use tars_peers::{Evaluation, Failure, Update, seeds};
use tars_runtime::{
    lease::{Fence, Lease},
    trace::{Kind, Parent},
};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};
use uuid::Uuid;

/// The least and the most progress reports of a trial, which the pruner evaluates.
const REPORTS: std::ops::RangeInclusive<u64> = 10..=100;
/// The most steps between two reports, where a trial is not so long that it has too many.
const STEPS_A_REPORT: u64 = 2000;

enum TrialOutcome {
    Score(f64),
    Pruned,
    Cancelled,
}

/// How far a trial of this process is.
#[derive(Debug, Default)]
struct Reached {
    /// Whether it has left the queue of the trainer.
    has_begun: AtomicBool,
    /// The steps that it has said it took.
    step: AtomicU64,
}

impl Reached {
    fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    fn reach(&self, step: u64) {
        self.step.fetch_max(step, Ordering::Relaxed);
    }

    /// What a trial is charged for that ended at a report, or before its first one.
    fn reported(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// What a trial is charged for that ended between two reports: all the steps up to the second one. Else
    /// nobody would pay for those that it took, and whoever cancels it, or lends its environment, says when that is.
    fn up_to_the_next_report(&self, study: &StudyRow) -> u64 {
        match self.has_begun.load(Ordering::Relaxed) {
            true => self
                .reported()
                .saturating_add(study.steps.div_ceil(reports(study.steps))),
            false => 0,
        }
    }
}

fn reports(steps: u64) -> u64 {
    let wanted = steps.div_ceil(STEPS_A_REPORT);
    wanted.clamp(*REPORTS.start(), *REPORTS.end())
}

impl Automl {
    pub(crate) async fn agent_kind(
        &self,
        agent_id: &str,
        elsewhere: Elsewhere,
    ) -> Result<AgentKind, AutomlError> {
        Ok(self.peers.agents.kind(agent_id, elsewhere).await?)
    }

    /// Refuses a study whose largest trial would learn what could not be stored.
    pub(crate) async fn ensure_storable(
        &self,
        agent_id: &str,
        elsewhere: Elsewhere,
        most: Most,
    ) -> Result<(), AutomlError> {
        let agents = &self.peers.agents;
        Ok(agents.ensure_storable(agent_id, elsewhere, most).await?)
    }

    /// Resumes every study that has not ended and that no other process runs, now and whenever one
    /// becomes free.
    pub(crate) async fn resume_studies(self: &Arc<Self>) -> Result<usize, AutomlError> {
        let studies = self.store.unfinished().await?;
        let count = studies.len();
        for study in studies {
            tracing::info!(study = %study.id, "study resumed");
            self.run_in_background(study, None);
        }
        self.take_over_in_background();
        Ok(count)
    }

    /// Whether another study can run at once.
    pub(crate) fn has_room(&self) -> bool {
        self.running.available_permits() > 0
    }

    /// Runs a study in the background, with the given permit or once it gets one.
    pub(crate) fn run_in_background(
        self: &Arc<Self>,
        study: StudyRow,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        let Some(entry) = self.in_progress.enter(&lease_of(study.id)) else {
            return;
        };
        let this = Arc::clone(self);
        let parent = Parent::stored(&study.traceparent);
        let mut span = self.tracer.start("automl.study", Kind::Internal, parent);
        span.set("tars.study.id", study.id.to_string());
        span.set("tars.agent.id", study.agent_id.clone());
        let work = async move {
            let _entry = entry;
            let run = Arc::new(Cancellation::default());
            tokio::select! {
                () = this.run_in_turn(&study, turn, &run) => {}
                never = this.follow_cancellation(study.id, &run) => match never {},
            }
        };
        tokio::spawn(with_trace(span, work));
    }

    async fn run_in_turn(
        self: &Arc<Self>,
        study: &StudyRow,
        turn: Option<OwnedSemaphorePermit>,
        run: &Arc<Cancellation>,
    ) {
        let turn = match turn {
            Some(turn) => Ok(turn),
            None => Arc::clone(&self.running).acquire_owned().await,
        };
        let Ok(_turn) = turn else { return };
        if let Some(lease) = self.acquire(study.id, run).await {
            self.run_owned(study, run, &lease).await;
        }
    }

    /// Runs a study for as long as its lease is held. Whoever has the lease next resumes it.
    async fn run_owned(self: &Arc<Self>, study: &StudyRow, run: &Arc<Cancellation>, lease: &Lease) {
        let fence = lease.fence();
        match lease.run(self.run(study, run, &fence)).await {
            None => lost(study.id),
            Some(Err(e)) if e.is_superseded() => lost(study.id),
            Some(Err(e)) if !run.is_cancelled() => {
                tracing::warn!(study = %study.id, error = ?e, "study failed");
                let error = e.to_string();
                lease
                    .run(self.write_failure(study.id, &error, &fence))
                    .await;
            }
            Some(_) => {}
        }
    }

    /// Writes that a study has failed, retrying without a bound: until then the study is shown as
    /// running, and a restart would run it again.
    async fn write_failure(self: &Arc<Self>, study: Uuid, error: &str, fence: &Fence) {
        let mut accesses = AccessRetries::new(self.pacing);
        while let Err(e) = self.fail_study(study, error, fence).await {
            if matches!(e, AutomlError::NotOwned(_)) {
                return;
            }
            tracing::error!(%study, error = ?e, "the failure of a study could not be stored; retrying");
            tokio::time::sleep(accesses.pause()).await;
        }
    }

    async fn run(
        self: &Arc<Self>,
        study: &StudyRow,
        run: &Arc<Cancellation>,
        fence: &Fence,
    ) -> Result<(), AutomlError> {
        let mut workers: JoinSet<Result<(), AutomlError>> = JoinSet::new();
        let mut begun = HashSet::new();
        loop {
            while workers.len() < self.settings.parallel_trials && !run.is_cancelled() {
                let next = self
                    .retry_access(run, || self.next_trial(study, &begun, fence))
                    .await;
                let trial = match next {
                    Ok(trial) => trial,
                    Err(AutomlError::StudyFull | AutomlError::StudyEnded(_)) => break,
                    Err(e) => return Err(e),
                };
                begun.insert(trial.number);
                let (this, study, run) = (Arc::clone(self), study.clone(), Arc::clone(run));
                let fence = fence.clone();
                workers.spawn(in_current_trace(async move {
                    this.run_trial(&study, trial, &run, &fence).await
                }));
            }
            match workers.join_next().await {
                None => break,
                Some(Ok(result)) => result?,
                Some(Err(_)) => return Err(AutomlError::Worker),
            }
        }
        if run.is_cancelled() {
            return Ok(());
        }
        self.retry_access(run, || self.finish(study.id, fence))
            .await
    }

    /// A trial that is stored as running and was not started by this process, or else a new one. The
    /// former is left from the last process, or from a write whose response was lost.
    async fn next_trial(
        self: &Arc<Self>,
        study: &StudyRow,
        begun: &HashSet<u32>,
        fence: &Fence,
    ) -> Result<TrialRow, AutomlError> {
        let running = self.store.running_trials(study.id).await?;
        let mut left = running.into_iter().filter(|t| !begun.contains(&t.number));
        match left.next() {
            Some(left) => self.restart_trial(left, fence).await,
            None => self.ask(study, Some(fence)).await,
        }
    }

    async fn run_trial(
        self: &Arc<Self>,
        study: &StudyRow,
        trial: TrialRow,
        run: &Cancellation,
        fence: &Fence,
    ) -> Result<(), AutomlError> {
        let reached = Reached::default();
        let trained = self.train_with_retries(study, &trial, &reached, run, fence);
        let trained = trained.await;
        let (state, score, error) = match trained {
            Ok(TrialOutcome::Score(score)) => (TrialState::Complete, Some(score), String::new()),
            Ok(TrialOutcome::Pruned) => (TrialState::Pruned, None, String::new()),
            Ok(TrialOutcome::Cancelled) => (TrialState::Failed, None, "cancelled".to_owned()),
            Err(AutomlError::Call(error)) if error.failure() != Failure::Superseded => {
                (TrialState::Failed, None, error.to_string())
            }
            Err(e) => return Err(e),
        };
        let steps = match state {
            TrialState::Failed => reached.up_to_the_next_report(study),
            _ => reached.reported(),
        };
        let end = TrialEnd {
            state,
            score,
            error,
            steps,
        };
        let tell = || self.tell(study, trial.number, end.clone(), Some(fence));
        self.retry_access(run, tell).await.map(drop)
    }

    /// Trains until there is an outcome; retries while the trainer is busy or unreachable.
    async fn train_with_retries(
        self: &Arc<Self>,
        study: &StudyRow,
        trial: &TrialRow,
        reached: &Reached,
        run: &Cancellation,
        fence: &Fence,
    ) -> Result<TrialOutcome, AutomlError> {
        let mut retries = TrialRetries::new(self.pacing);
        loop {
            let error = match self.train(study, trial, reached, run, fence).await {
                Err(AutomlError::Call(error)) => error,
                other => return other,
            };
            let Some(pause) = retries.after(error.failure()) else {
                return Err(AutomlError::Call(error));
            };
            let (number, reason) = (trial.number, error.message());
            tracing::info!(study = %study.id, trial = number, reason, "a trial waits for the trainer");
            if run.is_cancelled_within(pause).await {
                return Ok(TrialOutcome::Cancelled);
            }
        }
    }

    /// Follows one training run to its end.
    async fn train(
        self: &Arc<Self>,
        study: &StudyRow,
        trial: &TrialRow,
        reached: &Reached,
        run: &Cancellation,
        fence: &Fence,
    ) -> Result<TrialOutcome, AutomlError> {
        // Dropping the run cancels it in Orchestration.
        let mut training = self.peers.trainer.evaluate(evaluation(study, trial, fence));
        loop {
            let stopped = run.stopped();
            if run.is_cancelled() {
                return Ok(TrialOutcome::Cancelled);
            }
            let update = tokio::select! {
                update = training.next() => update?,
                () = stopped => return Ok(TrialOutcome::Cancelled),
            };
            let (step, mean_return) = match update {
                Update::Began => {
                    reached.begin();
                    continue;
                }
                Update::Progress { step, mean_return } => (step, mean_return),
                Update::Ended(score) => return Ok(TrialOutcome::Score(score)),
            };
            reached.reach(step);
            let Some(value) = mean_return else { continue };
            let report = || self.report(study, trial.number, step, value, Some(fence));
            if self.retry_access(run, report).await? {
                return Ok(TrialOutcome::Pruned);
            }
        }
    }

    /// Retries a database access while it fails transiently, until the study is cancelled.
    async fn retry_access<T, F>(
        &self,
        run: &Cancellation,
        access: impl Fn() -> F,
    ) -> Result<T, AutomlError>
    where
        F: Future<Output = Result<T, AutomlError>>,
    {
        retry_access(run, AccessRetries::new(self.pacing), access).await
    }
}

fn lost(study: Uuid) {
    tracing::info!(%study, "a study is no longer run by this process");
}

/// The training run of a trial, for the process whose fence this is.
fn evaluation(study: &StudyRow, trial: &TrialRow, fence: &Fence) -> Evaluation {
    Evaluation {
        agent_type: study.agent_type.clone(),
        environment: study.environment.clone(),
        agent: study.agent_id.clone(),
        hyperparameters: hyper::params(&trial.parameters),
        seed: seeds::for_trial(study.seed, trial.number),
        steps: study.steps,
        reports: u32::try_from(reports(study.steps)).unwrap_or(u32::MAX),
        on_behalf_of: study.owner_id.clone(),
        verification: false,
        work_id: lease_of(study.id),
        fencing_token: u64::try_from(fence.token()).unwrap_or_default(),
    }
}

async fn retry_access<T, F>(
    run: &Cancellation,
    mut accesses: AccessRetries,
    access: impl Fn() -> F,
) -> Result<T, AutomlError>
where
    F: Future<Output = Result<T, AutomlError>>,
{
    loop {
        let error = match access().await {
            Err(e) => e,
            done => return done,
        };
        let Some(pause) = accesses.after(&error) else {
            return Err(error);
        };
        tracing::info!(?error, "a study waits for the database");
        if run.is_cancelled_within(pause).await {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests;
