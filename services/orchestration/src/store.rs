//! Orchestration's SQL.

mod calibrations;
mod checkpoints;
mod conflicts;
mod decisions;
mod holds;
mod ladder;
mod members;
mod nash;
mod operations;
mod plans;
mod reports;
mod runs;
mod sessions;
mod steps;
mod tokens;

pub(crate) use calibrations::{CalibrationRow, latest_calibration};
pub(crate) use checkpoints::{
    ListedVersion, VersionRow, drop_old_checkpoints, insert_version, newest_version,
    referenced_blobs, take_down, version, versions_before,
};
pub(crate) use conflicts::{ConflictBody, ConflictRow, Met, insert_conflict};
pub(crate) use holds::{ApprovalRow, HoldRow, approval, delete_hold, hold, put_approval, put_hold};
pub(crate) use ladder::{
    add_counts, begin_trial, comparison, put_comparison, put_fall, trial, trial_number,
};
pub(crate) use members::{MemberRow, complete_members, insert_members};
pub(crate) use nash::{Episode, NashOrigin, NashPoint, Points};
pub(crate) use operations::{Operation, insert_operation, operation};
pub(crate) use plans::{
    Plan, PlanRow, PlannedLearner, delete_plan, insert_plan, plan, put_checkpoint,
};
pub(crate) use reports::{AgentReport, Group, Report, drop_old_reports, insert_reports};
pub(crate) use runs::{
    Others, RunRow, RunState, Unfinished, complete_run, count_steps, end_run, insert_run,
    leave_run, pause_run, paused, promised_steps, proof_of_run, run_in, set_checkpoint_step,
    set_state, unfinished,
};
pub(crate) use sessions::{
    SessionBody, SessionRow, close_session, delete_old_sessions, insert_session, open_sessions,
    session, step_session,
};
pub(crate) use steps::{
    ActionRecord, AgentRecord, GameRecord, PlayerRecord, StepRecord, insert_step,
};
pub(crate) use tokens::{WorkToken, admit};

use crate::{OrchestrationError, leases::Fences};
use tars_learn::hyper::Values;
use tars_runtime::{
    audit, blobs, changes,
    db::{
        Db, DbError, Fetch, FromRow, Isolation, Migration, Query, Row, Swap, Transaction, Write,
        json,
    },
    lease::{self, Fence},
    usage,
};

pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration::new(1, "initial", include_str!("../migrations/0001_initial.sql")),
    Migration::new(2, "audit outbox", audit::MIGRATION),
    Migration::new(
        3,
        "conflicts",
        include_str!("../migrations/0003_conflicts.sql"),
    ),
    Migration::new(
        4,
        "governance",
        include_str!("../migrations/0004_governance.sql"),
    ),
    Migration::new(
        5,
        "awaits person",
        include_str!("../migrations/0005_awaits_person.sql"),
    ),
    Migration::new(
        6,
        "checkpoints",
        include_str!("../migrations/0006_checkpoints.sql"),
    ),
    Migration::new(7, "blobs", blobs::MIGRATION),
    Migration::new(8, "leases", lease::MIGRATION),
    Migration::new(9, "change numbers", changes::MIGRATION),
    Migration::new(
        10,
        "work tokens",
        include_str!("../migrations/0010_work_tokens.sql"),
    ),
    Migration::new(11, "replicas", lease::PRESENCE_MIGRATION),
    Migration::new(
        12,
        "run reports",
        include_str!("../migrations/0012_run_reports.sql"),
    ),
    Migration::new(
        13,
        "unfinished runs",
        include_str!("../migrations/0013_unfinished_runs.sql"),
    ),
    Migration::new(
        14,
        "agent kinds",
        include_str!("../migrations/0014_agent_kinds.sql"),
    ),
    Migration::new(
        15,
        "run plans",
        include_str!("../migrations/0015_run_plans.sql"),
    ),
    Migration::new(
        16,
        "weights origin",
        include_str!("../migrations/0016_weights_origin.sql"),
    ),
    Migration::new(
        17,
        "calibrations",
        include_str!("../migrations/0017_calibrations.sql"),
    ),
    Migration::new(
        18,
        "joint training",
        include_str!("../migrations/0018_joint_training.sql"),
    ),
    Migration::new(
        19,
        "sessions",
        include_str!("../migrations/0019_sessions.sql"),
    ),
    Migration::new(20, "rules", include_str!("../migrations/0020_rules.sql")),
    Migration::new(22, "ladder", include_str!("../migrations/0022_ladder.sql")),
    Migration::new(24, "trials", include_str!("../migrations/0024_trials.sql")),
    Migration::new(
        25,
        "regular points",
        include_str!("../migrations/0025_regular_points.sql"),
    ),
    Migration::new(
        27,
        "watched",
        include_str!("../migrations/0027_watched.sql"),
    ),
    Migration::new(
        28,
        "run reasons",
        include_str!("../migrations/0028_run_reasons.sql"),
    ),
    Migration::new(
        29,
        "ways back",
        include_str!("../migrations/0029_ways_back.sql"),
    ),
    Migration::new(30, "owners", include_str!("../migrations/0030_owners.sql")),
    Migration::new(
        31,
        "decisions",
        include_str!("../migrations/0031_decisions.sql"),
    ),
    Migration::new(32, "usage outbox", usage::MIGRATION),
    Migration::new(
        33,
        "owners of runs",
        include_str!("../migrations/0033_owners_of_runs.sql"),
    ),
    Migration::new(
        34,
        "ways back before",
        include_str!("../migrations/0034_ways_back_before.sql"),
    ),
    Migration::new(35, "usage set aside", usage::SET_ASIDE),
    Migration::new(
        36,
        "checkpoint steps",
        include_str!("../migrations/0036_checkpoint_steps.sql"),
    ),
    Migration::new(
        37,
        "owners of conflicts",
        include_str!("../migrations/0037_owners_of_conflicts.sql"),
    ),
    Migration::new(
        38,
        "last falls",
        include_str!("../migrations/0038_last_falls.sql"),
    ),
];

/// Which versions of an agent stand where on the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) live: i64,
    pub(crate) shadow: Option<i64>,
    pub(crate) canary: Option<i64>,
}

#[derive(Debug, Clone)]
pub(crate) struct AgentRow {
    pub(crate) id: String,
    pub(crate) algorithm: String,
    pub(crate) environment: String,
    pub(crate) hyperparameters: Values,
    pub(crate) version: i64,
    /// The blob of the policy that answers; absent while untrained, and while a rule answers.
    pub(crate) weights: Option<String>,
    /// The rule that answers instead.
    pub(crate) rule: Option<String>,
    pub(crate) weights_version: i64,
    /// The version in SHADOW, and the one in CANARY.
    pub(crate) shadow: Option<i64>,
    pub(crate) canary: Option<i64>,
    pub(crate) last_return: Option<f64>,
    pub(crate) total_steps: i64,
    pub(crate) total_episodes: i64,
    pub(crate) updated_us: i64,
}

const AGENT: &str = "SELECT id, algorithm, environment, hyperparameters, version, weights, rule, weights_version, \
                     shadow, canary, last_return, total_steps, total_episodes, updated_us FROM agents WHERE id = $1";
const INSERT_AGENT: &str = "INSERT INTO agents (id, algorithm, environment, hyperparameters, version, weights, \
                            rule, weights_version, last_return, total_steps, total_episodes, updated_us) \
                            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const UPDATE_HYPERPARAMETERS: &str = "UPDATE agents SET hyperparameters = $1, version = $2, updated_us = $3 \
                                      WHERE id = $4 AND version = $5";
const UPDATE_WEIGHTS: &str = "UPDATE agents SET weights = $1, rule = $2, weights_version = $3, shadow = $4, \
                              canary = $5, last_return = $6, total_steps = $7, total_episodes = $8, \
                              updated_us = $9 WHERE id = $10";
impl AgentRow {
    pub(crate) fn places(&self) -> Places {
        Places {
            live: self.weights_version,
            shadow: self.shadow,
            canary: self.canary,
        }
    }
}

