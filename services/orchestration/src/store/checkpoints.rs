//! The versions of the agents' weights that are retained.

use super::Places;
use crate::{
    OrchestrationError,
    stage::{Counts, LastFall, Stage},
};
use std::collections::BTreeSet;
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction},
    page::{Page, Size},
};
use uuid::Uuid;

/// A retained version of what answers for an agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VersionRow {
    pub(crate) version: i64,
    /// The name of the policy's blob; absent for a rule.
    pub(crate) blob: Option<String>,
    /// The rule; absent for a policy.
    pub(crate) rule: Option<String>,
    /// When the version was made.
    pub(crate) at_us: i64,
    /// Whether it is ACTIVE or was.
    pub(crate) served: bool,
    /// What learned the policy; empty for a rule.
    pub(crate) algorithm: String,
    /// The run that trained the policy; absent where that was not recorded yet.
    pub(crate) run_id: Option<Uuid>,
    /// The mean return of the evaluation at the end of that run.
    pub(crate) mean_return: Option<f64>,
    /// The version that the run made, where this one made its policy live again.
    pub(crate) restored_from: Option<i64>,
    /// Whether it became ACTIVE by the ladder.
    pub(crate) climbed: bool,
    /// Whether it was taken down from ACTIVE, or the same was later.
    pub(crate) fell: bool,
}

/// A retained version, and those that stood on the ladder when it was read.
#[derive(Debug)]
pub(crate) struct ListedVersion {
    pub(crate) row: VersionRow,
    pub(crate) live: i64,
    pub(crate) shadow: Option<i64>,
    pub(crate) canary: Option<i64>,
    /// What it did on the ladder, as far as that is stored.
    pub(crate) counts: Counts,
    /// Why it fell by itself, if it did since it last climbed.
    pub(crate) fell: Option<String>,
    /// The last time that it did, whether it climbed since or not.
    pub(crate) last_fall: Option<LastFall>,
}

impl ListedVersion {
    pub(crate) fn places(&self) -> Places {
        Places {
            live: self.live,
            shadow: self.shadow,
            canary: self.canary,
        }
    }
}

const INSERT: &str = "INSERT INTO checkpoints (agent_id, version, blob, rule, at_us, algorithm, run_id, mean_return, \
                      restored_from, served, climbed, taken_down) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const VERSION: &str = "SELECT version, blob, rule, at_us, algorithm, run_id, mean_return, restored_from, served, \
                       climbed, taken_down FROM checkpoints WHERE agent_id = $1 AND version = $2";
/// The newest first.
const BEFORE: &str = "SELECT version, blob, rule, at_us, algorithm, run_id, mean_return, restored_from, served, \
                      climbed, taken_down FROM checkpoints WHERE agent_id = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
const LIST: &str = "SELECT checkpoints.version AS version, checkpoints.blob AS blob, \
                    checkpoints.rule AS rule, checkpoints.at_us AS at_us, \
                    checkpoints.algorithm AS algorithm, checkpoints.run_id AS run_id, \
                    checkpoints.mean_return AS mean_return, checkpoints.restored_from AS restored_from, \
                    checkpoints.served AS served, checkpoints.climbed AS climbed, checkpoints.taken_down AS taken_down, agents.shadow AS shadow, agents.canary AS canary, \
                    COALESCE(trials.shadow_steps, 0) AS shadow_steps, COALESCE(trials.agreed, 0) AS agreed, \
                    COALESCE(trials.canary_steps, 0) AS canary_steps, COALESCE(trials.blocked, 0) AS blocked, \
                    COALESCE(trials.active_steps, 0) AS active_steps, \
                    COALESCE(trials.active_blocked, 0) AS active_blocked, trials.fell AS fell, \
                    trials.last_fall AS last_fall, trials.last_fall_us AS last_fall_us, \
                    trials.last_fall_from AS last_fall_from, \
                    agents.weights_version AS live FROM checkpoints JOIN agents ON agents.id = checkpoints.agent_id \
                    LEFT JOIN trials ON trials.agent_id = checkpoints.agent_id \
                    AND trials.version = checkpoints.version \
                    WHERE checkpoints.agent_id = $1 AND checkpoints.version < $2 \
                    ORDER BY checkpoints.version DESC LIMIT $3";
