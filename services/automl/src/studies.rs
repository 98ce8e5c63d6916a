//! The operations on studies: create, ask, report, tell, cancel. Suggestions are computed from a
//! snapshot outside of any lock; when another trial has taken the number meanwhile, it is retried.

use crate::{
    Automl, AutomlError,
    store::{self, Past, StudyRow, StudyState, TrialRow, TrialState, warmup},
    views::StudyView,
};
use std::sync::Arc;
use tars_interceptors::usage::Allowance;
use tars_runtime::{
    audit::{self, Record},
    db::{Swap, Transaction, Write},
    lease::Fence,
    page::{self, Page},
    tasks::to_the_end,
    trace,
};
use tars_search::{Direction, Observation, Pruner, Sampler, Space};
use uuid::Uuid;

const MAX_INTERMEDIATE: usize = 1000;
const DEFAULT_TRIALS: u32 = 100;
pub(crate) const DEFAULT_STEPS: u64 = 20_000;

/// The parameters of a new study.
#[derive(Debug)]
pub(crate) struct NewStudy {
    pub(crate) agent_id: String,
    pub(crate) agent_type: String,
    pub(crate) environment: String,
    pub(crate) server_run: bool,
    pub(crate) sampler: Option<String>,
    pub(crate) pruner: Option<String>,
    pub(crate) n_trials: Option<u32>,
    pub(crate) space: Space,
    pub(crate) seed: Option<u64>,
    pub(crate) steps: Option<u64>,
    pub(crate) owner: String,
    pub(crate) owner_id: String,
    /// What that owner may use.
    pub(crate) allowance: Allowance,
}

/// How a trial ends.
#[derive(Debug, Clone)]
pub(crate) struct TrialEnd {
    pub(crate) state: TrialState,
    pub(crate) score: Option<f64>,
    pub(crate) error: String,
    /// The steps that it is charged for where the server took them and it is not complete.
    pub(crate) steps: u64,
}

impl TrialEnd {
    pub(crate) fn of(state: TrialState, score: Option<f64>, error: &str) -> Self {
        Self {
            state,
            score,
            error: error.to_owned(),
            steps: 0,
        }
    }
}

impl Automl {
    /// Creates a study and runs it, even if the caller goes away in between.
    pub(crate) async fn start_study(
        self: &Arc<Self>,
        new: NewStudy,
    ) -> Result<StudyRow, AutomlError> {
        let this = Arc::clone(self);
        to_the_end(async move {
            let turn = Arc::clone(&this.running).try_acquire_owned();
            let turn = turn.map_err(|_| AutomlError::Busy)?;
            let row = this.create_study(new).await?;
            this.run_in_background(row.clone(), Some(turn));
            Ok(row)
        })
        .await
    }

    /// Commits a change of a study and announces it to its watchers and its run, both even if the call is
    /// dropped.
    async fn commit(self: &Arc<Self>, tx: Write) -> Result<(), AutomlError> {
        let this = Arc::clone(self);
        to_the_end(async move { Ok(this.changes.commit(tx).await?) }).await
    }

    /// Commits the end of a trial, and measures it.
    async fn commit_end(self: &Arc<Self>, tx: Write, row: &TrialRow) -> Result<(), AutomlError> {
        let (this, outcome, began_us) = (Arc::clone(self), row.state.as_str(), row.started_us);
        to_the_end(async move {
            this.changes.commit(tx).await?;
            this.trials.record(outcome, began_us, &this.clock);
            Ok(())
        })
        .await
    }

