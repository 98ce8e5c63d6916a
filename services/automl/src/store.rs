//! AutoML's SQL.

mod trials;

pub(crate) use trials::{
    Past, Tally, TrialRow, TrialState, best_of, completed_values, count_ended, count_steps,
    insert_trial, tally_of, trial_in, update_running_trial,
};

use crate::AutomlError;
use tars_runtime::{
    audit, changes,
    db::{
        Db, DbError, Fetch, FromRow, Isolation, Migration, Query, Row, Swap, Transaction, Write,
        json,
    },
    lease::{self, Fence},
    page::{Page, Size},
    usage,
};
use tars_search::{Pruner, Sampler, Space};
use uuid::Uuid;

pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration::new(1, "initial", include_str!("../migrations/0001_initial.sql")),
    Migration::new(2, "audit outbox", audit::MIGRATION),
    Migration::new(3, "owners", include_str!("../migrations/0003_owners.sql")),
    Migration::new(4, "leases", lease::MIGRATION),
    Migration::new(5, "events", include_str!("../migrations/0005_events.sql")),
    Migration::new(6, "change numbers", changes::MIGRATION),
    Migration::new(7, "usage outbox", usage::MIGRATION),
    Migration::new(
        8,
        "counted steps",
        include_str!("../migrations/0008_counted_steps.sql"),
    ),
    Migration::new(9, "usage set aside", usage::SET_ASIDE),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StudyState {
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl StudyState {
    const ALL: [Self; 4] = [
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct StudyRow {
    pub(crate) id: Uuid,
    pub(crate) agent_id: String,
    pub(crate) agent_type: String,
    pub(crate) environment: String,
    pub(crate) state: StudyState,
    pub(crate) server_run: bool,
    pub(crate) sampler: Sampler,
    pub(crate) pruner: Pruner,
    pub(crate) n_trials: u32,
    pub(crate) space: Space,
    pub(crate) seed: u64,
    /// Environment steps of each trial; zero when the caller runs the trials.
    pub(crate) steps: u64,
    pub(crate) owner: String,
    /// The owner whose share of the learners the trials take: the person, even behind an API key.
    pub(crate) owner_id: String,
    pub(crate) error: String,
    pub(crate) traceparent: String,
    pub(crate) started_us: i64,
    pub(crate) completed_us: Option<i64>,
}

/// How far a study is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) state: StudyState,
    /// The number of its last change; zero before the first.
    pub(crate) events: i64,
}

/// The step before which no trial is pruned.
pub(crate) fn warmup(steps: u64) -> u64 {
    steps / 10 * 3 + steps % 10 * 3 / 10
}

impl FromRow for StudyRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: Uuid = row.get("id")?;
        let row = row.named("studies", id);
        let seed: i64 = row.get("seed")?;
        let steps: u64 = row.number("steps")?;
        Ok(Self {
            id,
            agent_id: row.get("agent_id")?,
            agent_type: row.get("agent_type")?,
            environment: row.get("environment")?,
            state: row.word("state", StudyState::parse)?,
            server_run: row.get("server_run")?,
            sampler: row.word("sampler", Sampler::parse)?,
            pruner: row.word("pruner", |name| Pruner::parse(name, warmup(steps)))?,
            n_trials: row.number("n_trials")?,
            space: row.json("space")?,
            seed: seed as u64,
            steps,
            owner: row.get("owner")?,
            owner_id: row.get("owner_id")?,
            error: row.get("error")?,
            traceparent: row.get("traceparent")?,
            started_us: row.get("started_us")?,
            completed_us: row.get("completed_us")?,
        })
    }
}

impl FromRow for Progress {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: Uuid = row.get("id")?;
        let row = row.named("studies", id);
        Ok(Self {
            state: row.word("state", StudyState::parse)?,
            events: row.get("events")?,
        })
    }
}

const STUDY: &str = "SELECT id, agent_id, agent_type, environment, state, server_run, sampler, pruner, n_trials, \
                     space, seed, steps, owner, owner_id, error, traceparent, started_us, completed_us \
                     FROM studies WHERE id = $1";