/// The last one that became ACTIVE.
const NEWEST_SERVED: &str = "SELECT version, blob, rule, at_us, algorithm, run_id, mean_return, restored_from, served, \
                             climbed, taken_down FROM checkpoints WHERE agent_id = $1 AND served \
                             ORDER BY version DESC LIMIT 1";
/// A version that fell, and the earlier ones by which the same answered.
const TAKE_DOWN: &str = "UPDATE checkpoints SET taken_down = TRUE WHERE agent_id = $1 AND version <= $2 AND served \
                         AND EXISTS (SELECT 1 FROM checkpoints AS taken WHERE taken.agent_id = $1 \
                         AND taken.version = $2 AND (taken.blob = checkpoints.blob OR taken.rule = checkpoints.rule))";
const NEWEST: &str =
    "SELECT COALESCE(MAX(version), 0) AS newest FROM checkpoints WHERE agent_id = $1";
/// What stands on the ladder stays, and what one may roll back to, whether the agent is bound or not. Weights do not change while a governed change holds their agent, and what it may go back to stays.
/// Versions that made an earlier policy live again, and rules, take no place of those that were trained.
const DROP_OLD: &str = "DELETE FROM checkpoints WHERE \
                        checkpoints.version <= (SELECT MAX(newest.version) FROM checkpoints AS newest \
                        WHERE newest.agent_id = checkpoints.agent_id) - $1 \
                        AND NOT EXISTS (SELECT 1 FROM agents WHERE agents.id = checkpoints.agent_id AND ( \
                        checkpoints.version IN (agents.weights_version, agents.shadow, agents.canary) OR \
                        checkpoints.version = (SELECT MAX(before.version) FROM checkpoints AS before \
                        WHERE before.agent_id = checkpoints.agent_id AND before.served AND NOT before.taken_down \
                        AND (COALESCE(before.blob, '') <> COALESCE(agents.weights, '') \
                        OR COALESCE(before.rule, '') <> COALESCE(agents.rule, '')) \
                        AND before.version < agents.weights_version) OR \
                        checkpoints.version = (SELECT MAX(climbed.version) FROM checkpoints AS climbed \
                        WHERE climbed.agent_id = checkpoints.agent_id AND climbed.served AND NOT climbed.taken_down \
                        AND (climbed.climbed OR climbed.rule IS NOT NULL) \
                        AND (COALESCE(climbed.blob, '') <> COALESCE(agents.weights, '') \
                        OR COALESCE(climbed.rule, '') <> COALESCE(agents.rule, '')) \
                        AND climbed.version < agents.weights_version))) \
                        AND NOT EXISTS (SELECT 1 FROM agent_holds WHERE agent_holds.agent_id = checkpoints.agent_id) \
                        AND (checkpoints.restored_from IS NOT NULL OR checkpoints.rule IS NOT NULL OR \
                        (SELECT COUNT(*) FROM checkpoints AS newer WHERE newer.agent_id = checkpoints.agent_id \
                        AND newer.version > checkpoints.version AND newer.restored_from IS NULL \
                        AND newer.rule IS NULL) >= $1)";
const REFERENCED: &str = "SELECT blob FROM checkpoints WHERE blob IS NOT NULL UNION SELECT weights AS blob FROM agents WHERE weights IS NOT NULL \
                          UNION SELECT blob FROM run_policies \
                          UNION SELECT checkpoint_blob AS blob FROM run_plans WHERE checkpoint_blob IS NOT NULL";

impl VersionRow {
    /// A rule that no version was before. Its number and time are set when it is made live.
    pub(crate) fn of_rule(name: &str) -> Self {
        Self {
            version: 0,
            blob: None,
            rule: Some(name.to_owned()),
            at_us: 0,
            algorithm: String::new(),
            run_id: None,
            mean_return: None,
            restored_from: None,
            served: true,
            climbed: false,
            fell: false,
        }
    }
}