    pub(crate) async fn create_study(&self, new: NewStudy) -> Result<StudyRow, AutomlError> {
        let invalid = |field, problem: &str| AutomlError::Invalid {
            field,
            problem: problem.to_owned(),
        };
        let steps = match new.server_run {
            true => new.steps.unwrap_or(DEFAULT_STEPS),
            false => 0,
        };
        let sampler = Sampler::parse(new.sampler.as_deref().unwrap_or("tpe"))
            .ok_or_else(|| invalid("sampler_type", "must be tpe or random"))?;
        let pruner = Pruner::parse(new.pruner.as_deref().unwrap_or("median"), warmup(steps))
            .ok_or_else(|| invalid("pruner_type", "must be median or none"))?;
        let row = StudyRow {
            id: Uuid::now_v7(),
            agent_id: new.agent_id,
            agent_type: new.agent_type,
            environment: new.environment,
            state: StudyState::Running,
            server_run: new.server_run,
            sampler,
            pruner,
            n_trials: new.n_trials.unwrap_or(DEFAULT_TRIALS),
            space: new.space,
            seed: new.seed.unwrap_or_else(|| self.seeds.draw()),
            steps,
            owner: new.owner,
            owner_id: new.owner_id,
            error: String::new(),
            traceparent: trace::current().map(|c| c.to_header()).unwrap_or_default(),
            started_us: self.clock.now_us(),
            completed_us: None,
        };
        let allowance = new.allowance;
        let record = Record::new(&self.clock, "automl", "study.created")
            .caller(&row.owner)
            .resource(row.id.to_string())
            .detail("agent", &row.agent_id)
            .detail("trials", row.n_trials);
        let mut tx = self.store.begin("studies.create").await?;
        self.ensure_within_share(&mut tx, &row.owner_id).await?;
        self.ensure_within_quota(&mut tx, &row, &allowance).await?;
        store::insert_study(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit_with_proof(store::proof_of_study(row.id)).await?;
        Ok(row)
    }

    /// Refuses a study of an owner who has as many as one may have.
    async fn ensure_within_share(
        &self,
        tx: &mut Transaction,
        owner_id: &str,
    ) -> Result<(), AutomlError> {
        let settings = &self.settings;
        let running = store::count_running_studies(tx, owner_id).await?;
        if is_reached(running, settings.max_running_studies_by_owner) {
            return Err(AutomlError::RunningFull(running));
        }
        let all = store::count_studies(tx, owner_id).await?;
        if is_reached(all, settings.max_studies_by_owner) {
            return Err(AutomlError::StudiesFull(all));
        }
        Ok(())
    }

    /// Refuses a study whose steps do not fit into what its owner has left. What their other studies may still take
    /// is promised to these.
    async fn ensure_within_quota(
        &self,
        tx: &mut Transaction,
        row: &StudyRow,
        allowance: &Allowance,
    ) -> Result<(), AutomlError> {
        if !row.server_run {
            return Ok(());
        }
        let promised = store::promised_steps(tx, &row.owner_id).await?;
        let steps = row.steps.saturating_mul(u64::from(row.n_trials));
        self.usage
            .ensure_steps(tx, allowance, promised, steps)
            .await
    }

    pub(crate) async fn study_view(&self, id: Uuid) -> Result<StudyView, AutomlError> {
        let row = self.store.study(id).await?;
        self.view(row).await
    }

    async fn view(&self, row: StudyRow) -> Result<StudyView, AutomlError> {
        StudyView::read(&mut self.store.db().read("studies.view"), row).await
    }

    pub(crate) async fn list_studies(
        &self,
        token: &str,
        size: u32,
    ) -> Result<(Vec<StudyView>, String), AutomlError> {
        let before = page::start(token, Uuid::max())?;
        let size = page::size(size);
        let Page { rows, mut more } = self.store.studies(before, size).await?;
        // The best trials are no part of the rows, and have room of their own.
        let (mut room, mut views) = (size.room(), Vec::new());
        for row in rows {
            let view = self.view(row).await?;
            if !room.take(view.best.as_ref().map_or(0, TrialRow::bytes)) {
                more = true;
                break;
            }
            views.push(view);
        }
        let page = Page { rows: views, more };
        Ok(page.cut(|view| view.row.id.to_string()))
    }

    pub(crate) async fn list_trials(
        &self,
        study: Uuid,
        token: &str,
        size: u32,
    ) -> Result<(Vec<TrialRow>, String), AutomlError> {
        self.store.study(study).await?;
        let from = page::start(token, 0)?;
        let size = page::size(size);
        let page = self.store.trials(study, from, size).await?;
        Ok(page.cut(|t| (t.number + 1).to_string()))
    }

    /// The next trial of a study, with its parameters.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        study: &StudyRow,
        fence: Option<&Fence>,
    ) -> Result<TrialRow, AutomlError> {
        loop {
            let past = self.store.past(study.id).await?;
            let number = u32::try_from(past.len()).unwrap_or(u32::MAX);
            if number >= study.n_trials {
                return Err(AutomlError::StudyFull);
            }
            let parameters = suggest(study.clone(), past, number).await?;
            let mut row = TrialRow {
                study_id: study.id,
                number,
                state: TrialState::Running,
                parameters,
                score: None,
                intermediate: Vec::new(),
                attempt: 1,
                error: String::new(),
                started_us: self.clock.now_us(),
                ended_us: None,
                event: 0,
                counted: 0,
            };
            let mut tx = self.store.begin_owned("trials.ask", fence).await?;
            expect_running(&mut tx, study.id).await?;
            store::number_event(&mut tx, &mut row).await?;
            if store::insert_trial(&mut tx, &row).await?.is_done() {
                self.commit(tx).await?;
                return Ok(row);
            }
        }
    }

