//! The holds on agents and their last approved hyperparameters.

use crate::OrchestrationError;
use tars_learn::hyper::Values;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction, json};

const HOLD: &str =
    "SELECT change_id, on_behalf_of, since_us, awaits_person FROM agent_holds WHERE agent_id = $1";
const PUT_HOLD: &str = "INSERT INTO agent_holds (agent_id, change_id, on_behalf_of, since_us, awaits_person) \
                        VALUES ($1, $2, $3, $4, $5) \
                        ON CONFLICT (agent_id) DO UPDATE SET awaits_person = excluded.awaits_person \
                        WHERE agent_holds.change_id = excluded.change_id";
const DELETE_HOLD: &str = "DELETE FROM agent_holds WHERE agent_id = $1 AND change_id = $2";
const APPROVAL: &str =
    "SELECT agent_id, hyperparameters, version, change_id FROM agent_approvals WHERE agent_id = $1";
const PUT_APPROVAL: &str = "INSERT INTO agent_approvals (agent_id, hyperparameters, version, change_id, at_us) \
                            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (agent_id) DO UPDATE SET \
                            hyperparameters = excluded.hyperparameters, version = excluded.version, \
                            change_id = excluded.change_id, at_us = excluded.at_us";

/// The hold of a governed change in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HoldRow {
    pub(crate) change_id: String,
    pub(crate) on_behalf_of: String,
    pub(crate) since_us: i64,
    /// Only a person's decision ends the change, and the hold cannot be released before.
    pub(crate) awaits_person: bool,
}

/// The hyperparameters that were last approved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApprovalRow {
    pub(crate) hyperparameters: Values,
    pub(crate) version: i64,
    /// The change that was approved; empty for the first recorded values.
    pub(crate) change_id: String,
}

impl FromRow for HoldRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            change_id: row.get("change_id")?,
            on_behalf_of: row.get("on_behalf_of")?,
            since_us: row.get("since_us")?,
            awaits_person: row.get("awaits_person")?,
        })
    }
}

impl FromRow for ApprovalRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let agent: String = row.get("agent_id")?;
        let row = row.named("agent_approvals", agent);
        Ok(Self {
            hyperparameters: row.json("hyperparameters")?,
            version: row.get("version")?,
            change_id: row.get("change_id")?,
        })
    }
}

pub(crate) async fn hold(
    tx: &mut Transaction,
    agent: &str,
) -> Result<Option<HoldRow>, OrchestrationError> {
    Ok(tx.optional(Query::new(HOLD).bind(agent)).await?)
}

/// Holds an agent that no other change holds.
pub(crate) async fn put_hold(
    tx: &mut Transaction,
    agent: &str,
    row: &HoldRow,
) -> Result<(), OrchestrationError> {
    let put = Query::new(PUT_HOLD)
        .bind(agent)
        .bind(&row.change_id)
        .bind(&row.on_behalf_of)
        .bind(row.since_us)
        .bind(row.awaits_person);
    let held = DbError::Conflict(format!("another change holds {agent}"));
    Ok(tx.execute(put).await?.swap().or(held)?)
}

/// Releases an agent; lost when the change does not hold it.
pub(crate) async fn delete_hold(
    tx: &mut Transaction,
    agent: &str,
    change: &str,
) -> Result<Swap, OrchestrationError> {
    let delete = Query::new(DELETE_HOLD).bind(agent).bind(change);
    Ok(tx.execute(delete).await?.swap())
}

pub(crate) async fn approval(
    tx: &mut Transaction,
    agent: &str,
) -> Result<Option<ApprovalRow>, OrchestrationError> {
    Ok(tx.optional(Query::new(APPROVAL).bind(agent)).await?)
}

pub(crate) async fn put_approval(
    tx: &mut Transaction,
    agent: &str,
    row: &ApprovalRow,
    now_us: i64,
) -> Result<(), OrchestrationError> {
    let put = Query::new(PUT_APPROVAL)
        .bind(agent)
        .bind(json(&row.hyperparameters)?)
        .bind(row.version)
        .bind(&row.change_id)
        .bind(now_us);
    Ok(tx.execute(put).await?.one()?)
}