impl FromRow for VersionRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let version: i64 = row.get("version")?;
        let row = row.named("checkpoints", version);
        Ok(Self {
            version,
            blob: row.get("blob")?,
            rule: row.get("rule")?,
            at_us: row.get("at_us")?,
            algorithm: row.get("algorithm")?,
            run_id: row.get("run_id")?,
            mean_return: row.get("mean_return")?,
            restored_from: row.get("restored_from")?,
            served: row.get("served")?,
            climbed: row.get("climbed")?,
            fell: row.get("taken_down")?,
        })
    }
}

impl FromRow for ListedVersion {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            row: VersionRow::from_row(row)?,
            live: row.get("live")?,
            shadow: row.get("shadow")?,
            canary: row.get("canary")?,
            counts: Counts {
                shadow_steps: count(row, "shadow_steps")?,
                agreed: count(row, "agreed")?,
                canary_steps: count(row, "canary_steps")?,
                blocked: count(row, "blocked")?,
                active_steps: count(row, "active_steps")?,
                active_blocked: count(row, "active_blocked")?,
            },
            fell: row.get("fell")?,
            last_fall: last_fall(row)?,
        })
    }
}

fn last_fall(row: &Row) -> Result<Option<LastFall>, DbError> {
    let why: Option<String> = row.get("last_fall")?;
    let Some(why) = why else {
        return Ok(None);
    };
    let version: i64 = row.get("version")?;
    let from: Option<String> = row.get("last_fall_from")?;
    let row = row.named("trials", version);
    let from = from.map(|_| row.word("last_fall_from", Stage::named));
    Ok(Some(LastFall {
        why,
        at_us: row.get("last_fall_us")?,
        from: from.transpose()?,
    }))
}

fn count(row: &Row, column: &'static str) -> Result<u64, DbError> {
    let count: i64 = row.get(column)?;
    Ok(u64::try_from(count).unwrap_or(0))
}

struct Blob(String);

impl FromRow for Blob {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        row.get("blob").map(Self)
    }
}

/// Records the live weights of an agent.
pub(crate) async fn insert_version(
    tx: &mut Transaction,
    agent: &str,
    row: &VersionRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(agent)
        .bind(row.version)
        .bind(&row.blob)
        .bind(&row.rule)
        .bind(row.at_us)
        .bind(&row.algorithm)
        .bind(row.run_id)
        .bind(row.mean_return)
        .bind(row.restored_from)
        .bind(row.served)
        .bind(row.climbed)
        .bind(row.fell);
    Ok(tx.execute(insert).await?.one()?)
}

pub(crate) async fn version(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
) -> Result<Option<VersionRow>, OrchestrationError> {
    let query = Query::new(VERSION).bind(agent).bind(version);
    Ok(tx.optional(query).await?)
}

/// The largest number that a retained version of an agent has.
pub(crate) async fn newest_version(
    tx: &mut Transaction,
    agent: &str,
) -> Result<i64, OrchestrationError> {
    Ok(tx.value(Query::new(NEWEST).bind(agent), "newest").await?)
}

/// Records that a version was taken down from ACTIVE, and with it what the same answered by before.
pub(crate) async fn take_down(
    tx: &mut Transaction,
    agent: &str,
    version: i64,
) -> Result<(), OrchestrationError> {
    let take = Query::new(TAKE_DOWN).bind(agent).bind(version);
    tx.execute(take).await?.any();
    Ok(())
}

/// The newest retained versions before one.
pub(crate) async fn versions_before(
    tx: &mut Transaction,
    agent: &str,
    before: i64,
    limit: i64,
) -> Result<Vec<VersionRow>, OrchestrationError> {
    let query = Query::new(BEFORE).bind(agent).bind(before).bind(limit);
    Ok(tx.all(query).await?)
}