    /// Restarts a trial that was running when the process stopped.
    pub(crate) async fn restart_trial(
        self: &Arc<Self>,
        mut row: TrialRow,
        fence: &Fence,
    ) -> Result<TrialRow, AutomlError> {
        row.attempt += 1;
        row.intermediate.clear();
        let mut tx = self
            .store
            .begin_owned("trials.restart", Some(fence))
            .await?;
        expect_running(&mut tx, row.study_id).await?;
        store::number_event(&mut tx, &mut row).await?;
        if store::update_running_trial(&mut tx, &row).await? == Swap::Lost {
            let now = store::trial_in(&mut tx, row.study_id, row.number).await?;
            return Err(AutomlError::TrialEnded(now.state.as_str()));
        }
        self.commit(tx).await?;
        Ok(row)
    }

    /// Records an intermediate value and returns whether to prune the trial. A step that was reported
    /// before keeps its value.
    pub(crate) async fn report(
        self: &Arc<Self>,
        study: &StudyRow,
        number: u32,
        step: u64,
        value: f64,
        fence: Option<&Fence>,
    ) -> Result<bool, AutomlError> {
        let mut tx = self.store.begin_owned("trials.report", fence).await?;
        let mut row = store::trial_in(&mut tx, study.id, number).await?;
        if row.state != TrialState::Running {
            return Err(AutomlError::TrialEnded(row.state.as_str()));
        }
        if row.intermediate.len() >= MAX_INTERMEDIATE {
            return Err(AutomlError::Invalid {
                field: "step",
                problem: "the trial has too many reports".to_owned(),
            });
        }
        match row.intermediate.binary_search_by_key(&step, |(s, _)| *s) {
            Ok(_) => {}
            Err(at) => row.intermediate.insert(at, (step, value)),
        }
        let month = self.usage.month();
        let counted = store::count_steps(&mut tx, study, &mut row, step, month).await?;
        store::number_event(&mut tx, &mut row).await?;
        let updated = store::update_running_trial(&mut tx, &row).await?;
        updated.or(AutomlError::Conflict)?;
        // Read before the commit, so that a durable report is not answered with an error.
        let others = match study.pruner {
            Pruner::None => Vec::new(),
            Pruner::Median { .. } => store::completed_values(&mut tx, study.id).await?,
        };
        self.commit(tx).await?;
        self.usage.record_steps(counted);
        let others: Vec<&[(u64, f64)]> = others.iter().map(Vec::as_slice).collect();
        Ok(study
            .pruner
            .should_prune(Direction::Maximise, &row.intermediate, &others))
    }

    /// Ends a trial, and its study with the last one. Repeating the same end has no effect.
    pub(crate) async fn tell(
        self: &Arc<Self>,
        study: &StudyRow,
        number: u32,
        end: TrialEnd,
        fence: Option<&Fence>,
    ) -> Result<TrialRow, AutomlError> {
        let mut tx = self.store.begin_owned("trials.tell", fence).await?;
        let mut row = store::trial_in(&mut tx, study.id, number).await?;
        if row.state != TrialState::Running {
            let same = row.state == end.state && row.score == end.score;
            if !same {
                return Err(AutomlError::TrialEnded(row.state.as_str()));
            }
            return Ok(row);
        }
        row.state = end.state;
        row.score = end.score;
        row.error = end.error.chars().take(1024).collect();
        row.ended_us = Some(self.clock.now_us());
        let steps = match end.state {
            TrialState::Complete => study.steps,
            _ => end.steps,
        };
        let month = self.usage.month();
        let counted = store::count_steps(&mut tx, study, &mut row, steps, month).await?;
        store::number_event(&mut tx, &mut row).await?;
        let updated = store::update_running_trial(&mut tx, &row).await?;
        updated.or(AutomlError::Conflict)?;
        let full = store::count_ended(&mut tx, study.id).await? >= i64::from(study.n_trials);
        if full {
            self.finish_in(&mut tx, study.id).await?;
        }
        self.commit_end(tx, &row).await?;
        self.usage.record_steps(counted);
        Ok(row)
    }

