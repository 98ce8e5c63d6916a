//! How far the agents were from an equilibrium, each time that it was measured.
//!
//! Only points of one game, that of the same episode with the same number of rollouts, differ by what the agents do.
//! They are marked as regular, and are retained apart from those of other games, which callers measure.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, json};
use uuid::Uuid;

/// How many are retained of either kind.
const RETAINED: i64 = 1_000;

const POINTS: &str = "SELECT number, at_us, environment, value, low, high, regular, body FROM nash_points \
                      ORDER BY number DESC LIMIT $1";
const REGULAR: &str = "SELECT number, at_us, environment, value, low, high, regular, body FROM nash_points \
                       WHERE regular ORDER BY number DESC LIMIT $1";
const INSERT: &str = "INSERT INTO nash_points (number, at_us, environment, value, low, high, regular, body) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4, $5, $6, $7 FROM nash_points";
const DROP_OLD: &str = "DELETE FROM nash_points WHERE regular = $1 AND number NOT IN (SELECT number \
                        FROM nash_points WHERE regular = $1 ORDER BY number DESC LIMIT $2)";

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
    /// Whether the game is the one that is always measured.
    pub(crate) regular: bool,
    pub(crate) origin: NashOrigin,
}

/// Which points are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Points {
    Regular,
    All,
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NashOrigin {
    /// The version of what is live of each agent; 0 where that is nothing, so that it plays its rule.
    pub(crate) weights: BTreeMap<String, i64>,
    /// The session whose state it was.
    pub(crate) session: Option<Uuid>,
    /// The episode that led to the state; absent for a session's.
    #[serde(default)]
    pub(crate) episode: Option<Episode>,
    /// The rollouts of each joint action; 0 where that was not recorded yet.
    #[serde(default)]
    pub(crate) rollouts: usize,
    /// The training run after which it was measured.
    #[serde(default)]
    pub(crate) run: Option<Uuid>,
}

/// An episode of the agents that are live, and how far it is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Episode {
    pub(crate) seed: u64,
    pub(crate) steps: u32,
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
            regular: row.get("regular")?,
            origin: row.json("body")?,
        })
    }
}

impl Store {
    /// The newest points, newest first.
    pub(crate) async fn nash_points(
        &self,
        which: Points,
        limit: i64,
    ) -> Result<Vec<NashPoint>, OrchestrationError> {
        let text = match which {
            Points::Regular => REGULAR,
            Points::All => POINTS,
        };
        let query = Query::new(text).bind(limit);
        Ok(self.db.read("nash_points.list").all(query).await?)
    }

    /// Adds a point, and forgets the oldest of its kind.
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
            .bind(point.regular)
            .bind(json(&point.origin)?);
        tx.execute(insert).await?.one()?;
        let old = Query::new(DROP_OLD).bind(point.regular).bind(RETAINED);
        tx.execute(old).await?.any();
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATIONS;
    use tars_runtime::db::Db;

    fn point(at_us: i64, regular: bool) -> NashPoint {
        NashPoint {
            regular,
            at_us,
            environment: "mesh".into(),
            value: 0.25,
            low: 0.125,
            high: 0.5,
            origin: NashOrigin {
                weights: [("policy".into(), 3)].into(),
                session: None,
                episode: Some(Episode { seed: 1, steps: 60 }),
                rollouts: 8,
                run: None,
            },
        }
    }

    #[tokio::test]
    async fn the_newest_points_are_listed_first_and_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        let newest = async |which, limit| store.nash_points(which, limit).await.unwrap();
        assert!(newest(Points::All, 10).await.is_empty());
        let points: Vec<NashPoint> = (0..RETAINED + 2).map(|n| point(n, false)).collect();
        let first = point(-1, true);
        store.insert_nash_point(&first).await.unwrap();
        for point in &points {
            store.insert_nash_point(point).await.unwrap();
        }
        assert_eq!(newest(Points::Regular, 10).await, [first], "it is retained");
        let newest = async |limit| newest(Points::All, limit).await;
        let all = newest(i64::MAX).await;
        let newest = newest(2).await;
        assert_eq!(newest[0], *points.last().unwrap());
        assert_eq!(newest[1].at_us, RETAINED);
        assert_eq!(all.len(), 1_001);
        assert_eq!(all[999].at_us, 2);
    }
}
