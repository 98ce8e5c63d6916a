//! AutoML's SQL.

use crate::AutomlError;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Row, SqliteConnection, SqliteExecutor, sqlite::SqliteRow};
use tars_runtime::{
    audit,
    db::{Corrupt, Db, Step, Write, is_taken},
};
use tars_search::{Assignment, Pruner, Sampler, Space};
use uuid::Uuid;

pub(crate) const STEPS: &[Step] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "audit outbox", audit::MIGRATION),
    (3, "owners", include_str!("../migrations/0003_owners.sql")),
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrialState {
    Running,
    Complete,
    Pruned,
    Failed,
}

impl TrialState {
    const ALL: [Self; 4] = [Self::Running, Self::Complete, Self::Pruned, Self::Failed];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Pruned => "pruned",
            Self::Failed => "failed",
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
    /// Zero when the caller runs the trials.
    pub(crate) steps: u64,
    pub(crate) owner: String,
    /// Whose share of the learners its trials take: the person, also behind a key.
    pub(crate) owner_id: String,
    pub(crate) error: String,
    pub(crate) traceparent: String,
    pub(crate) started_us: i64,
    pub(crate) completed_us: Option<i64>,
}

#[derive(Debug, Clone)]
pub(crate) struct TrialRow {
    pub(crate) study_id: Uuid,
    pub(crate) number: u32,
    pub(crate) state: TrialState,
    pub(crate) parameters: Assignment,
    pub(crate) score: Option<f64>,
    pub(crate) intermediate: Vec<(u64, f64)>,
    pub(crate) attempt: u32,
    pub(crate) error: String,
    pub(crate) started_us: i64,
    pub(crate) ended_us: Option<i64>,
}

type TrialTuple = (
    Uuid,
    i64,
    String,
    String,
    Option<f64>,
    String,
    i64,
    String,
    i64,
    Option<i64>,
);

/// Before this many steps no trial is pruned.
pub(crate) fn warmup(steps: u64) -> u64 {
    steps / 10 * 3 + steps % 10 * 3 / 10
}

fn to_json<T: Serialize>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

/// Reads what a row holds as text or number; what it cannot be names the row.
struct Reading {
    table: &'static str,
    row: String,
}

impl Reading {
    fn corrupt(&self, problem: impl ToString) -> Corrupt {
        Corrupt::new(self.table, &self.row, problem)
    }

    fn json<T: DeserializeOwned>(&self, text: &str) -> Result<T, Corrupt> {
        serde_json::from_str(text).map_err(|e| self.corrupt(e))
    }

    fn number<T: TryFrom<i64>>(&self, n: i64) -> Result<T, Corrupt> {
        T::try_from(n).map_err(|_| self.corrupt(format!("{n} is out of bounds")))
    }

    fn known<T>(&self, what: &str, text: &str, value: Option<T>) -> Result<T, Corrupt> {
        value.ok_or_else(|| self.corrupt(format!("there is no {what} {text:?}")))
    }
}

fn study(row: &SqliteRow) -> Result<StudyRow, AutomlError> {
    let id: Uuid = row.try_get("id")?;
    let reading = Reading {
        table: "studies",
        row: id.to_string(),
    };
    let state: String = row.try_get("state")?;
    let space: String = row.try_get("space")?;
    let seed: i64 = row.try_get("seed")?;
    let steps: u64 = reading.number(row.try_get("steps")?)?;
    let (sampler, pruner): (String, String) = (row.try_get("sampler")?, row.try_get("pruner")?);
    Ok(StudyRow {
        id,
        agent_id: row.try_get("agent_id")?,
        agent_type: row.try_get("agent_type")?,
        environment: row.try_get("environment")?,
        state: reading.known("state", &state, StudyState::parse(&state))?,
        server_run: row.try_get("server_run")?,
        sampler: reading.known("sampler", &sampler, Sampler::parse(&sampler))?,
        pruner: reading.known("pruner", &pruner, Pruner::parse(&pruner, warmup(steps)))?,
        n_trials: reading.number(row.try_get("n_trials")?)?,
        space: reading.json(&space)?,
        seed: seed as u64,
        steps,
        owner: row.try_get("owner")?,
        owner_id: row.try_get("owner_id")?,
        error: row.try_get("error")?,
        traceparent: row.try_get("traceparent")?,
        started_us: row.try_get("started_us")?,
        completed_us: row.try_get("completed_us")?,
    })
}