impl FromRow for AgentRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let id: String = row.get("id")?;
        let row = row.named("agents", &id);
        Ok(Self {
            id,
            algorithm: row.get("algorithm")?,
            environment: row.get("environment")?,
            hyperparameters: row.json("hyperparameters")?,
            version: row.get("version")?,
            weights: row.get("weights")?,
            rule: row.get("rule")?,
            weights_version: row.get("weights_version")?,
            shadow: row.get("shadow")?,
            canary: row.get("canary")?,
            last_return: row.get("last_return")?,
            total_steps: row.get("total_steps")?,
            total_episodes: row.get("total_episodes")?,
            updated_us: row.get("updated_us")?,
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    db: Db,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn begin(&self, name: &'static str) -> Result<Write, OrchestrationError> {
        Ok(self.db.write(name, Isolation::Exclusive).await?)
    }

    /// Begins a transaction of whoever owns the work.
    pub(crate) async fn begin_owned(
        &self,
        name: &'static str,
        fence: &Fence,
    ) -> Result<Write, OrchestrationError> {
        Ok(fence.begin(&self.db, name, Isolation::Exclusive).await?)
    }

    /// Begins a transaction of whoever owns a training run.
    pub(crate) async fn begin_for_run(
        &self,
        name: &'static str,
        fences: &Fences,
    ) -> Result<Write, OrchestrationError> {
        let mut tx = self.begin(name).await?;
        fences.enforce(&mut tx).await?;
        Ok(tx)
    }

    /// Begins a transaction that stores reports of owned work. They are decided by no other row, so that
    /// it waits for nobody.
    pub(crate) async fn begin_reports(&self, fences: &Fences) -> Result<Write, OrchestrationError> {
        let begun = self.db.write("training_runs.report", Isolation::Committed);
        let mut tx = begun.await?;
        fences.enforce(&mut tx).await?;
        Ok(tx)
    }

    pub(crate) async fn agent(&self, id: &str) -> Result<Option<AgentRow>, OrchestrationError> {
        agent(&mut self.db.read("agents.get"), id).await
    }
}

pub(crate) async fn agent(
    db: &mut impl Fetch,
    id: &str,
) -> Result<Option<AgentRow>, OrchestrationError> {
    Ok(db.optional(Query::new(AGENT).bind(id)).await?)
}

pub(crate) async fn insert_agent(
    tx: &mut Transaction,
    row: &AgentRow,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT_AGENT)
        .bind(&row.id)
        .bind(&row.algorithm)
        .bind(&row.environment)
        .bind(json(&row.hyperparameters)?)
        .bind(row.version)
        .bind(&row.weights)
        .bind(&row.rule)
        .bind(row.weights_version)
        .bind(row.last_return)
        .bind(row.total_steps)
        .bind(row.total_episodes)
        .bind(row.updated_us);
    Ok(tx.execute(insert).await?.one()?)
}

/// Writes hyperparameters if the stored version is `row.version - 1`.
pub(crate) async fn update_hyperparameters(
    tx: &mut Transaction,
    row: &AgentRow,
) -> Result<Swap, OrchestrationError> {
    let update = Query::new(UPDATE_HYPERPARAMETERS)
        .bind(json(&row.hyperparameters)?)
        .bind(row.version)
        .bind(row.updated_us)
        .bind(&row.id)
        .bind(row.version - 1);
    Ok(tx.execute(update).await?.swap())
}

/// Writes what answers, and what stands on the ladder.
pub(crate) async fn update_weights(
    tx: &mut Transaction,
    row: &AgentRow,
) -> Result<(), OrchestrationError> {
    let update = Query::new(UPDATE_WEIGHTS)
        .bind(&row.weights)
        .bind(&row.rule)
        .bind(row.weights_version)
        .bind(row.shadow)
        .bind(row.canary)
        .bind(row.last_return)
        .bind(row.total_steps)
        .bind(row.total_episodes)
        .bind(row.updated_us)
        .bind(&row.id);
    Ok(tx.execute(update).await?.one()?)
}
