//! Sessions: the worlds that callers step.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction, json},
    page::{Page, Size},
};
use tars_worlds::Generator;
use uuid::Uuid;

const SESSION: &str = "SELECT id, owner, environment, seed, steps, episode, episode_steps, created_us, used_us, \
                       closed_us, world, body FROM sessions WHERE id = $1 AND owner = $2";
const SESSIONS: &str = "SELECT id, owner, environment, seed, steps, episode, episode_steps, created_us, used_us, \
                        closed_us, world, body FROM sessions WHERE owner = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
const OPEN: &str = "SELECT COUNT(*) AS open FROM sessions WHERE owner = $1 AND closed_us IS NULL";
const INSERT: &str = "INSERT INTO sessions (id, owner, environment, seed, steps, episode, episode_steps, created_us, \
                      used_us, closed_us, world, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const UPDATE: &str = "UPDATE sessions SET steps = $1, episode = $2, episode_steps = $3, used_us = $4, world = $5, \
                      body = $6 WHERE id = $7 AND steps = $8 AND closed_us IS NULL";
const CLOSE: &str = "UPDATE sessions SET closed_us = $1, used_us = $1 WHERE id = $2 AND owner = $3 AND closed_us IS NULL";
const UNUSED: &str = "SELECT id FROM sessions WHERE used_us < $1 ORDER BY used_us LIMIT $2";
const CLOSED: &str = "SELECT id FROM sessions WHERE owner = $1 AND closed_us IS NOT NULL \
                      ORDER BY id DESC LIMIT $2 OFFSET $3";
const DELETE: &str = "DELETE FROM sessions WHERE id = $1";
const DELETE_STEPS: &str = "DELETE FROM session_steps WHERE session_id = $1";

/// How many sessions are deleted at once.
const AT_ONCE: i64 = 64;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionRow {
    pub(crate) id: Uuid,
    pub(crate) owner: String,
    pub(crate) environment: String,
    pub(crate) seed: i64,
    /// The steps that were taken.
    pub(crate) steps: i64,
    /// The number of the episode, from 1, and its steps.
    pub(crate) episode: i64,
    pub(crate) episode_steps: i64,
    pub(crate) created_us: i64,
    pub(crate) used_us: i64,
    pub(crate) closed_us: Option<i64>,
    /// The world's snapshot.
    pub(crate) world: Vec<u8>,
    pub(crate) body: SessionBody,
}

/// What a session goes on with, beside its world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionBody {
    pub(crate) rng: Generator,
    /// The last rewards of each agent, the newest last.
    pub(crate) recent: BTreeMap<String, Vec<f32>>,
}

impl FromRow for SessionRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: Uuid = row.get("id")?;
        let row = row.named("sessions", id);
        Ok(Self {
            id,
            owner: row.get("owner")?,
            environment: row.get("environment")?,
            seed: row.get("seed")?,
            steps: row.get("steps")?,
            episode: row.get("episode")?,
            episode_steps: row.get("episode_steps")?,
            created_us: row.get("created_us")?,
            used_us: row.get("used_us")?,
            closed_us: row.get("closed_us")?,
            world: row.get("world")?,
            body: row.json("body")?,
        })
    }
}

impl Store {
    /// A session of an owner.
    pub(crate) async fn session(
        &self,
        id: Uuid,
        owner: &str,
    ) -> Result<Option<SessionRow>, OrchestrationError> {
        session(&mut self.db.read("sessions.get"), id, owner).await
    }

    /// The sessions of an owner, newest first.
    pub(crate) async fn sessions(
        &self,
        owner: &str,
        before: Uuid,
        size: Size,
    ) -> Result<Page<SessionRow>, OrchestrationError> {
        let query = Query::new(SESSIONS)
            .bind(owner)
            .bind(before)
            .bind(size.limit());
        Ok(self.db.read("sessions.list").page(query, size).await?)
    }
}

pub(crate) async fn session(
    db: &mut impl Fetch,
    id: Uuid,
    owner: &str,
) -> Result<Option<SessionRow>, OrchestrationError> {
    let query = Query::new(SESSION).bind(id).bind(owner);
    Ok(db.optional(query).await?)
}

/// How many open sessions an owner has.
pub(crate) async fn open_sessions(
    tx: &mut Transaction,
    owner: &str,
) -> Result<i64, OrchestrationError> {
    Ok(tx.value(Query::new(OPEN).bind(owner), "open").await?)
}

pub(crate) async fn insert_session(
    tx: &mut Transaction,
    row: &SessionRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(row.id)
        .bind(&row.owner)
        .bind(&row.environment)
        .bind(row.seed)
        .bind(row.steps)
        .bind(row.episode)
        .bind(row.episode_steps)
        .bind(row.created_us)
        .bind(row.used_us)
        .bind(row.closed_us)
        .bind(&row.world)
        .bind(json(&row.body)?);
    Ok(tx.execute(insert).await?.one()?)
}

/// Writes what a step left, if the session is open and was where the step began.
pub(crate) async fn step_session(
    tx: &mut Transaction,
    row: &SessionRow,
) -> Result<Swap, OrchestrationError> {
    let update = Query::new(UPDATE)
        .bind(row.steps)
        .bind(row.episode)
        .bind(row.episode_steps)
        .bind(row.used_us)
        .bind(&row.world)
        .bind(json(&row.body)?)
        .bind(row.id)
        .bind(row.steps - 1);
    Ok(tx.execute(update).await?.swap())
}

/// Closes a session; has no effect on one that is closed.
pub(crate) async fn close_session(
    tx: &mut Transaction,
    id: Uuid,
    owner: &str,
    now_us: i64,
) -> Result<(), OrchestrationError> {
    let close = Query::new(CLOSE).bind(now_us).bind(id).bind(owner);
    tx.execute(close).await?.any();
    Ok(())
}

/// Deletes sessions that were not used since a time, and those that their owner closed before the last ones.
pub(crate) async fn delete_old_sessions(
    tx: &mut Transaction,
    owner: &str,
    since_us: i64,
    closed: i64,
) -> Result<(), OrchestrationError> {
    let unused = Query::new(UNUSED).bind(since_us).bind(AT_ONCE);
    let closed = Query::new(CLOSED).bind(owner).bind(AT_ONCE).bind(closed);
    let mut rows = tx.rows(unused).await?;
    rows.extend(tx.rows(closed).await?);
    for row in rows {
        let id: Uuid = row.get("id")?;
        for text in [DELETE_STEPS, DELETE] {
            tx.execute(Query::new(text).bind(id)).await?.any();
        }
    }
    Ok(())
}
