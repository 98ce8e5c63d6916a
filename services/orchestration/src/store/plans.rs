//! What training runs do that have not ended, and how far their checkpoints are.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use tars_learn::hyper::Values;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction, json};
use uuid::Uuid;

const INSERT: &str = "INSERT INTO run_plans (run_id, plan, start_blob, checkpoint_blob, reported, version) \
                      VALUES ($1, $2, $3, $4, $5, $6)";
/// The first of the two conditions is that of the index of runs that have not ended.
const LEFT: &str = "SELECT p.run_id, p.plan, p.start_blob, p.checkpoint_blob, p.reported, p.version \
                    FROM training_runs r JOIN run_plans p ON p.run_id = r.id \
                    WHERE r.agent_id = $1 \
                    AND r.state IN ('queued', 'running', 'cancelling', 'installing') \
                    AND r.state IN ('queued', 'running')";
const CHECKPOINT: &str =
    "UPDATE run_plans SET checkpoint_blob = $1, reported = $2, version = $3 WHERE run_id = $4";
const DELETE: &str = "DELETE FROM run_plans WHERE run_id = $1";
/// Plans of runs that were ended together.
const DELETE_ENDED: &str = "DELETE FROM run_plans WHERE NOT EXISTS (SELECT 1 FROM training_runs r \
                            WHERE r.id = run_plans.run_id AND r.state IN ('queued', 'running', 'cancelling'))";

/// What a run was started with, beside the seed and the steps that its row has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) algorithm: String,
    pub(crate) environment: String,
    pub(crate) agent: String,
    pub(crate) values: Values,
    pub(crate) reports: u64,
    pub(crate) evaluation_episodes: u32,
    /// Whose share of the learners it takes.
    pub(crate) caller: String,
}

/// A run that can be resumed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlanRow {
    pub(crate) run_id: Uuid,
    pub(crate) plan: Plan,
    /// The weights that it continues from.
    pub(crate) start: Option<String>,
    pub(crate) checkpoint: Option<String>,
    /// How many reports the run made before the checkpoint.
    pub(crate) reported: i64,
    /// The version of the hyperparameters that it followed then.
    pub(crate) version: i64,
}

impl FromRow for PlanRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let run_id: Uuid = row.get("run_id")?;
        let row = row.named("run_plans", run_id);
        Ok(Self {
            run_id,
            plan: row.json("plan")?,
            start: row.get("start_blob")?,
            checkpoint: row.get("checkpoint_blob")?,
            reported: row.get("reported")?,
            version: row.get("version")?,
        })
    }
}

pub(crate) async fn insert_plan(
    tx: &mut Transaction,
    row: &PlanRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(row.run_id)
        .bind(json(&row.plan)?)
        .bind(&row.start)
        .bind(&row.checkpoint)
        .bind(row.reported)
        .bind(row.version);
    Ok(tx.execute(insert).await?.one()?)
}

impl Store {
    /// The newest run of an agent that can be resumed, if one was left.
    pub(crate) async fn left_run(
        &self,
        agent: &str,
    ) -> Result<Option<PlanRow>, OrchestrationError> {
        let mut db = self.db.read("run_plans.left");
        let left: Vec<PlanRow> = db.all(Query::new(LEFT).bind(agent)).await?;
        Ok(left.into_iter().max_by_key(|left| left.run_id))
    }
}

/// Records the newest checkpoint of a run.
pub(crate) async fn put_checkpoint(
    tx: &mut Transaction,
    run: Uuid,
    blob: &str,
    reported: i64,
    version: i64,
) -> Result<(), OrchestrationError> {
    let put = Query::new(CHECKPOINT)
        .bind(blob)
        .bind(reported)
        .bind(version)
        .bind(run);
    Ok(tx.execute(put).await?.one()?)
}

/// Forgets the plan of a run that ends; runs that began without one have none.
pub(crate) async fn delete_plan(tx: &mut Transaction, run: Uuid) -> Result<(), OrchestrationError> {
    tx.execute(Query::new(DELETE).bind(run)).await?.any();
    Ok(())
}

/// Forgets the plans of all runs that have ended.
pub(crate) async fn delete_ended_plans(tx: &mut Transaction) -> Result<(), OrchestrationError> {
    tx.execute(Query::new(DELETE_ENDED)).await?.any();
    Ok(())
}