/// Forgets all but the newest versions of each agent that no change holds: the last `retained` ones, and
/// the last `retained` ones that were trained.
pub(crate) async fn drop_old_checkpoints(
    tx: &mut Transaction,
    retained: u32,
) -> Result<(), OrchestrationError> {
    let drop = Query::new(DROP_OLD).bind(retained);
    tx.execute(drop).await?.any();
    super::ladder::drop_old(tx).await
}

/// The names of all blobs that are retained.
pub(crate) async fn referenced_blobs(
    tx: &mut Transaction,
) -> Result<BTreeSet<String>, OrchestrationError> {
    let blobs: Vec<Blob> = tx.all(Query::new(REFERENCED)).await?;
    Ok(blobs.into_iter().map(|Blob(name)| name).collect())
}

impl super::Store {
    /// The version of an agent that became ACTIVE last.
    pub(crate) async fn newest_served(
        &self,
        agent: &str,
    ) -> Result<Option<VersionRow>, OrchestrationError> {
        let query = Query::new(NEWEST_SERVED).bind(agent);
        Ok(self.db.read("checkpoints.served").optional(query).await?)
    }

    /// The versions of an agent's weights that are retained, before one, the newest first.
    pub(crate) async fn versions(
        &self,
        agent: &str,
        before: i64,
        size: Size,
    ) -> Result<Page<ListedVersion>, OrchestrationError> {
        let query = Query::new(LIST).bind(agent).bind(before).bind(size.limit());
        Ok(self.db.read("checkpoints.list").page(query, size).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATIONS;
    use tars_runtime::db::{Db, Isolation};

    #[tokio::test]
    async fn what_climbed_before_that_was_recorded_stays_a_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let before = Db::open(&place, &MIGRATIONS[..30]).await.unwrap();
        let mut tx = before
            .write("test.old", Isolation::Exclusive)
            .await
            .unwrap();
        let version = |number, blob: &str, restored_from, served| VersionRow {
            version: number,
            blob: Some(blob.to_owned()),
            rule: None,
            served,
            climbed: false,
            restored_from,
            ..VersionRow::of_rule("")
        };
        for row in [
            version(1, "tried", None, false),
            version(2, "tried", Some(1), true),
            // Made ACTIVE before the agent was bound.
            version(3, "unproven", None, true),
            version(4, "unproven", Some(3), true),
            version(5, "fell", None, false),
            version(6, "fell", Some(5), true),
            version(7, "short", None, false),
            version(8, "short", Some(7), true),
        ] {
            insert_version(&mut tx, "policy", &row).await.unwrap();
        }
        let trial = "INSERT INTO trials (agent_id, version, shadow_steps, agreed, canary_steps, blocked, fell) \
                     VALUES ('policy', $1, 0, 0, $2, 0, $3)";
        for (number, steps, fell) in [
            (1_i64, 200_i64, None),
            (5, 300, None),
            (6, 0, Some("it was blocked")),
            (7, 199, None),
        ] {
            let insert = Query::new(trial).bind(number).bind(steps).bind(fell);
            tx.execute(insert).await.unwrap().one().unwrap();
        }
        tx.commit().await.unwrap();
        before.close().await;
        let db = Db::open(&place, MIGRATIONS).await.unwrap();
        let mut tx = db.write("test.read", Isolation::Exclusive).await.unwrap();
        let rows = versions_before(&mut tx, "policy", 100, 100).await.unwrap();
        let climbed: Vec<i64> = rows
            .iter()
            .filter(|row| row.climbed)
            .map(|row| row.version)
            .collect();
        assert_eq!(climbed, [2]);
        // Of a fall that is older than the record of the last one, the reason is known.
        let fall = "SELECT last_fall FROM trials WHERE agent_id = 'policy' AND version = 6";
        let why: Option<String> = tx
            .optional_value(Query::new(fall), "last_fall")
            .await
            .unwrap();
        assert_eq!(why.as_deref(), Some("it was blocked"));
    }
}