const STUDIES: &str = "SELECT id, agent_id, agent_type, environment, state, server_run, sampler, pruner, n_trials, \
                       space, seed, steps, owner, owner_id, error, traceparent, started_us, completed_us \
                       FROM studies WHERE id < $1 ORDER BY id DESC LIMIT $2";
const UNFINISHED: &str = "SELECT id, agent_id, agent_type, environment, state, server_run, sampler, pruner, \
                          n_trials, space, seed, steps, owner, owner_id, error, traceparent, started_us, \
                          completed_us FROM studies WHERE state = 'running' AND server_run";
const PROGRESS: &str = "SELECT id, state, events FROM studies WHERE id = $1";
/// What comes after the end has no number, since nobody watches it.
const NEXT_EVENT: &str =
    "UPDATE studies SET events = events + 1 WHERE id = $1 AND state = 'running' RETURNING events";
const INSERT_STUDY: &str = "INSERT INTO studies (id, agent_id, agent_type, environment, state, server_run, sampler, \
                            pruner, n_trials, space, seed, steps, owner, error, traceparent, started_us, \
                            completed_us, owner_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
                            $13, $14, $15, $16, $17, $18)";
const END_STUDY: &str = "UPDATE studies SET state = $1, error = $2, completed_us = $3, events = events + 1 \
                         WHERE id = $4 AND state = 'running'";
const COUNT: &str = "SELECT COUNT(*) AS studies FROM studies WHERE owner_id = $1";
const COUNT_RUNNING: &str =
    "SELECT COUNT(*) AS studies FROM studies WHERE owner_id = $1 AND state = 'running'";
const BUDGET: &str = "SELECT CAST(COALESCE(SUM(n_trials * steps), 0) AS BIGINT) AS budget FROM studies \
                      WHERE owner_id = $1 AND state = 'running' AND server_run";
/// What trials have taken of it, and what those that have ended will not take.
const SPENT: &str = "SELECT CAST(COALESCE(SUM(CASE t.state WHEN 'running' THEN t.counted ELSE s.steps END), 0) AS BIGINT) \
                     AS spent FROM studies s JOIN trials t ON t.study_id = s.id \
                     WHERE s.owner_id = $1 AND s.state = 'running' AND s.server_run";

#[derive(Debug)]
pub(crate) struct Store {
    db: Db,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, AutomlError> {
        Ok(self.db.write(name, Isolation::Exclusive).await?)
    }

    /// Begins a transaction of whoever runs a study: the process that owns it, or without a fence the
    /// caller who runs its trials.
    pub(crate) async fn begin_owned(
        &self,
        name: &'static str,
        fence: Option<&Fence>,
    ) -> Result<Write, AutomlError> {
        match fence {
            Some(fence) => Ok(fence.begin(&self.db, name, Isolation::Exclusive).await?),
            None => self.begin(name).await,
        }
    }

    pub(crate) async fn study(&self, id: Uuid) -> Result<StudyRow, AutomlError> {
        study_in(&mut self.db.read("studies.get"), id).await
    }

    pub(crate) async fn studies(
        &self,
        before: Uuid,
        size: Size,
    ) -> Result<Page<StudyRow>, AutomlError> {
        let query = Query::new(STUDIES).bind(before).bind(size.limit());
        Ok(self.db.read("studies.list").page(query, size).await?)
    }