fn trial(row: TrialTuple) -> Result<TrialRow, Corrupt> {
    let (
        study_id,
        number,
        state,
        parameters,
        score,
        intermediate,
        attempt,
        error,
        started_us,
        ended_us,
    ) = row;
    let reading = Reading {
        table: "trials",
        row: format!("{study_id}/{number}"),
    };
    Ok(TrialRow {
        study_id,
        number: reading.number(number)?,
        state: reading.known("state", &state, TrialState::parse(&state))?,
        parameters: reading.json(&parameters)?,
        score,
        intermediate: reading.json(&intermediate)?,
        attempt: reading.number(attempt)?,
        error,
        started_us,
        ended_us,
    })
}

const TRIAL_COLUMNS: &str = "SELECT study_id, number, state, parameters, score, intermediate, attempt, error, started_us, ended_us FROM trials";

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
        Ok(self.db.write(name).await?)
    }

    pub(crate) async fn study(&self, id: Uuid) -> Result<StudyRow, AutomlError> {
        select_study(&*self.db.read("studies.get"), id).await
    }

    pub(crate) async fn studies(
        &self,
        before: Uuid,
        limit: i64,
    ) -> Result<Vec<StudyRow>, AutomlError> {
        let db = self.db.read("studies.list");
        let rows = sqlx::query("SELECT * FROM studies WHERE id < $1 ORDER BY id DESC LIMIT $2")
            .bind(before)
            .bind(limit)
            .fetch_all(&*db)
            .await?;
        rows.iter().map(study).collect()
    }

    /// Studies that the server runs and that have not ended. One that cannot be read is no reason
    /// not to go on with the others.
    pub(crate) async fn unfinished(&self) -> Result<Vec<StudyRow>, AutomlError> {
        let db = self.db.read("studies.unfinished");
        let rows = sqlx::query("SELECT * FROM studies WHERE state = 'running' AND server_run")
            .fetch_all(&*db)
            .await?;
        let read = |row: &SqliteRow| match study(row) {
            Ok(study) => Some(study),
            Err(e) => {
                tracing::error!(error = %e, "a study cannot be resumed");
                None
            }
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    pub(crate) async fn trials(
        &self,
        study: Uuid,
        from: u32,
        limit: i64,
    ) -> Result<Vec<TrialRow>, AutomlError> {
        select_trials(&*self.db.read("trials.list"), study, from, limit).await
    }

    pub(crate) async fn all_trials(&self, study: Uuid) -> Result<Vec<TrialRow>, AutomlError> {
        self.trials(study, 0, i64::MAX).await
    }
}

async fn select_study<'a>(
    executor: impl SqliteExecutor<'a>,
    id: Uuid,
) -> Result<StudyRow, AutomlError> {
    let row = sqlx::query("SELECT * FROM studies WHERE id = $1")
        .bind(id)
        .fetch_optional(executor)
        .await?;
    let row = row.ok_or_else(|| AutomlError::NotFound("study", id.to_string()))?;
    study(&row)
}

/// A study as a transaction sees it.
pub(crate) async fn study_in(tx: &mut SqliteConnection, id: Uuid) -> Result<StudyRow, AutomlError> {
    select_study(tx, id).await
}

async fn select_trials<'a>(
    executor: impl SqliteExecutor<'a>,
    study: Uuid,
    from: u32,
    limit: i64,
) -> Result<Vec<TrialRow>, AutomlError> {
    let text = trials_where(" WHERE study_id = $1 AND number >= $2 ORDER BY number LIMIT $3");
    let rows: Vec<TrialTuple> = sqlx::query_as(text)
        .bind(study)
        .bind(i64::from(from))
        .bind(limit)
        .fetch_all(executor)
        .await?;
    Ok(rows.into_iter().map(trial).collect::<Result<_, _>>()?)
}

/// The trials as a transaction sees them.
pub(crate) async fn trials_in(
    tx: &mut SqliteConnection,
    study: Uuid,
) -> Result<Vec<TrialRow>, AutomlError> {
    select_trials(tx, study, 0, i64::MAX).await
}

/// The columns of a trial, and a condition of ours.
fn trials_where(condition: &'static str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("{TRIAL_COLUMNS}{condition}"))
}

