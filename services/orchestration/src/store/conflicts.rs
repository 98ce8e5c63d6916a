//! The conflicts that steps met. The newest are retained of each owner, so that nobody takes the places of others.

use super::Store;
use crate::{OrchestrationError, conflicts::Conflict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction, json};

/// How many are retained of one owner.
const RETAINED: i64 = 1_000;

const ALL: &str =
    "SELECT number, step_id, at_us, body FROM conflicts ORDER BY number DESC LIMIT $1";
const OWN: &str = "SELECT number, step_id, at_us, body FROM conflicts WHERE owner = $1 \
                   ORDER BY number DESC LIMIT $2";
const LAST: &str = "SELECT COALESCE(MAX(number), 0) AS number FROM conflicts";
const INSERT: &str = "INSERT INTO conflicts (number, owner, step_id, at_us, body) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4 FROM conflicts";
const DROP_OLD: &str = "DELETE FROM conflicts WHERE owner = $1 AND number <= (SELECT number FROM conflicts \
                        WHERE owner = $1 ORDER BY number DESC LIMIT 1 OFFSET $2)";

/// A step with a conflict.
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

/// Whose conflicts are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met<'a> {
    ByAll,
    By(&'a str),
}

impl FromRow for ConflictRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let number: i64 = row.get("number")?;
        let row = row.named("conflicts", number);
        Ok(Self {
            step_id: row.get("step_id")?,
            at_us: row.get("at_us")?,
            body: row.json("body")?,
        })
    }
}

impl Store {
    /// The latest conflicts, and the number of all that were ever met.
    pub(crate) async fn conflicts(
        &self,
        met: Met<'_>,
        limit: i64,
    ) -> Result<(Vec<ConflictRow>, i64), OrchestrationError> {
        let query = match met {
            Met::ByAll => Query::new(ALL).bind(limit),
            Met::By(owner) => Query::new(OWN).bind(owner).bind(limit),
        };
        let mut db = self.db.read("conflicts.list");
        let rows = db.all(query).await?;
        // The last one is never removed: it is the newest of its owner.
        Ok((rows, db.value(Query::new(LAST), "number").await?))
    }
}

/// Adds a conflict of an owner's step, and forgets the oldest ones of that owner. The transaction must be exclusive:
/// the number is the next one.
pub(crate) async fn insert_conflict(
    tx: &mut Transaction,
    owner: &str,
    row: &ConflictRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(owner)
        .bind(&row.step_id)
        .bind(row.at_us)
        .bind(json(&row.body)?);
    tx.execute(insert).await?.one()?;
    let old = Query::new(DROP_OLD).bind(owner).bind(RETAINED);
    tx.execute(old).await?.any();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATIONS;
    use tars_runtime::db::Db;

    fn conflict(step: i64) -> ConflictRow {
        ConflictRow {
            step_id: step.to_string(),
            at_us: step,
            body: ConflictBody {
                conflicts: Vec::new(),
                method: "max_min".to_owned(),
                raw: BTreeMap::new(),
                resolved: BTreeMap::new(),
                explanation: String::new(),
            },
        }
    }

    async fn meet(store: &Store, owner: &str, steps: impl Iterator<Item = i64>) {
        let mut tx = store.begin("test").await.unwrap();
        for step in steps {
            insert_conflict(&mut tx, owner, &conflict(step))
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn listed(store: &Store, met: Met<'_>) -> (Vec<i64>, i64) {
        let (rows, total) = store.conflicts(met, i64::MAX).await.unwrap();
        (rows.iter().map(|row| row.at_us).collect(), total)
    }

    #[tokio::test]
    async fn a_thousand_conflicts_of_one_caller_leave_those_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        assert_eq!(listed(&store, Met::ByAll).await, (vec![], 0));
        meet(&store, "ada", 1..=2).await;
        meet(&store, "bob", 3..=RETAINED + 5).await;
        assert_eq!(listed(&store, Met::By("ada")).await.0, [2, 1]);
        let (of_bob, total) = listed(&store, Met::By("bob")).await;
        assert_eq!((of_bob.len(), total), (1_000, RETAINED + 5));
        assert_eq!((of_bob[0], of_bob[999]), (RETAINED + 5, 6));
        assert_eq!(listed(&store, Met::ByAll).await.0.len(), 1_002);
        assert_eq!(listed(&store, Met::By("nobody")).await.0, [0; 0]);
        // What remains of the others is theirs to push out.
        meet(&store, "ada", 5_001..=5_000 + RETAINED).await;
        let (of_ada, total) = listed(&store, Met::By("ada")).await;
        assert_eq!((of_ada.len(), of_ada[999]), (1_000, 5_001));
        assert_eq!(total, 2 * RETAINED + 5);
        assert_eq!(listed(&store, Met::By("bob")).await.0, of_bob);
        let limited = store.conflicts(Met::By("bob"), 3).await.unwrap();
        assert_eq!((limited.0.len(), limited.1), (3, total));
    }
}
