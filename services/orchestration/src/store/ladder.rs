//! What is known about versions that climb: comparisons and trials.

use super::Store;
use crate::{
    OrchestrationError,
    stage::{Attempt, Comparison, Counts, Stage, Trial},
};
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction, json};

const COMPARISON: &str =
    "SELECT version, at_us, body FROM comparisons WHERE agent_id = $1 AND version = $2";
const PUT_COMPARISON: &str = "INSERT INTO comparisons (agent_id, version, at_us, body) VALUES ($1, $2, $3, $4) \
                              ON CONFLICT (agent_id, version) DO UPDATE SET at_us = excluded.at_us, \
                              body = excluded.body";
const TRIAL: &str =
    "SELECT version, canary_steps, blocked FROM trials WHERE agent_id = $1 AND version = $2";
/// Steps in CANARY count for the trial that they belong to, unless another one has begun.
const ADD_COUNTS: &str = "INSERT INTO trials (agent_id, version, trial, shadow_steps, agreed, canary_steps, blocked, \
                          active_steps, active_blocked) \
                          VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (agent_id, version) DO UPDATE SET \
                          shadow_steps = trials.shadow_steps + excluded.shadow_steps, \
                          agreed = trials.agreed + excluded.agreed, \
                          canary_steps = trials.canary_steps + CASE WHEN trials.trial = excluded.trial \
                          THEN excluded.canary_steps ELSE 0 END, \
                          blocked = trials.blocked + CASE WHEN trials.trial = excluded.trial \
                          THEN excluded.blocked ELSE 0 END, \
                          active_steps = trials.active_steps + excluded.active_steps, \
                          active_blocked = trials.active_blocked + excluded.active_blocked";
const TRIAL_NUMBER: &str = "SELECT trial FROM trials WHERE agent_id = $1 AND version = $2";
const BEGIN_TRIAL: &str = "INSERT INTO trials (agent_id, version, trial, shadow_steps, agreed, canary_steps, blocked) \
                           VALUES ($1, $2, 1, 0, 0, 0, 0) ON CONFLICT (agent_id, version) DO UPDATE SET \
                           trial = trials.trial + 1, canary_steps = 0, blocked = 0, fell = NULL";
const PUT_FALL: &str = "INSERT INTO trials (agent_id, version, trial, shadow_steps, agreed, canary_steps, blocked, fell, \
                        last_fall, last_fall_us, last_fall_from) \
                        VALUES ($1, $2, $3, 0, 0, 0, 0, $4, $5, $6, $7) ON CONFLICT (agent_id, version) DO UPDATE SET \
                        fell = excluded.fell, last_fall = excluded.last_fall, last_fall_us = excluded.last_fall_us, \
                        last_fall_from = excluded.last_fall_from";
const DROP_COMPARISONS: &str = "DELETE FROM comparisons WHERE NOT EXISTS (SELECT 1 FROM checkpoints \
                                WHERE checkpoints.agent_id = comparisons.agent_id \
                                AND checkpoints.version = comparisons.version)";
const DROP_TRIALS: &str = "DELETE FROM trials WHERE NOT EXISTS (SELECT 1 FROM checkpoints \
                           WHERE checkpoints.agent_id = trials.agent_id AND checkpoints.version = trials.version)";

/// A comparison as it is stored.
struct Stored(Comparison);

impl FromRow for Stored {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let version: i64 = row.get("version")?;
        let row = row.named("comparisons", version);
        let found: Comparison = row.json("body")?;
        let at_us = row.get("at_us")?;
        Ok(Self(Comparison { at_us, ..found }))
    }
}

impl FromRow for Trial {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let version: i64 = row.get("version")?;
        let row = row.named("trials", version);
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok(Self {
            steps: count(row.get("canary_steps")?),
            blocked: count(row.get("blocked")?),
        })
    }
}

/// The last comparison of a version.
pub(crate) async fn comparison(
    db: &mut impl Fetch,
    agent: &str,
    version: i64,
) -> Result<Option<Comparison>, OrchestrationError> {
    let query = Query::new(COMPARISON).bind(agent).bind(version);
    let stored: Option<Stored> = db.optional(query).await?;
    Ok(stored.map(|Stored(comparison)| comparison))
}

/// Stores a comparison in the place of the last one.
pub(crate) async fn put_comparison(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
    comparison: &Comparison,
) -> Result<(), OrchestrationError> {
    let put = Query::new(PUT_COMPARISON)
        .bind(agent)
        .bind(version)
        .bind(comparison.at_us)
        .bind(json(comparison)?);
    Ok(tx.execute(put).await?.one()?)
}

/// What a version did in CANARY.
pub(crate) async fn trial(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
) -> Result<Trial, OrchestrationError> {
    let query = Query::new(TRIAL).bind(agent).bind(version);
    let stored: Option<Trial> = tx.optional(query).await?;
    Ok(stored.unwrap_or_default())
}

/// The number of a version's last trial; 0 before the first.
pub(crate) async fn trial_number(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
) -> Result<i64, OrchestrationError> {
    let query = Query::new(TRIAL_NUMBER).bind(agent).bind(version);
    let stored = tx.optional_value(query, "trial").await?;
    Ok(stored.unwrap_or_default())
}

/// Adds what a version did since it was last stored.
pub(crate) async fn add_counts(
    tx: &mut Transaction,
    agent: &str,
    attempt: Attempt,
    counts: Counts,
) -> Result<(), OrchestrationError> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let add = Query::new(ADD_COUNTS)
        .bind(agent)
        .bind(attempt.version)
        .bind(attempt.trial)
        .bind(number(counts.shadow_steps))
        .bind(number(counts.agreed))
        .bind(number(counts.canary_steps))
        .bind(number(counts.blocked))
        .bind(number(counts.active_steps))
        .bind(number(counts.active_blocked));
    Ok(tx.execute(add).await?.one()?)
}

/// Records why a version fell by itself, from where and when.
pub(crate) async fn put_fall(
    tx: &mut Transaction,
    agent: &str,
    (attempt, from): (Attempt, Stage),
    why: &str,
    now_us: i64,
) -> Result<(), OrchestrationError> {
    let put = Query::new(PUT_FALL)
        .bind(agent)
        .bind(attempt.version)
        .bind(attempt.trial)
        .bind(why)
        .bind(why)
        .bind(now_us)
        .bind(from.to_string());
    Ok(tx.execute(put).await?.one()?)
}

/// A version enters CANARY: what it did there before does not count, nor what is still to be stored of that.
pub(crate) async fn begin_trial(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
) -> Result<(), OrchestrationError> {
    let begin = Query::new(BEGIN_TRIAL).bind(agent).bind(version);
    Ok(tx.execute(begin).await?.one()?)
}

/// Forgets what belongs to versions that are not retained.
pub(super) async fn drop_old(tx: &mut Transaction) -> Result<(), OrchestrationError> {
    tx.execute(Query::new(DROP_COMPARISONS)).await?.any();
    tx.execute(Query::new(DROP_TRIALS)).await?.any();
    Ok(())
}

impl Store {
    /// The last comparison of a version.
    pub(crate) async fn comparison(
        &self,
        agent: &str,
        version: i64,
    ) -> Result<Option<Comparison>, OrchestrationError> {
        comparison(&mut self.db.read("comparisons.get"), agent, version).await
    }
}
