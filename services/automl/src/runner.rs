//! Runs studies: a few trials at a time, each a training run in Orchestration, reported as it goes
//! and stopped when the pruner says so. What was running when the process stopped is run again.

use crate::{
    Automl, AutomlError,
    store::{StudyRow, StudyState, TrialRow, TrialState},
    studies::Watched,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tars_interceptors::{
    call::{in_current_trace, with_trace},
    client::finish,
};
use tars_proto::{
    fault,
    orchestration::v1::{
        EvaluateHyperparametersRequest, EvaluationResult, ReadHyperparametersRequest,
    },
    params::{self, Param},
};
use tars_runtime::trace::{Kind, Parent, Tracer};
use tars_search::{Assignment, Value};
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// Reports of a trial, for the pruner.
const REPORTS: u32 = 10;
const EVAL_EPISODES: u32 = 20;
/// How often in succession a trial is tried again while Orchestration is away.
const MAX_RETRIES: u32 = 20;

enum Ended {
    Score(f64),
    Pruned,
    Cancelled,
}

/// What Orchestration says an agent is.
#[derive(Debug)]
pub(crate) struct AgentKind {
    pub(crate) agent_type: String,
    pub(crate) environment: String,
}

impl Automl {
    pub(crate) async fn agent_kind(&self, agent_id: &str) -> Result<AgentKind, AutomlError> {
        let request = ReadHyperparametersRequest {
            agent_id: agent_id.to_owned(),
        };
        let answer = self
            .trainers
            .agents
            .clone()
            .read_hyperparameters(request)
            .await?
            .into_inner();
        Ok(AgentKind {
            agent_type: answer.agent_type,
            environment: answer.environment,
        })
    }

    /// Goes on with every study that had not ended.
    pub async fn resume(self: &Arc<Self>, tracer: &Tracer) -> Result<usize, AutomlError> {
        let studies = self.store.unfinished().await?;
        let count = studies.len();
        for study in studies {
            tracing::info!(study = %study.id, "study resumed");
            self.run_in_background(study, tracer);
        }
        Ok(count)
    }

    /// Whether one more study may run.
    pub(crate) fn has_room(&self) -> bool {
        self.running.available_permits() > 0
    }

    pub(crate) fn run_in_background(self: &Arc<Self>, study: StudyRow, tracer: &Tracer) {
        let this = Arc::clone(self);
        let parent = Parent::kept(&study.traceparent);
        let mut span = tracer.start("automl.study", Kind::Internal, parent);
        span.set("tars.study.id", study.id.to_string());
        span.set("tars.agent.id", study.agent_id.clone());
        let work = async move {
            let Ok(_permit) = Arc::clone(&this.running).acquire_owned().await else {
                return;
            };
            if let Err(e) = this.run(&study).await {
                tracing::warn!(study = %study.id, error = ?e, "study failed");
                let ended = this
                    .end_study(study.id, StudyState::Failed, &e.to_string(), "automl")
                    .await;
                if let Err(e) = ended {
                    tracing::error!(study = %study.id, error = %e, "the end of a study could not be stored");
                }
            }
        };
        tokio::spawn(with_trace(span, work));
    }

    async fn run(self: &Arc<Self>, study: &StudyRow) -> Result<(), AutomlError> {
        let watched = self.watched(study.id);
        let trials = self.store.all_trials(study.id).await?;
        let mut again: Vec<TrialRow> = trials
            .into_iter()
            .filter(|t| t.state == TrialState::Running)
            .collect();
        let mut workers: JoinSet<Result<(), AutomlError>> = JoinSet::new();
        loop {
            while workers.len() < self.settings.parallel_trials
                && !watched.cancelled.load(Ordering::Relaxed)
            {
                let next = match again.pop() {
                    Some(old) => self.restart_trial(old).await,
                    None => self.ask(study).await,
                };
                let trial = match next {
                    Ok(trial) => trial,
                    Err(AutomlError::StudyFull | AutomlError::StudyEnded(_)) => break,
                    Err(e) => return Err(e),
                };
                let (this, study, watched) =
                    (Arc::clone(self), study.clone(), Arc::clone(&watched));
                workers.spawn(in_current_trace(async move {
                    this.run_trial(&study, trial, &watched).await
                }));
            }
            match workers.join_next().await {
                None => break,
                Some(Ok(result)) => result?,
                Some(Err(_)) => return Err(AutomlError::Worker),
            }
        }
        if watched.cancelled.load(Ordering::Relaxed) {
            Ok(())
        } else {
            self.finish(study.id).await
        }
    }

    async fn run_trial(
        &self,
        study: &StudyRow,
        trial: TrialRow,
        watched: &Watched,
    ) -> Result<(), AutomlError> {
        let number = trial.number;
        let told = match self.train_patiently(study, &trial, watched).await {
            Ok(Ended::Score(score)) => {
                self.tell(study, number, TrialState::Complete, Some(score), "")
                    .await
            }
            Ok(Ended::Pruned) => self.tell(study, number, TrialState::Pruned, None, "").await,
            Ok(Ended::Cancelled) => {
                self.tell(study, number, TrialState::Failed, None, "cancelled")
                    .await
            }
            Err(AutomlError::Call(status)) => {
                self.tell(study, number, TrialState::Failed, None, status.message())
                    .await
            }
            Err(e) => return Err(e),
        };
        told.map(drop)
    }

    /// Trains, again while there is no room or no trainer, until there is an outcome.
    async fn train_patiently(
        &self,
        study: &StudyRow,
        trial: &TrialRow,
        watched: &Watched,
    ) -> Result<Ended, AutomlError> {
        let mut retries = Retries::default();
        loop {
            let status = match self.train(study, trial, watched).await {
                Err(AutomlError::Call(status)) => status,
                other => return other,
            };
            let Some(pause) = retries.after(&status) else {
                return Err(AutomlError::Call(status));
            };
            let (number, reason) = (trial.number, status.message());
            tracing::info!(study = %study.id, trial = number, reason, "trial waits for a trainer");
            if watched.is_cancelled_within(pause).await {
                return Ok(Ended::Cancelled);
            }
        }
    }

    /// One training run, followed to its end.
    async fn train(
        &self,
        study: &StudyRow,
        trial: &TrialRow,
        watched: &Watched,
    ) -> Result<Ended, AutomlError> {
        let request = EvaluateHyperparametersRequest {
            agent_type: study.agent_type.clone(),
            environment: study.environment.clone(),
            hyperparameters: Some(params::to_struct(&to_params(&trial.parameters))),
            seed: training_seed(study.seed, trial.number),
            steps: study.steps,
            eval_episodes: Some(EVAL_EPISODES),
            reports: Some(REPORTS),
            after_sequence: 0,
            on_behalf_of: study.owner_id.clone(),
            verification: false,
        };
        let mut items = self
            .trainers
            .training
            .clone()
            .evaluate_hyperparameters(request)
            .await?
            .into_inner();
        loop {
            if watched.cancelled.load(Ordering::Relaxed) {
                return Ok(Ended::Cancelled);
            }
            // Dropping `items` stops the run over there.
            let item = tokio::select! {
                item = items.message() => item?,
                () = watched.stop.notified() => return Ok(Ended::Cancelled),
            };
            let Some(item) = item else {
                return Err(Status::unavailable("the trainer's stream ended early").into());
            };
            if let Some(EvaluationResult { mean_return, .. }) = item.result {
                finish(items).await;
                return Ok(Ended::Score(mean_return));
            }
            let Some((step, value)) = item.progress.and_then(|p| Some((p.step, p.mean_return?)))
            else {
                continue;
            };
            if self.report(study, trial.number, step, value).await? {
                return Ok(Ended::Pruned);
            }
        }
    }
}

/// The tries of one trial. There is no end to waiting for room: a full queue or share says nothing of
/// the trial.
#[derive(Debug, Default)]
struct Retries {
    all: u64,
    away: u32,
}

impl Retries {
    /// How long to wait before the next try; `None` when the failure is the outcome.
    fn after(&mut self, status: &Status) -> Option<Duration> {
        if fault::is_busy(status) {
            self.away = 0;
        } else {
            let passes = matches!(status.code(), Code::Unavailable | Code::Unknown);
            if !passes || self.away == MAX_RETRIES {
                return None;
            }
            self.away += 1;
        }
        self.all += 1;
        Some(Duration::from_secs(self.all.min(30)))
    }
}

/// Even numbers: verification uses odd ones, so that it never repeats a search's run.
pub(crate) fn training_seed(study: u64, number: u32) -> u64 {
    let mixed = (study ^ 0x5851_f42d_4c95_7f2d)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(number));
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 12 << 1
}

