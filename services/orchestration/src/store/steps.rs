//! The steps of sessions.

use super::Store;
use crate::{OrchestrationError, agents, conflicts::Conflict, rewards::GlobalReward};
use serde::{Deserialize, Serialize};
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction, json},
    page::{Page, Size},
};
use tars_worlds::Action;
use uuid::Uuid;

/// How many are retained: of one session, and of all those of an owner.
const OF_SESSION: i64 = 1_000;
const OF_OWNER: i64 = 5_000;

const INSERT: &str = "INSERT INTO session_steps (number, session_id, owner, step, body) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4 FROM session_steps";
const DROP_OWN: &str = "DELETE FROM session_steps WHERE session_id = $1 AND step <= $2";
const DROP_OLD: &str = "DELETE FROM session_steps WHERE owner = $1 AND number <= (SELECT number \
                        FROM session_steps WHERE owner = $1 ORDER BY number DESC LIMIT 1 OFFSET $2)";
const BEFORE: &str = "SELECT number, session_id, step, body FROM session_steps \
                      WHERE session_id = $1 AND step < $2 ORDER BY step DESC LIMIT $3";
const AFTER: &str = "SELECT number, session_id, step, body FROM session_steps \
                     WHERE session_id = $1 AND step > $2 ORDER BY step LIMIT $3";

/// A step of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    pub(crate) session: Uuid,
    /// The number of the step in its session, from 1.
    pub(crate) step: i64,
    pub(crate) step_id: String,
    pub(crate) at_us: i64,
    pub(crate) episode: i64,
    pub(crate) episode_step: i64,
    /// What each agent of the world did and got, in the world's order.
    pub(crate) agents: Vec<AgentRecord>,
    pub(crate) conflicts: Vec<Conflict>,
    /// How they were resolved; empty without a conflict.
    pub(crate) method: String,
    pub(crate) is_equilibrium: bool,
    pub(crate) reward: GlobalReward,
    /// The game of the state before the step, if it was measured.
    pub(crate) game: Option<GameRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgentRecord {
    pub(crate) agent: String,
    /// What its policy, or its rule, chose.
    pub(crate) raw: ActionRecord,
    /// What the world took.
    pub(crate) taken: ActionRecord,
    /// What the first was chosen by.
    pub(crate) values: Vec<f32>,
    pub(crate) weights_version: i64,
    /// The rule that chose, where no policy did.
    pub(crate) rule: Option<String>,
    pub(crate) reward: f32,
    pub(crate) terminated: bool,
    pub(crate) truncated: bool,
    /// What it observes after the step.
    pub(crate) observation: Vec<f32>,
}

/// An action with the name of a discrete one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ActionRecord {
    pub(crate) name: String,
    /// The position of a discrete action.
    pub(crate) at: Option<usize>,
    /// The components of a continuous one.
    pub(crate) numbers: Vec<f32>,
    /// Why the action shield put it in the place of another one.
    #[serde(default)]
    pub(crate) shielded: Option<String>,
}

impl ActionRecord {
    pub(crate) fn new(acted: &agents::Action) -> Self {
        let (at, numbers) = match &acted.action {
            Action::Discrete(at) => (Some(*at), Vec::new()),
            Action::Continuous(numbers) => (None, numbers.clone()),
        };
        Self {
            name: acted.name.clone(),
            at,
            numbers,
            shielded: acted
                .shielded
                .as_ref()
                .map(|blocked| blocked.why.to_string()),
        }
    }
}

/// The empirical game of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GameRecord {
    pub(crate) players: Vec<PlayerRecord>,
    pub(crate) joint_actions: usize,
    pub(crate) rollouts: usize,
    pub(crate) rollout_steps: usize,
    pub(crate) repeated_steps: usize,
    /// NashConv of the live policies, and its 95 % interval.
    pub(crate) distance: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// How long the measurement took.
    pub(crate) micros: u64,
    /// The name of the calibration of the world, if it has one; absent where it was not recorded yet.
    #[serde(default)]
    pub(crate) calibration: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlayerRecord {
    pub(crate) agent: String,
    pub(crate) actions: Vec<String>,
    /// The positions of its policy's action, and of holding.
    pub(crate) own: usize,
    pub(crate) hold: usize,
    /// Its payoff when all act by their live policies, and what it would gain by its best action then.
    pub(crate) payoff: f64,
    pub(crate) regret: f64,
    pub(crate) weights_version: i64,
    pub(crate) rule: Option<String>,
}

