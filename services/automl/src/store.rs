//! AutoML's SQL.

use crate::AutomlError;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use tars_runtime::{
    audit,
    db::{Db, Step, Write, is_taken},
};
use tars_search::{Assignment, Space};
use uuid::Uuid;

pub(crate) const STEPS: &[Step] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "audit outbox", audit::MIGRATION),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StudyState {
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl StudyState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "running" => Self::Running,
            "completed" => Self::Completed,
            "cancelled" => Self::Cancelled,
            _ => Self::Failed,
        }
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
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Pruned => "pruned",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "running" => Self::Running,
            "complete" => Self::Complete,
            "pruned" => Self::Pruned,
            _ => Self::Failed,
        }
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
    pub(crate) sampler: String,
    pub(crate) pruner: String,
    pub(crate) n_trials: u32,
    pub(crate) space: Space,
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) owner: String,
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

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

fn to_json<T: Serialize>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

fn small(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn study(row: &SqliteRow) -> Result<StudyRow, sqlx::Error> {
    let state: String = row.try_get("state")?;
    let space: String = row.try_get("space")?;
    let seed: i64 = row.try_get("seed")?;
    let steps: i64 = row.try_get("steps")?;
    Ok(StudyRow {
        id: row.try_get("id")?,
        agent_id: row.try_get("agent_id")?,
        agent_type: row.try_get("agent_type")?,
        environment: row.try_get("environment")?,
        state: StudyState::parse(&state),
        server_run: row.try_get("server_run")?,
        sampler: row.try_get("sampler")?,
        pruner: row.try_get("pruner")?,
        n_trials: small(row.try_get("n_trials")?),
        space: from_json(&space)?,
        seed: seed as u64,
        steps: u64::try_from(steps).unwrap_or_default(),
        owner: row.try_get("owner")?,
        error: row.try_get("error")?,
        traceparent: row.try_get("traceparent")?,
        started_us: row.try_get("started_us")?,
        completed_us: row.try_get("completed_us")?,
    })
}

fn trial(row: TrialTuple) -> Result<TrialRow, sqlx::Error> {
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
    Ok(TrialRow {
        study_id,
        number: small(number),
        state: TrialState::parse(&state),
        parameters: from_json(&parameters)?,
        score,
        intermediate: from_json(&intermediate)?,
        attempt: small(attempt),
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
        let db = self.db.read("studies.get");
        let row = sqlx::query("SELECT * FROM studies WHERE id = $1")
            .bind(id)
            .fetch_optional(&*db)
            .await?;
        let row = row.ok_or_else(|| AutomlError::NotFound("study", id.to_string()))?;
        Ok(study(&row)?)
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
        Ok(rows.iter().map(study).collect::<Result<_, _>>()?)
    }

    /// Studies that the server runs and that have not ended.
    pub(crate) async fn unfinished(&self) -> Result<Vec<StudyRow>, AutomlError> {
        let db = self.db.read("studies.unfinished");
        let rows = sqlx::query("SELECT * FROM studies WHERE state = 'running' AND server_run")
            .fetch_all(&*db)
            .await?;
        Ok(rows.iter().map(study).collect::<Result<_, _>>()?)
    }

    pub(crate) async fn trials(
        &self,
        study: Uuid,
        from: u32,
        limit: i64,
    ) -> Result<Vec<TrialRow>, AutomlError> {
        let db = self.db.read("trials.list");
        let text = trials_where(" WHERE study_id = $1 AND number >= $2 ORDER BY number LIMIT $3");
        let rows: Vec<TrialTuple> = sqlx::query_as(text)
            .bind(study)
            .bind(i64::from(from))
            .bind(limit)
            .fetch_all(&*db)
            .await?;
        Ok(rows.into_iter().map(trial).collect::<Result<_, _>>()?)
    }

    pub(crate) async fn all_trials(&self, study: Uuid) -> Result<Vec<TrialRow>, AutomlError> {
        self.trials(study, 0, i64::MAX).await
    }
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
         space, seed, steps, owner, error, traceparent, started_us, completed_us) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    )
    .bind(row.id)
    .bind(&row.agent_id)
    .bind(&row.agent_type)
    .bind(&row.environment)
    .bind(row.state.as_str())
    .bind(row.server_run)
    .bind(&row.sampler)
    .bind(&row.pruner)
    .bind(i64::from(row.n_trials))
    .bind(to_json(&row.space)?)
    .bind(row.seed as i64)
    .bind(i64::try_from(row.steps).unwrap_or(i64::MAX))
    .bind(&row.owner)
    .bind(&row.error)
    .bind(&row.traceparent)
    .bind(row.started_us)
    .bind(row.completed_us)
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
    text.map(|t| StudyState::parse(&t))
        .ok_or_else(|| AutomlError::NotFound("study", id.to_string()))
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
