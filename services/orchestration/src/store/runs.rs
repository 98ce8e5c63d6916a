//! Training runs.

use super::Store;
use crate::OrchestrationError;
use sqlx::SqliteConnection;
use tars_runtime::db::Corrupt;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    Queued,
    Running,
    Cancelling,
    Completed,
    Cancelled,
    Failed,
    Interrupted,
}

impl RunState {
    const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Cancelling,
        Self::Completed,
        Self::Cancelled,
        Self::Failed,
        Self::Interrupted,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
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
        !matches!(self, Self::Queued | Self::Running | Self::Cancelling)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct RunRow {
    pub(crate) id: Uuid,
    pub(crate) agent_id: String,
    pub(crate) state: RunState,
    pub(crate) steps: i64,
    pub(crate) steps_done: i64,
    pub(crate) episodes_done: i64,
    pub(crate) seed: i64,
    pub(crate) final_return: Option<f64>,
    pub(crate) error: String,
    pub(crate) queued_us: i64,
    /// When a learner began.
    pub(crate) running_us: Option<i64>,
    pub(crate) ended_us: Option<i64>,
}

type RunTuple = (
    Uuid,
    String,
    String,
    i64,
    i64,
    i64,
    i64,
    Option<f64>,
    String,
    i64,
    Option<i64>,
    Option<i64>,
);

const RUN: &str = "SELECT id, agent_id, state, steps, steps_done, episodes_done, seed, final_return, error, \
                   started_us, running_us, ended_us FROM training_runs WHERE id = $1";
const RUNS: &str = "SELECT id, agent_id, state, steps, steps_done, episodes_done, seed, final_return, error, \
                    started_us, running_us, ended_us FROM training_runs WHERE id < $1 ORDER BY id DESC LIMIT $2";

fn run(row: RunTuple) -> Result<RunRow, Corrupt> {
    let (
        id,
        agent_id,
        state,
        steps,
        steps_done,
        episodes_done,
        seed,
        final_return,
        error,
        queued_us,
        running_us,
        ended_us,
    ) = row;
    let unknown = || Corrupt::new("training_runs", id, format!("there is no state {state:?}"));
    Ok(RunRow {
        id,
        agent_id,
        state: RunState::parse(&state).ok_or_else(unknown)?,
        steps,
        steps_done,
        episodes_done,
        seed,
        final_return,
        error,
        queued_us,
        running_us,
        ended_us,
    })
}

impl Store {
    pub(crate) async fn run(&self, id: Uuid) -> Result<Option<RunRow>, OrchestrationError> {
        let db = self.db.read("training_runs.get");
        let row: Option<RunTuple> = sqlx::query_as(RUN).bind(id).fetch_optional(&*db).await?;
        Ok(row.map(run).transpose()?)
    }

    pub(crate) async fn runs(
        &self,
        before: Uuid,
        limit: i64,
    ) -> Result<Vec<RunRow>, OrchestrationError> {
        let db = self.db.read("training_runs.list");
        let rows: Vec<RunTuple> = sqlx::query_as(RUNS)
            .bind(before)
            .bind(limit)
            .fetch_all(&*db)
            .await?;
        Ok(rows.into_iter().map(run).collect::<Result<_, _>>()?)
    }

    /// What had not ended when the process stopped has ended now: as it was told to, else
    /// interrupted.
    pub(crate) async fn end_all_runs(&self, now_us: i64) -> Result<(), OrchestrationError> {
        let mut tx = self.begin("training_runs.interrupt").await?;
        sqlx::query(
            "UPDATE training_runs SET ended_us = $1, \
             state = CASE state WHEN 'cancelling' THEN 'cancelled' ELSE 'interrupted' END \
             WHERE state IN ('queued', 'running', 'cancelling')",
        )
        .bind(now_us)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// A learner began with a run.
    pub(crate) async fn begin_run(&self, id: Uuid, now_us: i64) -> Result<(), OrchestrationError> {
        let mut tx = self.begin("training_runs.begin").await?;
        sqlx::query(
            "UPDATE training_runs SET running_us = $1, \
             state = CASE state WHEN 'queued' THEN 'running' ELSE state END \
             WHERE id = $2 AND running_us IS NULL",
        )
        .bind(now_us)
        .bind(id)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// A run was told to stop; nothing changes when it has ended. Returns the run as it is now.
    pub(crate) async fn cancel_run(&self, id: Uuid) -> Result<RunRow, OrchestrationError> {
        let mut tx = self.begin("training_runs.cancel").await?;
        sqlx::query(
            "UPDATE training_runs SET state = 'cancelling' WHERE id = $1 AND state IN ('queued', 'running')",
        )
        .bind(id)
        .execute(&mut *tx)
        .await?;
        let row: Option<RunTuple> = sqlx::query_as(RUN)
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
        let row =
            row.ok_or_else(|| OrchestrationError::NotFound("training run", id.to_string()))?;
        let row = run(row)?;
        tx.commit().await?;
        Ok(row)
    }
}

pub(crate) async fn insert_run(
    tx: &mut SqliteConnection,
    row: &RunRow,
) -> Result<(), OrchestrationError> {
    sqlx::query(
        "INSERT INTO training_runs (id, agent_id, state, steps, steps_done, episodes_done, seed, final_return, \
         error, started_us, running_us, ended_us) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(row.id)
    .bind(&row.agent_id)
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
    .execute(tx)
    .await?;
    Ok(())
}

pub(crate) async fn end_run(
    tx: &mut SqliteConnection,
    row: &RunRow,
) -> Result<(), OrchestrationError> {
    sqlx::query(
        "UPDATE training_runs SET state = $1, steps_done = $2, episodes_done = $3, final_return = $4, error = $5, \
         ended_us = $6 WHERE id = $7",
    )
    .bind(row.state.as_str())
    .bind(row.steps_done)
    .bind(row.episodes_done)
    .bind(row.final_return)
    .bind(&row.error)
    .bind(row.ended_us)
    .bind(row.id)
    .execute(tx)
    .await?;
    Ok(())
}
