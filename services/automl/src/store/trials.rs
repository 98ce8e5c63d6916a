//! The trials of studies.

use super::{Store, StudyRow};
use crate::AutomlError;
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction, json},
    usage::{self, Dimension, Item, Month},
};
use tars_search::Assignment;
use uuid::Uuid;

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
    /// The number of the trial's last change among those of its study.
    pub(crate) event: i64,
    /// The steps that are counted as used: the most that one of its attempts has reported.
    pub(crate) counted: u64,
}

impl FromRow for TrialRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let (study_id, number): (Uuid, i64) = (row.get("study_id")?, row.get("number")?);
        let row = row.named("trials", format!("{study_id}/{number}"));
        Ok(Self {
            study_id,
            number: row.number("number")?,
            state: row.word("state", TrialState::parse)?,
            parameters: row.json("parameters")?,
            score: row.get("score")?,
            intermediate: row.json("intermediate")?,
            attempt: row.number("attempt")?,
            error: row.get("error")?,
            started_us: row.get("started_us")?,
            ended_us: row.get("ended_us")?,
            event: row.get("event")?,
            counted: row.number("counted")?,
        })
    }
}

const TRIAL: &str = "SELECT study_id, number, state, parameters, score, intermediate, attempt, error, started_us, \
                     ended_us, event, counted FROM trials WHERE study_id = $1 AND number = $2";
const TRIALS: &str = "SELECT study_id, number, state, parameters, score, intermediate, attempt, error, started_us, \
                      ended_us, event, counted FROM trials WHERE study_id = $1 AND number >= $2 ORDER BY number LIMIT $3";
const CHANGED_TRIALS: &str = "SELECT study_id, number, state, parameters, score, intermediate, attempt, error, \
                              started_us, ended_us, event, counted FROM trials WHERE study_id = $1 AND event > $2 \
                              ORDER BY event LIMIT $3";
const INSERT_TRIAL: &str = "INSERT INTO trials (study_id, number, state, parameters, score, intermediate, attempt, \
                            error, started_us, ended_us, event) \
                            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                            ON CONFLICT (study_id, number) DO NOTHING";
/// A row that was read before its last report takes nothing back of what is counted.
const UPDATE_TRIAL: &str = "UPDATE trials SET state = $1, score = $2, intermediate = $3, attempt = $4, error = $5, \
                            ended_us = $6, event = $7, \
                            counted = CASE WHEN counted < $8 THEN $8 ELSE counted END WHERE study_id = $9 AND number = $10 AND state = 'running'";
const COUNT_ENDED: &str =
    "SELECT COUNT(*) AS ended FROM trials WHERE study_id = $1 AND state <> 'running'";

impl Store {
    pub(crate) async fn trials(
        &self,
        study: Uuid,
        from: u32,
        limit: i64,
    ) -> Result<Vec<TrialRow>, AutomlError> {
        let query = Query::new(TRIALS).bind(study).bind(from).bind(limit);
        Ok(self.db.read("trials.list").all(query).await?)
    }

    /// The trials whose last change came after a number, in the order of these changes.
    pub(crate) async fn changed_trials(
        &self,
        study: Uuid,
        after: i64,
        limit: i64,
    ) -> Result<Vec<TrialRow>, AutomlError> {
        let query = Query::new(CHANGED_TRIALS)
            .bind(study)
            .bind(after)
            .bind(limit);
        Ok(self.db.read("trials.changed").all(query).await?)
    }

    pub(crate) async fn all_trials(&self, study: Uuid) -> Result<Vec<TrialRow>, AutomlError> {
        self.trials(study, 0, i64::MAX).await
    }
}

/// Counts the steps of a trial up to the given one, and remembers that in its row, which the caller writes. What an
/// earlier attempt has taken is counted already.
pub(crate) async fn count_steps(
    tx: &mut Transaction,
    study: &StudyRow,
    row: &mut TrialRow,
    step: u64,
    month: Month,
) -> Result<u64, AutomlError> {
    let reached = step.min(study.steps);
    let taken = reached.saturating_sub(row.counted);
    if taken == 0 || !study.server_run || study.owner_id.is_empty() {
        return Ok(0);
    }
    row.counted = reached;
    let item = Item {
        source: format!("trial:{}/{}", study.id, row.number),
        number: i64::try_from(reached).unwrap_or(i64::MAX),
        month,
        user_id: study.owner_id.clone(),
        dimension: Dimension::TrainingSteps,
        amount: taken,
    };
    usage::insert(tx, &item).await?;
    Ok(taken)
}

/// Reads the trials of a study in a transaction.
pub(crate) async fn trials_in(
    tx: &mut Transaction,
    study: Uuid,
) -> Result<Vec<TrialRow>, AutomlError> {
    let query = Query::new(TRIALS).bind(study).bind(0_i64).bind(i64::MAX);
    Ok(tx.all(query).await?)
}

pub(crate) async fn trial_in(
    tx: &mut Transaction,
    study: Uuid,
    number: u32,
) -> Result<TrialRow, AutomlError> {
    let found = tx
        .optional(Query::new(TRIAL).bind(study).bind(number))
        .await?;
    found.ok_or_else(|| AutomlError::NotFound("trial", format!("{study}/{number}")))
}

/// Inserts a trial; lost when its number is taken.
pub(crate) async fn insert_trial(
    tx: &mut Transaction,
    row: &TrialRow,
) -> Result<Swap, AutomlError> {
    let insert = Query::new(INSERT_TRIAL)
        .bind(row.study_id)
        .bind(row.number)
        .bind(row.state.as_str())
        .bind(json(&row.parameters)?)
        .bind(row.score)
        .bind(json(&row.intermediate)?)
        .bind(row.attempt)
        .bind(&row.error)
        .bind(row.started_us)
        .bind(row.ended_us)
        .bind(row.event);
    Ok(tx.execute(insert).await?.swap())
}

/// Updates a running trial; lost when it is no longer running.
pub(crate) async fn update_running_trial(
    tx: &mut Transaction,
    row: &TrialRow,
) -> Result<Swap, AutomlError> {
    let update = Query::new(UPDATE_TRIAL)
        .bind(row.state.as_str())
        .bind(row.score)
        .bind(json(&row.intermediate)?)
        .bind(row.attempt)
        .bind(&row.error)
        .bind(row.ended_us)
        .bind(row.event)
        .bind(i64::try_from(row.counted).unwrap_or(i64::MAX))
        .bind(row.study_id)
        .bind(row.number);
    Ok(tx.execute(update).await?.swap())
}

pub(crate) async fn count_ended(tx: &mut Transaction, study: Uuid) -> Result<i64, AutomlError> {
    Ok(tx
        .value(Query::new(COUNT_ENDED).bind(study), "ended")
        .await?)
}
