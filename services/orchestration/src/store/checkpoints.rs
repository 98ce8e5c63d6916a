//! The versions of the agents' weights that are retained.

use super::AgentRow;
use crate::OrchestrationError;
use std::collections::BTreeSet;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};

const INSERT: &str =
    "INSERT INTO checkpoints (agent_id, version, blob, at_us) VALUES ($1, $2, $3, $4)";
/// Weights do not change while a governed change holds their agent, and what it may go back to stays.
const DROP_OLD: &str = "DELETE FROM checkpoints WHERE \
                        EXISTS (SELECT 1 FROM agents WHERE agents.id = checkpoints.agent_id \
                        AND checkpoints.version <= agents.weights_version - $1) \
                        AND NOT EXISTS (SELECT 1 FROM agent_holds WHERE agent_holds.agent_id = checkpoints.agent_id)";
const REFERENCED: &str = "SELECT blob FROM checkpoints UNION SELECT weights AS blob FROM agents WHERE weights IS NOT NULL \
                          UNION SELECT start_blob AS blob FROM run_plans WHERE start_blob IS NOT NULL \
                          UNION SELECT checkpoint_blob AS blob FROM run_plans WHERE checkpoint_blob IS NOT NULL";

struct Blob(String);

impl FromRow for Blob {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        row.get("blob").map(Self)
    }
}

/// Records the live weights of an agent.
pub(crate) async fn insert_checkpoint(
    tx: &mut Transaction,
    row: &AgentRow,
    blob: &str,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(&row.id)
        .bind(row.weights_version)
        .bind(blob)
        .bind(row.updated_us);
    Ok(tx.execute(insert).await?.one()?)
}

/// Forgets all but the newest versions of each agent that no change holds.
pub(crate) async fn drop_old_checkpoints(
    tx: &mut Transaction,
    retained: u32,
) -> Result<(), OrchestrationError> {
    let drop = Query::new(DROP_OLD).bind(retained);
    tx.execute(drop).await?.any();
    Ok(())
}

/// The names of all blobs that are retained.
pub(crate) async fn referenced_blobs(
    tx: &mut Transaction,
) -> Result<BTreeSet<String>, OrchestrationError> {
    let blobs: Vec<Blob> = tx.all(Query::new(REFERENCED)).await?;
    Ok(blobs.into_iter().map(|Blob(name)| name).collect())
}
