//! What training runs do that have not ended, and how far their checkpoints are.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tars_learn::hyper::Values;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction, json};
use uuid::Uuid;

const INSERT: &str = "INSERT INTO run_plans (run_id, plan, checkpoint_blob, reported, versions) \
                      VALUES ($1, $2, $3, $4, $5)";
const INSERT_POLICY: &str = "INSERT INTO run_policies (run_id, agent_id, blob) VALUES ($1, $2, $3)";
const PLAN: &str =
    "SELECT run_id, plan, checkpoint_blob, reported, versions FROM run_plans WHERE run_id = $1";
const POLICIES: &str = "SELECT agent_id, blob FROM run_policies WHERE run_id = $1";
const CHECKPOINT: &str =
    "UPDATE run_plans SET checkpoint_blob = $1, reported = $2, versions = $3 WHERE run_id = $4";
const DELETE: &str = "DELETE FROM run_plans WHERE run_id = $1";
const DELETE_POLICIES: &str = "DELETE FROM run_policies WHERE run_id = $1";

/// What a run was started with, beside the seed and the steps that its row has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredPlan")]
pub(crate) struct Plan {
    pub(crate) environment: String,
    /// Those that learn, in the order of the environment.
    pub(crate) learners: Vec<PlannedLearner>,
    pub(crate) reports: u64,
    pub(crate) evaluation_episodes: u32,
    /// Whose share of the learners it takes.
    pub(crate) caller: String,
}

/// What one agent of a run learns by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlannedLearner {
    pub(crate) agent: String,
    pub(crate) algorithm: String,
    pub(crate) values: Values,
}

/// A plan as it is stored. Those from before there were joint trainings have one learner, in fields of their
/// own.
#[derive(Deserialize)]
struct StoredPlan {
    environment: String,
    #[serde(default)]
    learners: Vec<PlannedLearner>,
    #[serde(flatten)]
    only: Option<PlannedLearner>,
    reports: u64,
    evaluation_episodes: u32,
    caller: String,
}

impl From<StoredPlan> for Plan {
    fn from(stored: StoredPlan) -> Self {
        Self {
            environment: stored.environment,
            learners: stored.learners.into_iter().chain(stored.only).collect(),
            reports: stored.reports,
            evaluation_episodes: stored.evaluation_episodes,
            caller: stored.caller,
        }
    }
}

/// A run that can be resumed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlanRow {
    pub(crate) run_id: Uuid,
    pub(crate) plan: Plan,
    /// The blobs of the policies that the agents begin with: learners continue from them, and those that do
    /// not learn act by them.
    pub(crate) policies: BTreeMap<String, String>,
    pub(crate) checkpoint: Option<String>,
    /// How many reports the run made before the checkpoint.
    pub(crate) reported: i64,
    /// The versions of the hyperparameters that the learners followed then.
    pub(crate) versions: Vec<i64>,
}

impl FromRow for PlanRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let run_id: Uuid = row.get("run_id")?;
        let row = row.named("run_plans", run_id);
        Ok(Self {
            run_id,
            plan: row.json("plan")?,
            policies: BTreeMap::new(),
            checkpoint: row.get("checkpoint_blob")?,
            reported: row.get("reported")?,
            versions: row.json("versions")?,
        })
    }
}

struct PolicyRow(String, String);

impl FromRow for PolicyRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self(row.get("agent_id")?, row.get("blob")?))
    }
}

pub(crate) async fn insert_plan(
    tx: &mut Transaction,
    row: &PlanRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(row.run_id)
        .bind(json(&row.plan)?)
        .bind(&row.checkpoint)
        .bind(row.reported)
        .bind(json(&row.versions)?);
    tx.execute(insert).await?.one()?;
    for (agent, blob) in &row.policies {
        let insert = Query::new(INSERT_POLICY)
            .bind(row.run_id)
            .bind(agent)
            .bind(blob);
        tx.execute(insert).await?.one()?;
    }
    Ok(())
}

impl Store {
    /// What a run does, if it can be resumed.
    pub(crate) async fn plan(&self, run: Uuid) -> Result<Option<PlanRow>, OrchestrationError> {
        plan(&mut self.db.read("run_plans.get"), run).await
    }
}

/// What a run does, if it can be resumed, as a transaction sees it.
pub(crate) async fn plan(
    db: &mut impl Fetch,
    run: Uuid,
) -> Result<Option<PlanRow>, OrchestrationError> {
    let found: Option<PlanRow> = db.optional(Query::new(PLAN).bind(run)).await?;
    let Some(mut found) = found else {
        return Ok(None);
    };
    let policies: Vec<PolicyRow> = db.all(Query::new(POLICIES).bind(run)).await?;
    found.policies = policies
        .into_iter()
        .map(|PolicyRow(agent, blob)| (agent, blob))
        .collect();
    Ok(Some(found))
}

/// Records the newest checkpoint of a run.
pub(crate) async fn put_checkpoint(
    tx: &mut Transaction,
    run: Uuid,
    blob: &str,
    reported: i64,
    versions: &[i64],
) -> Result<(), OrchestrationError> {
    let put = Query::new(CHECKPOINT)
        .bind(blob)
        .bind(reported)
        .bind(json(versions)?)
        .bind(run);
    Ok(tx.execute(put).await?.one()?)
}

/// Forgets the plan of a run that ends; runs that began without one have none.
pub(crate) async fn delete_plan(tx: &mut Transaction, run: Uuid) -> Result<(), OrchestrationError> {
    for delete in [DELETE, DELETE_POLICIES] {
        tx.execute(Query::new(delete).bind(run)).await?.any();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_learn::hyper::Value;

    fn learner(agent: &str) -> PlannedLearner {
        PlannedLearner {
            agent: agent.to_owned(),
            algorithm: "dqn".to_owned(),
            values: Values::from([("gamma".to_owned(), Value::Number(0.9))]),
        }
    }

    fn plan(learners: Vec<PlannedLearner>) -> Plan {
        Plan {
            environment: "mesh".to_owned(),
            learners,
            reports: 100,
            evaluation_episodes: 20,
            caller: "dev".to_owned(),
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let written = plan(vec![learner("policy"), learner("ethical")]);
        let read: Plan = serde_json::from_str(&json(&written).unwrap()).unwrap();
        assert_eq!(read, written);
    }

    #[test]
    fn a_plan_from_before_joint_trainings_has_one_learner() {
        let stored = r#"{"algorithm":"dqn","environment":"mesh","agent":"policy","values":{"gamma":0.9},
                         "reports":100,"evaluation_episodes":20,"caller":"dev"}"#;
        let read: Plan = serde_json::from_str(stored).unwrap();
        assert_eq!(read, plan(vec![learner("policy")]));
    }
}
