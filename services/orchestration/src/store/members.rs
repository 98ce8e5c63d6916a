//! The agents that training runs train.

use super::Store;
use crate::OrchestrationError;
use std::collections::HashMap;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};
use uuid::Uuid;

const MEMBERS: &str = "SELECT run_id, agent_id, algorithm, final_return, weights_version FROM run_members \
                       WHERE run_id >= $1 AND run_id <= $2 ORDER BY run_id, position";
const INSERT: &str = "INSERT INTO run_members (run_id, position, agent_id, algorithm, final_return, weights_version) \
                      VALUES ($1, $2, $3, $4, $5, $6)";
const COMPLETE: &str = "UPDATE run_members SET final_return = $1, weights_version = $2 \
                        WHERE run_id = $3 AND position = $4";

/// An agent that a run trains, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemberRow {
    pub(crate) agent: String,
    pub(crate) algorithm: String,
    /// The mean return of the evaluation at the end.
    pub(crate) final_return: Option<f64>,
    /// The version of the weights that the run made.
    pub(crate) weights_version: Option<i64>,
}

struct Listed {
    run: Uuid,
    member: MemberRow,
}

impl FromRow for Listed {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let run: Uuid = row.get("run_id")?;
        let row = row.named("run_members", run);
        Ok(Self {
            run,
            member: MemberRow {
                agent: row.get("agent_id")?,
                algorithm: row.get("algorithm")?,
                final_return: row.get("final_return")?,
                weights_version: row.get("weights_version")?,
            },
        })
    }
}

impl Store {
    /// The members of a run, in the order of their environment.
    pub(crate) async fn members(&self, run: Uuid) -> Result<Vec<MemberRow>, OrchestrationError> {
        let mut listed = self.members_between(run, run).await?;
        Ok(listed.remove(&run).unwrap_or_default())
    }

    /// The members of the runs from one to another, by run.
    pub(crate) async fn members_between(
        &self,
        first: Uuid,
        last: Uuid,
    ) -> Result<HashMap<Uuid, Vec<MemberRow>>, OrchestrationError> {
        let query = Query::new(MEMBERS).bind(first).bind(last);
        let rows: Vec<Listed> = self.db.read("run_members.list").all(query).await?;
        let mut members: HashMap<Uuid, Vec<MemberRow>> = HashMap::new();
        for Listed { run, member } in rows {
            members.entry(run).or_default().push(member);
        }
        Ok(members)
    }
}

/// Records which agents a run trains.
pub(crate) async fn insert_members(
    tx: &mut Transaction,
    run: Uuid,
    members: &[MemberRow],
) -> Result<(), OrchestrationError> {
    for (position, member) in (0i64..).zip(members) {
        let insert = Query::new(INSERT)
            .bind(run)
            .bind(position)
            .bind(&member.agent)
            .bind(&member.algorithm)
            .bind(member.final_return)
            .bind(member.weights_version);
        tx.execute(insert).await?.one()?;
    }
    Ok(())
}

/// Records what came of a run's members: the mean return and the version of the weights of each, in their
/// order.
pub(crate) async fn complete_members(
    tx: &mut Transaction,
    run: Uuid,
    results: &[(f64, i64)],
) -> Result<(), OrchestrationError> {
    for (position, (final_return, version)) in (0i64..).zip(results) {
        let complete = Query::new(COMPLETE)
            .bind(*final_return)
            .bind(*version)
            .bind(run)
            .bind(position);
        tx.execute(complete).await?.one()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{self, MIGRATIONS, Others};
    use tars_runtime::db::Db;

    const BEFORE: &[&str] = &[
        "INSERT INTO agents (id, hyperparameters, version, weights_version, total_steps, total_episodes, updated_us, \
         algorithm, environment) VALUES ('ethical', '{}', 1, 7, 0, 0, 1, 'ppo', 'mesh')",
        "INSERT INTO training_runs (id, agent_id, state, steps, steps_done, episodes_done, seed, final_return, error, \
         started_us) VALUES ($1, 'ethical', 'running', 10, 0, 0, 1, 2.5, '', 1)",
        "INSERT INTO checkpoints (agent_id, version, blob, at_us, run_id) VALUES ('ethical', 7, 'weights', 1, $1)",
        "INSERT INTO run_plans (run_id, plan, start_blob, reported, version) VALUES ($1, \
         '{\"algorithm\":\"ppo\",\"environment\":\"mesh\",\"agent\":\"ethical\",\"values\":{},\"reports\":1,\
         \"evaluation_episodes\":1,\"caller\":\"dev\"}', 'start', 3, 5)",
    ];

    #[tokio::test]
    async fn runs_from_before_joint_trainings_have_one_member_and_can_be_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, &MIGRATIONS[..17]).await.unwrap());
        let run = Uuid::now_v7();
        let mut tx = store.begin("test.before").await.unwrap();
        for text in BEFORE {
            let insert = match text.contains("$1") {
                true => Query::new(text).bind(run),
                false => Query::new(text),
            };
            tx.execute(insert).await.unwrap().one().unwrap();
        }
        tx.commit().await.unwrap();
        store.db().close().await;

        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        let member = MemberRow {
            agent: "ethical".to_owned(),
            algorithm: "ppo".to_owned(),
            final_return: Some(2.5),
            weights_version: Some(7),
        };
        assert_eq!(store.members(run).await.unwrap(), [member]);
        let row = store.run(run).await.unwrap().unwrap();
        assert_eq!((&*row.environment, row.others), ("mesh", Others::Rules));
        let unfinished = store.unfinished_runs().await.unwrap();
        assert_eq!((unfinished.len(), unfinished[0].id), (1, run));
        let plan = store.plan(run).await.unwrap().unwrap();
        assert_eq!((plan.versions, plan.reported), (vec![5], 3));
        assert_eq!(plan.plan.learners[0].agent, "ethical");
        assert_eq!(plan.policies["ethical"], "start");
        let mut tx = store.begin("test.blobs").await.unwrap();
        let blobs = store::referenced_blobs(&mut tx).await.unwrap();
        assert!(blobs.contains("start"), "{blobs:?}");
    }
}
