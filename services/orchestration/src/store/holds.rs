//! Who holds an agent, and what was last approved of it.

use super::{text, values};
use crate::OrchestrationError;
use sqlx::SqliteConnection;
use tars_learn::hyper::Values;
use tars_runtime::db::Corrupt;

/// A governed change under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HoldRow {
    pub(crate) change_id: String,
    pub(crate) on_behalf_of: String,
    pub(crate) since_us: i64,
    /// The change ends by a person's decision alone; nobody releases the agent before.
    pub(crate) awaits_person: bool,
}

/// The hyperparameters that were last approved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApprovalRow {
    pub(crate) hyperparameters: Values,
    pub(crate) version: i64,
    /// Empty where the record begins.
    pub(crate) change_id: String,
}

pub(crate) async fn hold(
    tx: &mut SqliteConnection,
    agent: &str,
) -> Result<Option<HoldRow>, OrchestrationError> {
    let query = "SELECT change_id, on_behalf_of, since_us, awaits_person FROM agent_holds WHERE agent_id = $1";
    let row: Option<(String, String, i64, bool)> =
        sqlx::query_as(query).bind(agent).fetch_optional(tx).await?;
    Ok(row.map(
        |(change_id, on_behalf_of, since_us, awaits_person)| HoldRow {
            change_id,
            on_behalf_of,
            since_us,
            awaits_person,
        },
    ))
}

/// Holds an agent, which no other change holds.
pub(crate) async fn put_hold(
    tx: &mut SqliteConnection,
    agent: &str,
    row: &HoldRow,
) -> Result<(), OrchestrationError> {
    sqlx::query(
        "INSERT INTO agent_holds (agent_id, change_id, on_behalf_of, since_us, awaits_person) \
         VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (agent_id) DO UPDATE SET awaits_person = excluded.awaits_person \
         WHERE change_id = excluded.change_id",
    )
    .bind(agent)
    .bind(&row.change_id)
    .bind(&row.on_behalf_of)
    .bind(row.since_us)
    .bind(row.awaits_person)
    .execute(tx)
    .await?;
    Ok(())
}

/// Lets go of an agent; false when the change does not hold it.
pub(crate) async fn delete_hold(
    tx: &mut SqliteConnection,
    agent: &str,
    change: &str,
) -> Result<bool, OrchestrationError> {
    let done = sqlx::query("DELETE FROM agent_holds WHERE agent_id = $1 AND change_id = $2")
        .bind(agent)
        .bind(change)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn approval(
    tx: &mut SqliteConnection,
    agent: &str,
) -> Result<Option<ApprovalRow>, OrchestrationError> {
    let query =
        "SELECT hyperparameters, version, change_id FROM agent_approvals WHERE agent_id = $1";
    let row: Option<(String, i64, String)> =
        sqlx::query_as(query).bind(agent).fetch_optional(tx).await?;
    let Some((hyper, version, change_id)) = row else {
        return Ok(None);
    };
    Ok(Some(ApprovalRow {
        hyperparameters: values(&hyper).map_err(|e| Corrupt::new("agent_approvals", agent, e))?,
        version,
        change_id,
    }))
}

pub(crate) async fn put_approval(
    tx: &mut SqliteConnection,
    agent: &str,
    row: &ApprovalRow,
    now_us: i64,
) -> Result<(), OrchestrationError> {
    sqlx::query(
        "INSERT INTO agent_approvals (agent_id, hyperparameters, version, change_id, at_us) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (agent_id) DO UPDATE SET \
         hyperparameters = excluded.hyperparameters, version = excluded.version, \
         change_id = excluded.change_id, at_us = excluded.at_us",
    )
    .bind(agent)
    .bind(text(&row.hyperparameters)?)
    .bind(row.version)
    .bind(&row.change_id)
    .bind(now_us)
    .execute(tx)
    .await?;
    Ok(())
}
