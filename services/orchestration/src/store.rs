//! Orchestration's SQL.

use crate::{OrchestrationError, conflicts::Conflict, steps::Stepped};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use tars_learn::hyper::Values;
use tars_runtime::{
    audit,
    db::{Db, Step, Write},
};
use uuid::Uuid;

pub(crate) const STEPS: &[Step] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "audit outbox", audit::MIGRATION),
    (
        3,
        "conflicts",
        include_str!("../migrations/0003_conflicts.sql"),
    ),
];

#[derive(Debug, Clone)]
pub(crate) struct AgentRow {
    pub(crate) id: String,
    pub(crate) hyperparameters: Values,
    pub(crate) version: i64,
    pub(crate) weights: Option<String>,
    pub(crate) weights_version: i64,
    pub(crate) last_return: Option<f64>,
    pub(crate) total_steps: i64,
    pub(crate) total_episodes: i64,
    pub(crate) updated_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    Running,
    Completed,
    Cancelled,
    Failed,
    Interrupted,
}

impl RunState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "running" => Self::Running,
            "completed" => Self::Completed,
            "cancelled" => Self::Cancelled,
            "interrupted" => Self::Interrupted,
            _ => Self::Failed,
        }
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
    pub(crate) started_us: i64,
    pub(crate) ended_us: Option<i64>,
}

/// A step that met a conflict.
#[derive(Debug, Clone)]
pub(crate) struct ConflictRow {
    pub(crate) step_id: String,
    pub(crate) at_us: i64,
    pub(crate) body: ConflictBody,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConflictBody {
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) method: String,
    pub(crate) raw: BTreeMap<String, String>,
    pub(crate) resolved: BTreeMap<String, String>,
    pub(crate) explanation: String,
}

impl ConflictRow {
    pub(crate) fn of(stepped: &Stepped) -> Self {
        let resolution = &stepped.resolution;
        let named = |joint: &[usize]| {
            let parties = stepped.dispute.parties.iter().enumerate().zip(joint);
            parties
                .map(|((i, party), action)| {
                    let name = stepped.dispute.name(i, *action).to_owned();
                    (party.name.clone(), name)
                })
                .collect()
        };
        Self {
            step_id: stepped.step_id.clone(),
            at_us: stepped.at_us,
            body: ConflictBody {
                conflicts: resolution.conflicts.clone(),
                method: resolution.rule.map_or("", |r| r.as_str()).to_owned(),
                raw: named(&resolution.raw),
                resolved: named(&resolution.resolved),
                explanation: resolution.explanation.clone(),
            },
        }
    }
}

type AgentTuple = (
    String,
    String,
    i64,
    Option<String>,
    i64,
    Option<f64>,
    i64,
    i64,
    i64,
);
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
);

const RUN: &str = "SELECT id, agent_id, state, steps, steps_done, episodes_done, seed, final_return, error, \
                   started_us, ended_us FROM training_runs WHERE id = $1";
const RUNS: &str = "SELECT id, agent_id, state, steps, steps_done, episodes_done, seed, final_return, error, \
                    started_us, ended_us FROM training_runs WHERE id < $1 ORDER BY id DESC LIMIT $2";

fn run(row: RunTuple) -> RunRow {
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
        started_us,
        ended_us,
    ) = row;
    let state = RunState::parse(&state);
    RunRow {
        id,
        agent_id,
        state,
        steps,
        steps_done,
        episodes_done,
        seed,
        final_return,
        error,
        started_us,
        ended_us,
    }
}

fn values(text: &str) -> Result<Values, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

