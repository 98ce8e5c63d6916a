//! Orchestration's SQL.

mod holds;
mod runs;

pub(crate) use holds::{ApprovalRow, HoldRow, approval, delete_hold, hold, put_approval, put_hold};
pub(crate) use runs::{RunRow, RunState, end_run, insert_run};

use crate::{OrchestrationError, conflicts::Conflict};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use tars_learn::hyper::Values;
use tars_runtime::{
    audit,
    db::{Corrupt, Db, Step, Write},
};

pub(crate) const STEPS: &[Step] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "audit outbox", audit::MIGRATION),
    (
        3,
        "conflicts",
        include_str!("../migrations/0003_conflicts.sql"),
    ),
    (
        4,
        "governance",
        include_str!("../migrations/0004_governance.sql"),
    ),
    (
        5,
        "awaits person",
        include_str!("../migrations/0005_awaits_person.sql"),
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

fn values(text: &str) -> Result<Values, serde_json::Error> {
    serde_json::from_str(text)
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
        let hyperparameters = values(&hyper).map_err(|e| Corrupt::new("agents", &id, e))?;
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
        let row = |(number, step_id, at_us, body): (i64, String, i64, String)| {
            let body =
                serde_json::from_str(&body).map_err(|e| Corrupt::new("conflicts", number, e))?;
            Ok(ConflictRow {
                step_id,
                at_us,
                body,
            })
        };
        let rows = rows.into_iter().map(row).collect::<Result<_, Corrupt>>()?;
        Ok((rows, total))
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