    /// The studies that the server runs and that have not ended. A damaged row must not keep the
    /// others from being resumed.
    pub(crate) async fn unfinished(&self) -> Result<Vec<StudyRow>, AutomlError> {
        let mut db = self.db.read("studies.unfinished");
        let rows: Vec<Result<StudyRow, DbError>> = db.all(Query::new(UNFINISHED)).await?;
        let readable = |row| match row {
            Ok(study) => Some(study),
            Err(e) => {
                tracing::error!(error = %e, "a study cannot be resumed");
                None
            }
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    pub(crate) async fn progress(&self, study: Uuid) -> Result<Progress, AutomlError> {
        progress_in(&mut self.db.read("studies.progress"), study).await
    }
}

/// Reads a study in a transaction.
pub(crate) async fn study_in(db: &mut impl Fetch, id: Uuid) -> Result<StudyRow, AutomlError> {
    let found = db.optional(Query::new(STUDY).bind(id)).await?;
    found.ok_or_else(|| no_study(id))
}

/// How many studies an owner has.
pub(crate) async fn count_studies(db: &mut impl Fetch, owner_id: &str) -> Result<i64, AutomlError> {
    Ok(db
        .value(Query::new(COUNT).bind(owner_id), "studies")
        .await?)
}

/// How many studies of an owner have not ended.
pub(crate) async fn count_running_studies(
    db: &mut impl Fetch,
    owner_id: &str,
) -> Result<i64, AutomlError> {
    let query = Query::new(COUNT_RUNNING).bind(owner_id);
    Ok(db.value(query, "studies").await?)
}

/// The steps that the studies of a user may still take.
pub(crate) async fn promised_steps(
    db: &mut impl Fetch,
    owner_id: &str,
) -> Result<u64, AutomlError> {
    let budget: i64 = db
        .value(Query::new(BUDGET).bind(owner_id), "budget")
        .await?;
    let spent: i64 = db.value(Query::new(SPENT).bind(owner_id), "spent").await?;
    Ok(u64::try_from(budget.saturating_sub(spent)).unwrap_or_default())
}

/// Finds a study, if it was written.
pub(crate) fn proof_of_study(id: Uuid) -> Query<'static> {
    Query::new(PROGRESS).bind(id)
}

fn no_study(id: Uuid) -> AutomlError {
    AutomlError::NotFound("study", id.to_string())
}

pub(crate) async fn insert_study(tx: &mut Transaction, row: &StudyRow) -> Result<(), AutomlError> {
    let insert = Query::new(INSERT_STUDY)
        .bind(row.id)
        .bind(&row.agent_id)
        .bind(&row.agent_type)
        .bind(&row.environment)
        .bind(row.state.as_str())
        .bind(row.server_run)
        .bind(row.sampler.as_str())
        .bind(row.pruner.as_str())
        .bind(row.n_trials)
        .bind(json(&row.space)?)
        .bind(row.seed as i64)
        .bind(i64::try_from(row.steps).unwrap_or(i64::MAX))
        .bind(&row.owner)
        .bind(&row.error)
        .bind(&row.traceparent)
        .bind(row.started_us)
        .bind(row.completed_us)
        .bind(&row.owner_id);
    Ok(tx.execute(insert).await?.one()?)
}

/// Ends a running study; lost when it has already ended.
pub(crate) async fn end_study(
    tx: &mut Transaction,
    id: Uuid,
    state: StudyState,
    error: &str,
    now_us: i64,
) -> Result<Swap, AutomlError> {
    let end = Query::new(END_STUDY)
        .bind(state.as_str())
        .bind(error)
        .bind(now_us)
        .bind(id);
    Ok(tx.execute(end).await?.swap())
}

async fn progress_in(db: &mut impl Fetch, id: Uuid) -> Result<Progress, AutomlError> {
    let found = db.optional(Query::new(PROGRESS).bind(id)).await?;
    found.ok_or_else(|| no_study(id))
}

pub(crate) async fn study_state(tx: &mut Transaction, id: Uuid) -> Result<StudyState, AutomlError> {
    Ok(progress_in(tx, id).await?.state)
}

/// Gives a trial's change the next number of its study, unless the study has ended.
pub(crate) async fn number_event(
    tx: &mut Transaction,
    row: &mut TrialRow,
) -> Result<(), AutomlError> {
    let next = Query::new(NEXT_EVENT).bind(row.study_id);
    if let Some(number) = tx.optional_value(next, "events").await? {
        row.event = number;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
