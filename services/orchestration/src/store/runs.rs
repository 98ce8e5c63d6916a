//! Training runs.

use super::Store;
use crate::{OrchestrationError, leases::Fences};
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction},
    page::{Page, Size},
    usage::{self, Dimension, Item, Month},
};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    Queued,
    Running,
    /// Is to be paused.
    Pausing,
    /// No process follows it, and none resumes it unless that is requested.
    Paused,
    Cancelling,
    /// The new weights are live, and the other replicas are waited for.
    Installing,
    Completed,
    Cancelled,
    Failed,
    Interrupted,
}

impl RunState {
    pub(crate) const ALL: [Self; 10] = [
        Self::Queued,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Cancelling,
        Self::Installing,
        Self::Completed,
        Self::Cancelled,
        Self::Failed,
        Self::Interrupted,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Installing => "installing",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    pub(crate) fn has_ended(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Cancelled | Self::Failed | Self::Interrupted
        )
    }

    /// What becomes of a run that no process follows and that does not go on.
    fn left(self) -> Self {
        match self {
            Self::Queued | Self::Running => Self::Interrupted,
            Self::Pausing => Self::Paused,
            Self::Cancelling => Self::Cancelled,
            Self::Installing => Self::Completed,
            rests => rests,
        }
    }
}

/// How the agents of an environment act that a run does not train.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Others {
    /// By fixed rules.
    #[default]
    Rules,
    /// By the policies that were live when the run was requested; without one, by their rules.
    Live,
}

impl Others {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Live => "live",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [Self::Rules, Self::Live];
        all.into_iter().find(|others| others.as_str() == text)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct RunRow {
    pub(crate) id: Uuid,
    /// The first of the agents that it trains.
    pub(crate) agent_id: String,
    pub(crate) environment: String,
    pub(crate) others: Others,
    pub(crate) state: RunState,
    pub(crate) steps: i64,
    pub(crate) steps_done: i64,
    pub(crate) episodes_done: i64,
    pub(crate) seed: i64,
    pub(crate) final_return: Option<f64>,
    pub(crate) error: String,
    /// The reason that goes with the error.
    pub(crate) error_reason: String,
    pub(crate) queued_us: i64,
    /// When a learner started the run.
    pub(crate) running_us: Option<i64>,
    pub(crate) ended_us: Option<i64>,
    /// The number of the last report; zero before the first.
    pub(crate) last_report: i64,
    /// Steps a second, since a process last began or resumed the run.
    pub(crate) rate: Option<f64>,
    /// The user for whom it runs; empty for runs from before that was recorded.
    pub(crate) owner: String,
    /// The steps before the last checkpoint that was stored; `None` before the first.
    pub(crate) checkpoint_step: Option<i64>,
}

/// A run that has not ended, with the agents that it trains.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unfinished {
    pub(crate) id: Uuid,
    pub(crate) agents: Vec<String>,
}

const RUN: &str = "SELECT id, agent_id, environment, others, state, steps, steps_done, episodes_done, seed, \
                   final_return, error, error_reason, started_us, running_us, ended_us, last_report, rate, owner, checkpoint_step \
                   FROM training_runs WHERE id = $1";
const RUNS: &str = "SELECT id, agent_id, environment, others, state, steps, steps_done, episodes_done, seed, \
                    final_return, error, error_reason, started_us, running_us, ended_us, last_report, rate, owner, checkpoint_step \
                    FROM training_runs WHERE id < $1 ORDER BY id DESC LIMIT $2";
const NEWEST: &str = "SELECT id FROM training_runs WHERE id < $1 ORDER BY id DESC LIMIT $2";
/// The newest first.
const UNFINISHED: &str = "SELECT r.id, m.agent_id FROM training_runs r JOIN run_members m ON m.run_id = r.id \
                          WHERE r.state IN ('queued', 'running', 'pausing', 'cancelling', 'installing') \
                          ORDER BY r.id DESC, m.position";
/// A run that was paused begins once more.
const BEGIN: &str = "UPDATE training_runs SET running_us = COALESCE(running_us, $1), \
                     state = CASE state WHEN 'queued' THEN 'running' ELSE state END \
                     WHERE id = $2 AND (running_us IS NULL OR state = 'queued')";
const SET_STATE: &str = "UPDATE training_runs SET state = $1 WHERE id = $2 AND state = $3";
const PAUSE: &str = "UPDATE training_runs SET state = 'paused', steps_done = $1 WHERE id = $2 AND state = 'pausing'";
const PAUSED: &str = "SELECT id FROM training_runs WHERE state IN ('paused', 'pausing')";
const COMPLETE: &str =
    "UPDATE training_runs SET state = 'completed' WHERE id = $1 AND state = 'installing'";