impl FromRow for StepRecord {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let number: i64 = row.get("number")?;
        row.named("session_steps", number).json("body")
    }
}

impl Store {
    /// The steps of a session before one, newest first.
    pub(crate) async fn steps_before(
        &self,
        session: Uuid,
        step: i64,
        size: Size,
    ) -> Result<Page<StepRecord>, OrchestrationError> {
        let query = Query::new(BEFORE)
            .bind(session)
            .bind(step)
            .bind(size.limit());
        Ok(self.db.read("session_steps.list").page(query, size).await?)
    }

    /// The steps of a session after one, in order.
    pub(crate) async fn steps_after(
        &self,
        session: Uuid,
        step: i64,
        limit: i64,
    ) -> Result<Vec<StepRecord>, OrchestrationError> {
        let query = Query::new(AFTER).bind(session).bind(step).bind(limit);
        Ok(self.db.read("session_steps.watch").all(query).await?)
    }
}

/// Adds a step of an owner's session, and forgets the oldest ones of that owner. The transaction must be exclusive:
/// the number is the next one.
pub(crate) async fn insert_step(
    tx: &mut Transaction,
    owner: &str,
    record: &StepRecord,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(record.session)
        .bind(owner)
        .bind(record.step)
        .bind(json(record)?);
    tx.execute(insert).await?.one()?;
    let own = Query::new(DROP_OWN)
        .bind(record.session)
        .bind(record.step - OF_SESSION);
    tx.execute(own).await?.any();
    let old = Query::new(DROP_OLD).bind(owner).bind(OF_OWNER);
    tx.execute(old).await?.any();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATIONS;
    use tars_runtime::{db::Db, page};

    fn record(session: Uuid, step: i64) -> StepRecord {
        StepRecord {
            session,
            step,
            step_id: step.to_string(),
            at_us: 0,
            episode: 1,
            episode_step: step,
            agents: Vec::new(),
            conflicts: Vec::new(),
            method: String::new(),
            is_equilibrium: true,
            reward: GlobalReward::default(),
            game: None,
        }
    }

    async fn insert(store: &Store, owner: &str, records: impl Iterator<Item = StepRecord>) {
        let mut tx = store.begin("test").await.unwrap();
        for record in records {
            insert_step(&mut tx, owner, &record).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn steps(store: &Store, session: Uuid) -> Vec<i64> {
        let all = store.steps_after(session, 0, i64::MAX).await.unwrap();
        all.iter().map(|record| record.step).collect()
    }

    #[tokio::test]
    async fn the_oldest_steps_are_forgotten_of_one_session_and_of_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        let (of_bob, one, other) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        insert(&store, "bob", (1..=2).map(|step| record(of_bob, step))).await;
        insert(&store, "ada", (1..=2).map(|step| record(other, step))).await;
        let many = (1..=OF_SESSION + 3).map(|step| record(one, step));
        insert(&store, "ada", many).await;
        let kept = steps(&store, one).await;
        assert_eq!((kept.len(), kept[0]), (1_000, 4));
        assert_eq!(steps(&store, other).await, [1, 2]);
        let before = store.steps_before(one, OF_SESSION, page::size(2));
        let before = before.await.unwrap().rows;
        assert_eq!(
            (before[0].step, before[1].step),
            (OF_SESSION - 1, OF_SESSION - 2)
        );

        for session in (0..OF_OWNER / OF_SESSION).map(|_| Uuid::now_v7()) {
            let many = (1..=OF_SESSION).map(|step| record(session, step));
            insert(&store, "ada", many).await;
        }
        assert_eq!(steps(&store, other).await, [0; 0]);
        assert_eq!(steps(&store, one).await, [0; 0]);
        let last = Uuid::now_v7();
        insert(&store, "ada", (1..=2).map(|step| record(last, step))).await;
        assert_eq!(steps(&store, last).await, [1, 2]);
        assert_eq!(steps(&store, of_bob).await, [1, 2], "they are another's");
    }
}