pub(crate) fn to_params(assignment: &Assignment) -> params::Params {
    assignment
        .iter()
        .map(|(name, value)| {
            let param = match value {
                Value::Flag(b) => Param::Flag(*b),
                Value::Number(n) => Param::Number(*n),
                Value::Text(s) => Param::Text(s.clone()),
            };
            (name.clone(), param)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_or_share_never_fails_a_trial() {
        let soon = Duration::from_secs(1);
        let full = [
            fault::share_full("peer", "calls", soon),
            fault::overloaded("too many calls are in flight", soon),
            fault::spent("LEARNERS_BUSY", "learners", "too many runs wait", soon),
        ];
        let mut retries = Retries::default();
        for status in full.iter().cycle().take(1000) {
            let pause = retries.after(status).expect("waits");
            assert!(pause >= soon && pause <= soon * 30);
        }
    }

    #[test]
    fn an_absent_trainer_is_waited_for_a_bounded_number_of_times() {
        let away = Status::unavailable("no route");
        let mut retries = Retries::default();
        for _ in 0..MAX_RETRIES {
            assert!(retries.after(&away).is_some());
        }
        assert_eq!(retries.after(&away), None);
        assert_eq!(Retries::default().after(&fault::internal()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_waits_hears_of_its_cancellation() {
        let watched = Watched::default();
        assert!(!watched.is_cancelled_within(Duration::from_secs(1)).await);
        let day = Duration::from_secs(86_400);
        let begun = tokio::time::Instant::now();
        let cancel = async {
            tokio::task::yield_now().await;
            watched.cancel();
        };
        let (cancelled, ()) = tokio::join!(watched.is_cancelled_within(day), cancel);
        assert!(cancelled && begun.elapsed() < day);
        assert!(watched.is_cancelled_within(day).await);
    }

    #[test]
    fn training_seeds_are_even_and_differ() {
        let seeds: std::collections::BTreeSet<u64> =
            (0..1000).map(|n| training_seed(7, n)).collect();
        assert_eq!(seeds.len(), 1000);
        assert!(seeds.iter().all(|s| s % 2 == 0 && *s < 1 << 53));
    }
}