const PROMISED: &str = "SELECT CAST(COALESCE(SUM(steps - steps_done), 0) AS BIGINT) AS promised FROM training_runs \
                        WHERE owner = $1 AND state IN ('queued', 'running', 'pausing', 'paused')";
const INSERT: &str = "INSERT INTO training_runs (id, agent_id, environment, others, state, steps, steps_done, \
                      episodes_done, seed, final_return, error, started_us, running_us, ended_us, owner) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
const CHECKPOINT: &str = "UPDATE training_runs SET checkpoint_step = $1 WHERE id = $2";
const END: &str = "UPDATE training_runs SET state = $1, steps_done = $2, episodes_done = $3, final_return = $4, \
                   error = $5, error_reason = $6, ended_us = $7 WHERE id = $8";

impl FromRow for RunRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: Uuid = row.get("id")?;
        let row = row.named("training_runs", id);
        Ok(Self {
            id,
            agent_id: row.get("agent_id")?,
            environment: row.get("environment")?,
            others: row.word("others", Others::parse)?,
            state: row.word("state", RunState::parse)?,
            steps: row.get("steps")?,
            steps_done: row.get("steps_done")?,
            episodes_done: row.get("episodes_done")?,
            seed: row.get("seed")?,
            final_return: row.get("final_return")?,
            error: row.get("error")?,
            error_reason: row.get("error_reason")?,
            queued_us: row.get("started_us")?,
            running_us: row.get("running_us")?,
            ended_us: row.get("ended_us")?,
            last_report: row.get("last_report")?,
            rate: row.get("rate")?,
            owner: row.get("owner")?,
            checkpoint_step: row.get("checkpoint_step")?,
        })
    }
}

impl Store {
    pub(crate) async fn run(&self, id: Uuid) -> Result<Option<RunRow>, OrchestrationError> {
        let mut db = self.db.read("training_runs.get");
        Ok(db.optional(Query::new(RUN).bind(id)).await?)
    }

    pub(crate) async fn runs(
        &self,
        before: Uuid,
        size: Size,
    ) -> Result<Page<RunRow>, OrchestrationError> {
        let query = Query::new(RUNS).bind(before).bind(size.limit());
        Ok(self.db.read("training_runs.list").page(query, size).await?)
    }

    /// The newest runs, the newest first.
    pub(crate) async fn newest_runs(&self, limit: u32) -> Result<Vec<Uuid>, OrchestrationError> {
        let mut db = self.db.read("training_runs.newest");
        let rows = db
            .rows(Query::new(NEWEST).bind(Uuid::max()).bind(limit))
            .await?;
        let ids = rows.iter().map(|row| row.get("id"));
        Ok(ids.collect::<Result<_, DbError>>()?)
    }

    /// The runs that have not ended and are not paused, the newest first.
    pub(crate) async fn unfinished_runs(&self) -> Result<Vec<Unfinished>, OrchestrationError> {
        unfinished(&mut self.db.read("training_runs.unfinished")).await
    }

    /// Records that a learner started a run; has no effect the second time.
    pub(crate) async fn begin_run(
        &self,
        id: Uuid,
        now_us: i64,
        fences: &Fences,
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.begin_for_run("training_runs.begin", fences).await?;
        let begin = Query::new(BEGIN).bind(now_us).bind(id);
        tx.execute(begin).await?.any();
        Ok(tx.commit().await?)
    }
}

/// Shows how far the newest checkpoint of a run is.
pub(crate) async fn set_checkpoint_step(
    tx: &mut Transaction,
    id: Uuid,
    step: i64,
) -> Result<(), OrchestrationError> {
    let set = Query::new(CHECKPOINT).bind(step).bind(id);
    Ok(tx.execute(set).await?.one()?)
}

/// Reads a run in a transaction.
pub(crate) async fn run_in(tx: &mut Transaction, id: Uuid) -> Result<RunRow, OrchestrationError> {
    let row = tx.optional(Query::new(RUN).bind(id)).await?;
    row.ok_or_else(|| OrchestrationError::NotFound("training run", id.to_string()))
}

/// Changes the state of a run, which was read in the same transaction.
pub(crate) async fn set_state(
    tx: &mut Transaction,
    row: &RunRow,
    state: RunState,
) -> Result<(), OrchestrationError> {
    let set = Query::new(SET_STATE)
        .bind(state.as_str())
        .bind(row.id)
        .bind(row.state.as_str());
    Ok(tx.execute(set).await?.one()?)
}

/// Writes that a run is paused, and how far it is.
pub(crate) async fn pause_run(
    tx: &mut Transaction,
    row: &RunRow,
) -> Result<(), OrchestrationError> {
    let pause = Query::new(PAUSE).bind(row.steps_done).bind(row.id);
    Ok(tx.execute(pause).await?.one()?)
}

