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
