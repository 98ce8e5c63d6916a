//! The trials of studies.

use super::{Store, StudyRow};
use crate::AutomlError;
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction, json},
    page::{Page, Size},
    usage::{self, Dimension, Item, Month},
};
use tars_search::{Assignment, Value};
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

impl TrialRow {
    /// About how many bytes the row has.
    pub(crate) fn bytes(&self) -> usize {
        let value = |value: &Value| match value {
            Value::Text(text) => text.len(),
            Value::Number(_) | Value::Flag(_) => size_of::<f64>(),
        };
        let parameter = |(name, v): (&String, &Value)| name.len() + value(v);
        let parameters: usize = self.parameters.iter().map(parameter).sum();
        parameters + size_of_val(self.intermediate.as_slice()) + self.error.len()
    }
}

/// What the suggestion of the next trial follows from.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) state: TrialState,
    /// None of a trial that has failed.
    pub(crate) parameters: Assignment,
    /// The score, or the last value of a trial that was pruned.
    pub(crate) score: Option<f64>,
}

impl FromRow for Past {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let (study_id, number): (Uuid, i64) = (row.get("study_id")?, row.get("number")?);
        let row = row.named("trials", format!("{study_id}/{number}"));
        let values: Vec<(u64, f64)> = row.json("intermediate")?;
        let score: Option<f64> = row.get("score")?;
        Ok(Self {
            state: row.word("state", TrialState::parse)?,
            parameters: row.json("parameters")?,
            score: score.or(values.last().map(|(_, value)| *value)),
        })
    }
}

/// The values of one trial.
struct Values(Vec<(u64, f64)>);

impl FromRow for Values {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let (study_id, number): (Uuid, i64) = (row.get("study_id")?, row.get("number")?);
        let row = row.named("trials", format!("{study_id}/{number}"));
        Ok(Self(row.json("intermediate")?))
    }
}

/// How many trials of a study are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) complete: u32,
    pub(crate) pruned: u32,
    pub(crate) failed: u32,
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
const PAST: &str = "SELECT study_id, number, state, score, \
                    CASE state WHEN 'failed' THEN '{}' ELSE parameters END AS parameters, \
                    CASE state WHEN 'pruned' THEN intermediate ELSE '[]' END AS intermediate \
                    FROM trials WHERE study_id = $1 ORDER BY number";
const RUNNING: &str = "SELECT study_id, number, state, parameters, score, intermediate, attempt, error, started_us, \
                       ended_us, event, counted FROM trials WHERE study_id = $1 AND state = 'running' ORDER BY number";
/// Of those that are equal, the last one.
const BEST: &str = "SELECT study_id, number, state, parameters, score, intermediate, attempt, error, started_us, \
                    ended_us, event, counted FROM trials WHERE study_id = $1 AND state = 'complete' \
                    ORDER BY score DESC NULLS LAST, number DESC LIMIT 1";
const COMPLETED: &str = "SELECT study_id, number, intermediate FROM trials WHERE study_id = $1 \
                         AND state = 'complete' ORDER BY number";
const TALLY: &str =
    "SELECT state, COUNT(*) AS trials FROM trials WHERE study_id = $1 GROUP BY state";
const COUNT_ENDED: &str =
    "SELECT COUNT(*) AS ended FROM trials WHERE study_id = $1 AND state <> 'running'";

impl Store {
    pub(crate) async fn trials(
        &self,
        study: Uuid,
        from: u32,
        size: Size,
    ) -> Result<Page<TrialRow>, AutomlError> {
        let query = Query::new(TRIALS).bind(study).bind(from).bind(size.limit());
        Ok(self.db.read("trials.list").page(query, size).await?)
    }

    /// The first trials whose last change came after a number, in the order of these changes.
    pub(crate) async fn changed_trials(
        &self,
        study: Uuid,
        after: i64,
        size: Size,
    ) -> Result<Page<TrialRow>, AutomlError> {
        let query = Query::new(CHANGED_TRIALS)
            .bind(study)
            .bind(after)
            .bind(size.limit());
        Ok(self.db.read("trials.changed").page(query, size).await?)
    }

    /// The trials that have not ended.
    pub(crate) async fn running_trials(&self, study: Uuid) -> Result<Vec<TrialRow>, AutomlError> {
        let query = Query::new(RUNNING).bind(study);
        Ok(self.db.read("trials.running").all(query).await?)
    }

    /// What the suggestion of the next trial follows from: one item of each trial, in order.
    pub(crate) async fn past(&self, study: Uuid) -> Result<Vec<Past>, AutomlError> {
        let query = Query::new(PAST).bind(study);
        Ok(self.db.read("trials.past").all(query).await?)
    }

    #[cfg(test)]
    pub(crate) async fn all_trials(&self, study: Uuid) -> Result<Vec<TrialRow>, AutomlError> {
        let query = Query::new(TRIALS).bind(study).bind(0_i64).bind(i64::MAX);
        Ok(self.db.read("trials.all").all(query).await?)
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

/// How many trials of a study have ended in each way.
pub(crate) async fn tally_of(db: &mut impl Fetch, study: Uuid) -> Result<Tally, AutomlError> {
    let mut tally = Tally::default();
    for row in db.rows(Query::new(TALLY).bind(study)).await? {
        let row = row.named("trials", study);
        let count = row.number("trials")?;
        match row.word("state", TrialState::parse)? {
            TrialState::Running => {}
            TrialState::Complete => tally.complete = count,
            TrialState::Pruned => tally.pruned = count,
            TrialState::Failed => tally.failed = count,
        }
    }
    Ok(tally)
}

/// The complete trial with the highest score.
pub(crate) async fn best_of(
    db: &mut impl Fetch,
    study: Uuid,
) -> Result<Option<TrialRow>, AutomlError> {
    Ok(db.optional(Query::new(BEST).bind(study)).await?)
}

/// The values of the complete trials of a study.
pub(crate) async fn completed_values(
    tx: &mut Transaction,
    study: Uuid,
) -> Result<Vec<Vec<(u64, f64)>>, AutomlError> {
    let values: Vec<Values> = tx.all(Query::new(COMPLETED).bind(study)).await?;
    Ok(values.into_iter().map(|Values(values)| values).collect())
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
