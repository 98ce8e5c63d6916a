//! How far the agents were from an equilibrium, each time that it was measured.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, json};
use uuid::Uuid;

/// How many are retained.
const RETAINED: i64 = 1_000;

const POINTS: &str = "SELECT number, at_us, environment, value, low, high, body FROM nash_points \
                      ORDER BY number DESC LIMIT $1";
const INSERT: &str = "INSERT INTO nash_points (number, at_us, environment, value, low, high, body) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4, $5, $6 FROM nash_points \
                      RETURNING number";
const DROP_OLD: &str = "DELETE FROM nash_points WHERE number <= $1";

/// The NashConv of what the agents would do, in the empirical game of one state.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NashPoint {
    pub(crate) at_us: i64,
    pub(crate) environment: String,
    /// What the agents would gain by their best actions, in units of reward, summed over the agents.
    pub(crate) value: f64,
    /// The ends of its 95 % interval.
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) origin: NashOrigin,
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NashOrigin {
    /// The version of what is live of each agent; 0 where that is nothing, so that it plays its rule.
    pub(crate) weights: BTreeMap<String, i64>,
    /// The session whose state it was.
    pub(crate) session: Option<Uuid>,
    /// The training run after which it was measured.
    #[serde(default)]
    pub(crate) run: Option<Uuid>,
}

impl FromRow for NashPoint {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let number: i64 = row.get("number")?;
        let row = row.named("nash_points", number);
        Ok(Self {
            at_us: row.get("at_us")?,
            environment: row.get("environment")?,
            value: row.get("value")?,
            low: row.get("low")?,
            high: row.get("high")?,
            origin: row.json("body")?,
        })
    }
}

impl Store {
    /// The newest points, newest first.
    pub(crate) async fn nash_points(
        &self,
        limit: i64,
    ) -> Result<Vec<NashPoint>, OrchestrationError> {
        let query = Query::new(POINTS).bind(limit);
        Ok(self.db.read("nash_points.list").all(query).await?)
    }

    /// Adds a point, and forgets the oldest.
    pub(crate) async fn insert_nash_point(
        &self,
        point: &NashPoint,
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.begin("nash_points.insert").await?;
        let insert = Query::new(INSERT)
            .bind(point.at_us)
            .bind(&point.environment)
            .bind(point.value)
            .bind(point.low)
            .bind(point.high)
            .bind(json(&point.origin)?);
        let number: i64 = tx.value(insert, "number").await?;
        let old = Query::new(DROP_OLD).bind(number - RETAINED);
        tx.execute(old).await?.any();
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATIONS;
    use tars_runtime::db::Db;

    fn point(at_us: i64) -> NashPoint {
        NashPoint {
            at_us,
            environment: "mesh".into(),
            value: 0.25,
            low: 0.125,
            high: 0.5,
            origin: NashOrigin {
                weights: [("policy".into(), 3)].into(),
                session: Some(Uuid::now_v7()),
                run: None,
            },
        }
    }

    #[tokio::test]
    async fn the_newest_points_are_listed_first_and_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        assert!(store.nash_points(10).await.unwrap().is_empty());
        let points: Vec<NashPoint> = (0..RETAINED + 2).map(point).collect();
        for point in &points {
            store.insert_nash_point(point).await.unwrap();
        }
        let newest = store.nash_points(2).await.unwrap();
        assert_eq!(newest[0], *points.last().unwrap());
        assert_eq!(newest[1].at_us, RETAINED);
        let all = store.nash_points(i64::MAX).await.unwrap();
        assert_eq!(all.len(), 1_000);
        assert_eq!(all.last().unwrap().at_us, 2);
    }
}