    /// Ends a study whose trials have all ended.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        id: Uuid,
        fence: &Fence,
    ) -> Result<(), AutomlError> {
        let mut tx = self.store.begin_owned("studies.end", Some(fence)).await?;
        self.finish_in(&mut tx, id).await?;
        self.commit(tx).await
    }

    /// Completed, or failed when none of its trials is complete. No effect when it has ended already.
    async fn finish_in(&self, tx: &mut Transaction, id: Uuid) -> Result<(), AutomlError> {
        let (state, error) = match store::tally_of(tx, id).await?.complete {
            0 => (StudyState::Failed, "no trial was completed"),
            _ => (StudyState::Completed, ""),
        };
        self.end_in(tx, id, state, error, "automl").await
    }

    async fn end_in(
        &self,
        tx: &mut Transaction,
        id: Uuid,
        state: StudyState,
        error: &str,
        by: &str,
    ) -> Result<(), AutomlError> {
        let now_us = self.clock.now_us();
        if store::end_study(tx, id, state, error, now_us).await? == Swap::Lost {
            return Ok(());
        }
        let kind = format!("study.{}", state.as_str());
        let record = Record::new(&self.clock, "automl", &kind)
            .caller(by)
            .resource(id.to_string());
        Ok(audit::insert(tx, &record).await?)
    }

    /// Ends a study that cannot continue as failed.
    pub(crate) async fn fail_study(
        self: &Arc<Self>,
        id: Uuid,
        error: &str,
        fence: &Fence,
    ) -> Result<(), AutomlError> {
        let mut tx = self.store.begin_owned("studies.end", Some(fence)).await?;
        let state = StudyState::Failed;
        self.end_in(&mut tx, id, state, error, "automl").await?;
        self.commit(tx).await
    }

    /// Cancels a study. One that has ended is returned unchanged.
    pub(crate) async fn cancel(
        self: &Arc<Self>,
        id: Uuid,
        by: &str,
    ) -> Result<StudyView, AutomlError> {
        let mut tx = self.store.begin("studies.cancel").await?;
        let state = StudyState::Cancelled;
        self.end_in(&mut tx, id, state, "", by).await?;
        let row = store::study_in(&mut tx, id).await?;
        let view = StudyView::read(&mut tx, row).await?;
        self.commit(tx).await?;
        Ok(view)
    }
}

async fn expect_running(tx: &mut Transaction, id: Uuid) -> Result<(), AutomlError> {
    match store::study_state(tx, id).await? {
        StudyState::Running => Ok(()),
        ended => Err(AutomlError::StudyEnded(ended.as_str())),
    }
}

/// Runs on a blocking thread, because a long history takes milliseconds.
async fn suggest(
    study: StudyRow,
    past: Vec<Past>,
    number: u32,
) -> Result<tars_search::Assignment, AutomlError> {
    let work = move || {
        let history: Vec<Observation> = past.into_iter().filter_map(observation).collect();
        study
            .sampler
            .suggest(&study.space, &history, study.seed, number)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| AutomlError::Worker)
}

/// Whether a count has come to a bound.
fn is_reached(count: i64, bound: u64) -> bool {
    u64::try_from(count).is_ok_and(|count| count >= bound)
}

/// A pruned trial counts with its last value; a failed one is left out.
fn observation(trial: Past) -> Option<Observation> {
    let score = match trial.state {
        TrialState::Complete | TrialState::Pruned => trial.score,
        TrialState::Running => None,
        TrialState::Failed => return None,
    };
    Some(Observation {
        assignment: trial.parameters,
        score,
    })
}

#[cfg(test)]
mod tests;