fn text(values: &Values) -> Result<String, sqlx::Error> {
    serde_json::to_string(values).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

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

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, OrchestrationError> {
        Ok(self.db.write(name).await?)
    }

    pub(crate) async fn agent(&self, id: &str) -> Result<Option<AgentRow>, OrchestrationError> {
        let db = self.db.read("agents.get");
        let row: Option<AgentTuple> = sqlx::query_as(
            "SELECT id, hyperparameters, version, weights, weights_version, last_return, total_steps, \
             total_episodes, updated_us FROM agents WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&*db)
        .await?;
        let Some((
            id,
            hyper,
            version,
            weights,
            weights_version,
            last_return,
            total_steps,
            total_episodes,
            updated_us,
        )) = row
        else {
            return Ok(None);
        };
        let hyperparameters = values(&hyper)?;
        Ok(Some(AgentRow {
            id,
            hyperparameters,
            version,
            weights,
            weights_version,
            last_return,
            total_steps,
            total_episodes,
            updated_us,
        }))
    }

    pub(crate) async fn run(&self, id: Uuid) -> Result<Option<RunRow>, OrchestrationError> {
        let db = self.db.read("training_runs.get");
        let row: Option<RunTuple> = sqlx::query_as(RUN).bind(id).fetch_optional(&*db).await?;
        Ok(row.map(run))
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
        Ok(rows.into_iter().map(run).collect())
    }

    /// The last conflicts, and how many there ever were.
    pub(crate) async fn conflicts(
        &self,
        limit: i64,
    ) -> Result<(Vec<ConflictRow>, i64), OrchestrationError> {
        let db = self.db.read("conflicts.list");
        let rows: Vec<(i64, String, i64, String)> = sqlx::query_as(
            "SELECT number, step_id, at_us, body FROM conflicts ORDER BY number DESC LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&*db)
        .await?;
        let total = rows.first().map_or(0, |row| row.0);
        let row = |(_, step_id, at_us, body): (i64, String, i64, String)| {
            let body = serde_json::from_str(&body).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
            Ok(ConflictRow {
                step_id,
                at_us,
                body,
            })
        };
        let rows = rows
            .into_iter()
            .map(row)
            .collect::<Result<_, sqlx::Error>>()?;
        Ok((rows, total))
    }

    /// What was running when the process stopped is running no more.
    pub(crate) async fn interrupt_running(&self, now_us: i64) -> Result<(), OrchestrationError> {
        let mut tx = self.begin("training_runs.interrupt").await?;
        sqlx::query(
            "UPDATE training_runs SET state = 'interrupted', ended_us = $1 WHERE state = 'running'",
        )
        .bind(now_us)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}

pub(crate) async fn insert_agent(
    tx: &mut SqliteConnection,
    row: &AgentRow,
) -> Result<(), OrchestrationError> {
    sqlx::query("INSERT INTO agents VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
        .bind(&row.id)
        .bind(text(&row.hyperparameters)?)
        .bind(row.version)
        .bind(&row.weights)
        .bind(row.weights_version)
        .bind(row.last_return)
        .bind(row.total_steps)
        .bind(row.total_episodes)
        .bind(row.updated_us)
        .execute(tx)
        .await?;
    Ok(())
}

/// Sets hyperparameters where the version is still `row.version - 1`.
pub(crate) async fn update_hyperparameters(
    tx: &mut SqliteConnection,
    row: &AgentRow,
) -> Result<bool, OrchestrationError> {
    let done = sqlx::query(
        "UPDATE agents SET hyperparameters = $1, version = $2, updated_us = $3 WHERE id = $4 AND version = $5",
    )
    .bind(text(&row.hyperparameters)?)
    .bind(row.version)
    .bind(row.updated_us)
    .bind(&row.id)
    .bind(row.version - 1)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn update_weights(
    tx: &mut SqliteConnection,
    row: &AgentRow,
) -> Result<(), OrchestrationError> {
    sqlx::query(
        "UPDATE agents SET weights = $1, weights_version = $2, last_return = $3, total_steps = $4, \
         total_episodes = $5, updated_us = $6 WHERE id = $7",
    )
    .bind(&row.weights)
    .bind(row.weights_version)
    .bind(row.last_return)
    .bind(row.total_steps)
    .bind(row.total_episodes)
    .bind(row.updated_us)
    .bind(&row.id)
    .execute(tx)
    .await?;
    Ok(())
}

pub(crate) async fn operation(
    tx: &mut SqliteConnection,
    id: &str,
) -> Result<Option<i64>, OrchestrationError> {
    let query = "SELECT version FROM applied_operations WHERE id = $1";
    Ok(sqlx::query_scalar(query)
        .bind(id)
        .fetch_optional(tx)
        .await?)
}

pub(crate) async fn insert_operation(
    tx: &mut SqliteConnection,
    id: &str,
    agent: &str,
    version: i64,
    now_us: i64,
) -> Result<(), OrchestrationError> {
    sqlx::query("INSERT INTO applied_operations VALUES ($1, $2, $3, $4)")
        .bind(id)
        .bind(agent)
        .bind(version)
        .bind(now_us)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn insert_run(
    tx: &mut SqliteConnection,
    row: &RunRow,
) -> Result<(), OrchestrationError> {
    sqlx::query("INSERT INTO training_runs VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
        .bind(row.id)
        .bind(&row.agent_id)
        .bind(row.state.as_str())
        .bind(row.steps)
        .bind(row.steps_done)
        .bind(row.episodes_done)
        .bind(row.seed)
        .bind(row.final_return)
        .bind(&row.error)
        .bind(row.started_us)
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

/// Adds a conflict and lets go of those that are too old to be kept.
pub(crate) async fn insert_conflict(
    tx: &mut SqliteConnection,
    row: &ConflictRow,
    kept: i64,
) -> Result<(), OrchestrationError> {
    let body = serde_json::to_string(&row.body).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO conflicts (number, step_id, at_us, body) \
         SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3 FROM conflicts RETURNING number",
    )
    .bind(&row.step_id)
    .bind(row.at_us)
    .bind(body)
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query("DELETE FROM conflicts WHERE number <= $1")
        .bind(number - kept)
        .execute(tx)
        .await?;
    Ok(())
}
