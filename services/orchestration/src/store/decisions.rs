//! What came of proposals.

use super::Store;
use crate::{OrchestrationError, calibration::Decided};
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, json};
use uuid::Uuid;

/// How many are retained: a few weeks' of a busy mesh.
const RETAINED: i64 = 500;

const PUT: &str = "INSERT INTO decisions (proposal_id, ended_us, body) VALUES ($1, $2, $3) \
                   ON CONFLICT (proposal_id) DO UPDATE SET ended_us = excluded.ended_us, body = excluded.body";
const DROP_OLD: &str = "DELETE FROM decisions WHERE ended_us <= (SELECT ended_us FROM decisions \
                        ORDER BY ended_us DESC LIMIT 1 OFFSET $1)";
const NEWEST: &str =
    "SELECT proposal_id, body FROM decisions ORDER BY ended_us DESC, proposal_id DESC LIMIT $1";

impl FromRow for Decided {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let proposal: Uuid = row.get("proposal_id")?;
        row.named("decisions", proposal).json("body")
    }
}

impl Store {
    /// Records proposals that have ended, in the place of earlier records of the same, and forgets the oldest.
    pub(crate) async fn put_decisions(
        &self,
        decisions: &[(Uuid, Decided)],
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.begin("decisions.put").await?;
        for (proposal, decided) in decisions {
            let put = Query::new(PUT)
                .bind(*proposal)
                .bind(decided.ended_us)
                .bind(json(decided)?);
            tx.execute(put).await?.one()?;
        }
        tx.execute(Query::new(DROP_OLD).bind(RETAINED)).await?.any();
        Ok(tx.commit().await?)
    }

    /// The proposals that ended last, the oldest first.
    pub(crate) async fn decisions(&self) -> Result<Vec<Decided>, OrchestrationError> {
        let query = Query::new(NEWEST).bind(RETAINED);
        let mut newest: Vec<Decided> = self.db.read("decisions.list").all(query).await?;
        newest.reverse();
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATIONS;
    use tars_runtime::db::Db;

    fn decided(ended_us: i64) -> Decided {
        Decided {
            proposed_us: 0,
            ended_us,
            required: 1,
            votes: Vec::new(),
            quality: None,
        }
    }

    #[tokio::test]
    async fn a_proposal_is_recorded_once_and_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        let ends = async || {
            let all = store.decisions().await.unwrap().into_iter();
            all.map(|one| one.ended_us).collect::<Vec<_>>()
        };
        let id = Uuid::now_v7();
        let twice = [
            (id, decided(5)),
            (Uuid::now_v7(), decided(3)),
            (id, decided(7)),
        ];
        store.put_decisions(&twice).await.unwrap();
        assert_eq!(ends().await, [3, 7]);
        let many: Vec<_> = (10..10 + RETAINED - 1)
            .map(|ended_us| (Uuid::now_v7(), decided(ended_us)))
            .collect();
        store.put_decisions(&many).await.unwrap();
        let left = ends().await;
        assert_eq!((left.len(), left[0]), (500, 7));
    }
}