pub(crate) async fn insert_study(
    tx: &mut SqliteConnection,
    row: &StudyRow,
) -> Result<(), AutomlError> {
    sqlx::query(
        "INSERT INTO studies (id, agent_id, agent_type, environment, state, server_run, sampler, pruner, n_trials, \
         space, seed, steps, owner, error, traceparent, started_us, completed_us, owner_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
    )
    .bind(row.id)
    .bind(&row.agent_id)
    .bind(&row.agent_type)
    .bind(&row.environment)
    .bind(row.state.as_str())
    .bind(row.server_run)
    .bind(row.sampler.as_str())
    .bind(row.pruner.as_str())
    .bind(i64::from(row.n_trials))
    .bind(to_json(&row.space)?)
    .bind(row.seed as i64)
    .bind(i64::try_from(row.steps).unwrap_or(i64::MAX))
    .bind(&row.owner)
    .bind(&row.error)
    .bind(&row.traceparent)
    .bind(row.started_us)
    .bind(row.completed_us)
    .bind(&row.owner_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Ends a study that runs; false when it has ended already.
pub(crate) async fn end_study(
    tx: &mut SqliteConnection,
    id: Uuid,
    state: StudyState,
    error: &str,
    now_us: i64,
) -> Result<bool, AutomlError> {
    let done = sqlx::query(
        "UPDATE studies SET state = $1, error = $2, completed_us = $3 WHERE id = $4 AND state = 'running'",
    )
    .bind(state.as_str())
    .bind(error)
    .bind(now_us)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn study_state(
    tx: &mut SqliteConnection,
    id: Uuid,
) -> Result<StudyState, AutomlError> {
    let query = "SELECT state FROM studies WHERE id = $1";
    let text: Option<String> = sqlx::query_scalar(query)
        .bind(id)
        .fetch_optional(tx)
        .await?;
    let text = text.ok_or_else(|| AutomlError::NotFound("study", id.to_string()))?;
    let reading = Reading {
        table: "studies",
        row: id.to_string(),
    };
    Ok(reading.known("state", &text, StudyState::parse(&text))?)
}

pub(crate) async fn trial_in(
    tx: &mut SqliteConnection,
    study: Uuid,
    number: u32,
) -> Result<TrialRow, AutomlError> {
    let text = trials_where(" WHERE study_id = $1 AND number = $2");
    let row: Option<TrialTuple> = sqlx::query_as(text)
        .bind(study)
        .bind(i64::from(number))
        .fetch_optional(tx)
        .await?;
    let row = row.ok_or_else(|| AutomlError::NotFound("trial", format!("{study}/{number}")))?;
    Ok(trial(row)?)
}

/// Adds a trial; false when its number is taken.
pub(crate) async fn insert_trial(
    tx: &mut SqliteConnection,
    row: &TrialRow,
) -> Result<bool, AutomlError> {
    let inserted =
        sqlx::query("INSERT INTO trials VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
            .bind(row.study_id)
            .bind(i64::from(row.number))
            .bind(row.state.as_str())
            .bind(to_json(&row.parameters)?)
            .bind(row.score)
            .bind(to_json(&row.intermediate)?)
            .bind(i64::from(row.attempt))
            .bind(&row.error)
            .bind(row.started_us)
            .bind(row.ended_us)
            .execute(tx)
            .await;
    match inserted {
        Err(e) if is_taken(&e) => Ok(false),
        other => Ok(other.map(|_| true)?),
    }
}

/// Writes a trial that is still running in the database.
pub(crate) async fn update_running_trial(
    tx: &mut SqliteConnection,
    row: &TrialRow,
) -> Result<bool, AutomlError> {
    let done = sqlx::query(
        "UPDATE trials SET state = $1, score = $2, intermediate = $3, attempt = $4, error = $5, ended_us = $6 \
         WHERE study_id = $7 AND number = $8 AND state = 'running'",
    )
    .bind(row.state.as_str())
    .bind(row.score)
    .bind(to_json(&row.intermediate)?)
    .bind(i64::from(row.attempt))
    .bind(&row.error)
    .bind(row.ended_us)
    .bind(row.study_id)
    .bind(i64::from(row.number))
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn count_ended(
    tx: &mut SqliteConnection,
    study: Uuid,
) -> Result<i64, AutomlError> {
    let query = "SELECT COUNT(*) FROM trials WHERE study_id = $1 AND state <> 'running'";
    Ok(sqlx::query_scalar(query).bind(study).fetch_one(tx).await?)
}

#[cfg(test)]
mod tests;