/// The runs that are paused, or are about to be.
pub(crate) async fn paused(tx: &mut Transaction) -> Result<Vec<Uuid>, OrchestrationError> {
    let rows = tx.rows(Query::new(PAUSED)).await?;
    let ids = rows.iter().map(|row| row.get("id"));
    Ok(ids.collect::<Result<_, DbError>>()?)
}

/// The runs that have not ended and are not paused, the newest first.
pub(crate) async fn unfinished(db: &mut impl Fetch) -> Result<Vec<Unfinished>, OrchestrationError> {
    let mut runs: Vec<Unfinished> = Vec::new();
    for row in db.rows(Query::new(UNFINISHED)).await? {
        let (id, agent): (Uuid, String) = (row.get("id")?, row.get("agent_id")?);
        match runs.last_mut() {
            Some(last) if last.id == id => last.agents.push(agent),
            _ => runs.push(Unfinished {
                id,
                agents: vec![agent],
            }),
        }
    }
    Ok(runs)
}

/// Ends a run that no process follows and that does not go on: as cancelled if that was requested, as completed
/// if its weights are live, else as interrupted. One that was to be paused is paused. Returns its state.
pub(crate) async fn leave_run(
    tx: &mut Transaction,
    id: Uuid,
    now_us: i64,
    why: Option<&OrchestrationError>,
) -> Result<RunRow, OrchestrationError> {
    let mut row = run_in(tx, id).await?;
    let next = row.state.left();
    if next == RunState::Paused && row.state != next {
        set_state(tx, &row, next).await?;
    }
    let ends = next.has_ended() && !row.state.has_ended();
    row.state = next;
    if let (RunState::Interrupted, Some(why)) = (next, why) {
        row.error = why.to_string();
        row.error_reason = why.end_reason().to_owned();
    }
    if ends {
        row.ended_us.get_or_insert(now_us);
        end_run(tx, &row).await?;
    }
    Ok(row)
}

/// Ends a run whose weights are live.
pub(crate) async fn complete_run(tx: &mut Transaction, id: Uuid) -> Result<(), OrchestrationError> {
    let complete = Query::new(COMPLETE).bind(id);
    Ok(tx.execute(complete).await?.one()?)
}

/// The steps that the runs of a user may still take.
pub(crate) async fn promised_steps(
    db: &mut impl Fetch,
    owner: &str,
) -> Result<u64, OrchestrationError> {
    let promised: i64 = db
        .value(Query::new(PROMISED).bind(owner), "promised")
        .await?;
    Ok(u64::try_from(promised).unwrap_or_default())
}

/// Counts the steps that a run has taken since its progress was stored last, before that is stored. They are numbered
/// by how far the run is: those that a resumed run takes again are counted already.
pub(crate) async fn count_steps(
    tx: &mut Transaction,
    stored: &RunRow,
    steps: i64,
    month: Month,
) -> Result<u64, OrchestrationError> {
    let taken = u64::try_from(steps - stored.steps_done).unwrap_or_default();
    if taken == 0 || stored.owner.is_empty() {
        return Ok(0);
    }
    let item = Item {
        source: format!("run:{}", stored.id),
        number: steps,
        month,
        user_id: stored.owner.clone(),
        dimension: Dimension::TrainingSteps,
        amount: taken,
    };
    usage::insert(tx, &item).await?;
    Ok(taken)
}

pub(crate) async fn insert_run(
    tx: &mut Transaction,
    row: &RunRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(row.id)
        .bind(&row.agent_id)
        .bind(&row.environment)
        .bind(row.others.as_str())
        .bind(row.state.as_str())
        .bind(row.steps)
        .bind(row.steps_done)
        .bind(row.episodes_done)
        .bind(row.seed)
        .bind(row.final_return)
        .bind(&row.error)
        .bind(row.queued_us)
        .bind(row.running_us)
        .bind(row.ended_us)
        .bind(&row.owner);
    Ok(tx.execute(insert).await?.one()?)
}

/// Finds a run, if it was written.
pub(crate) fn proof_of_run(id: Uuid) -> Query<'static> {
    Query::new(RUN).bind(id)
}

pub(crate) async fn end_run(tx: &mut Transaction, row: &RunRow) -> Result<(), OrchestrationError> {
    let end = Query::new(END)
        .bind(row.state.as_str())
        .bind(row.steps_done)
        .bind(row.episodes_done)
        .bind(row.final_return)
        .bind(&row.error)
        .bind(&row.error_reason)
        .bind(row.ended_us)
        .bind(row.id);
    tx.execute(end).await?.one()?;
    super::delete_plan(tx, row.id).await
}
