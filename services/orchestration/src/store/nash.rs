//! How far the agents were from an equilibrium, each time that it was measured.
//!
//! Only points of one game, that of the same episode with the same number of rollouts, differ by what the agents do.
//! They are marked as regular. The newest of either kind are retained of each owner, so that the history is of the
//! service's own measurements, whatever callers measure.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, json};
use uuid::Uuid;

/// How many are retained of either kind, of one owner.
const RETAINED: i64 = 1_000;

const POINTS: &str = "SELECT number, at_us, environment, value, low, high, regular, body FROM nash_points \
                      ORDER BY number DESC LIMIT $1";
const REGULAR: &str = "SELECT number, at_us, environment, value, low, high, regular, body FROM nash_points \
                       WHERE regular ORDER BY number DESC LIMIT $1";
const INSERT: &str = "INSERT INTO nash_points (number, at_us, environment, value, low, high, regular, body, owner) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8 FROM nash_points";
const DROP_OLD: &str = "DELETE FROM nash_points WHERE owner = $1 AND regular = $2 AND number <= (SELECT number \
                        FROM nash_points WHERE owner = $1 AND regular = $2 ORDER BY number DESC LIMIT 1 OFFSET $3)";

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
    /// As in [`GameRecord`](super::GameRecord).
    #[serde(default)]
    pub(crate) calibration: Option<String>,
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

    /// Adds a point that an owner has measured, and forgets the oldest of its kind that the owner has.
    pub(crate) async fn insert_nash_point(
        &self,
        owner: &str,
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
            .bind(json(&point.origin)?)
            .bind(owner);
        tx.execute(insert).await?.one()?;
        let old = Query::new(DROP_OLD)
            .bind(owner)
            .bind(point.regular)
            .bind(RETAINED);
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
                calibration: Some("shipped".into()),
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
        let (own, of_bob) = (point(-1, true), point(-2, true));
        for (owner, first) in [("service", &own), ("bob", &of_bob)] {
            store.insert_nash_point(owner, first).await.unwrap();
        }
        for point in &points {
            store.insert_nash_point("bob", point).await.unwrap();
        }
        assert_eq!(newest(Points::Regular, 10).await, [of_bob, own], "retained");
        for at_us in 0..RETAINED {
            let again = point(at_us, true);
            store.insert_nash_point("bob", &again).await.unwrap();
        }
        let regular = newest(Points::Regular, i64::MAX).await;
        assert_eq!(
            (regular.len(), regular[1_000].at_us),
            (1_001, -1),
            "the service's"
        );
        let newest = async |limit| {
            let all = newest(Points::All, i64::MAX).await.into_iter();
            let of_others = all.filter(|point| !point.regular);
            of_others.take(limit).collect::<Vec<_>>()
        };
        let all = newest(usize::MAX).await;
        let newest = newest(2).await;
        assert_eq!(newest[0], *points.last().unwrap());
        assert_eq!(newest[1].at_us, RETAINED);
        assert_eq!(all.len(), 1_000);
        assert_eq!(all[999].at_us, 2);
    }
}
