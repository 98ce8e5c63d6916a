//! The reports of training runs.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use tars_learn::{
    Update,
    training::{AgentProgress, Progress},
};
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction, json};
use uuid::Uuid;

/// The same group may be written twice, when the answer to the first time was lost.
const INSERT: &str = "INSERT INTO run_reports (run_id, last, reports) VALUES ($1, $2, $3) \
                      ON CONFLICT (run_id, last) DO NOTHING";
const RECORD: &str = "UPDATE training_runs SET last_report = $1, steps_done = $2, episodes_done = $3, rate = $4 \
                      WHERE id = $5";
const GROUPS: &str = "SELECT run_id, last, reports FROM run_reports WHERE run_id = $1 AND last > $2 ORDER BY last LIMIT $3";
const NEWEST_GROUPS: &str = "SELECT run_id, last, reports FROM run_reports WHERE run_id = $1 AND last < $2 ORDER BY last DESC LIMIT $3";
/// Runs are numbered by time.
const DROP_OLD: &str = "DELETE FROM run_reports WHERE run_id < \
                        (SELECT id FROM training_runs ORDER BY id DESC LIMIT 1 OFFSET $1) \
                        AND EXISTS (SELECT 1 FROM training_runs r WHERE r.id = run_reports.run_id \
                        AND r.ended_us IS NOT NULL)";

/// A report of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) step: u64,
    pub(crate) episode: u64,
    pub(crate) mean_return: Option<f64>,
    pub(crate) loss: Option<f64>,
    /// How much the agent explored.
    pub(crate) epsilon: f64,
    /// What the gradient steps measured.
    #[serde(default)]
    pub(crate) update: Update,
    /// The version of the agent's hyperparameters that the run followed.
    pub(crate) version: i64,
    /// On each agent of a run that trains several, the first one included; empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) agents: Vec<AgentReport>,
}

/// What a report says of one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgentReport {
    pub(crate) agent: String,
    pub(crate) mean_return: Option<f64>,
    pub(crate) loss: Option<f64>,
    pub(crate) epsilon: f64,
    pub(crate) update: Update,
    pub(crate) version: i64,
}

impl AgentReport {
    fn new(progress: &AgentProgress, agent: &str, version: i64) -> Self {
        Self {
            agent: agent.to_owned(),
            mean_return: progress.mean_return,
            loss: progress.update.loss.map(f64::from),
            epsilon: f64::from(progress.exploration),
            update: progress.update,
            version,
        }
    }
}

impl Report {
    /// The report on the agents that learn, whose names and versions are given in the same order.
    pub(crate) fn new(progress: &Progress, learners: &[(&str, i64)]) -> Self {
        let named = progress.agents.iter().zip(learners);
        let mut agents: Vec<AgentReport> = named
            .map(|(agent, (name, version))| AgentReport::new(agent, name, *version))
            .collect();
        let first = agents.first().cloned();
        if agents.len() == 1 {
            agents.clear();
        }
        Self {
            step: progress.step,
            episode: progress.episodes,
            mean_return: first.as_ref().and_then(|first| first.mean_return),
            loss: first.as_ref().and_then(|first| first.loss),
            epsilon: first.as_ref().map_or(0.0, |first| first.epsilon),
            update: first.as_ref().map(|first| first.update).unwrap_or_default(),
            version: first.as_ref().map_or(0, |first| first.version),
            agents,
        }
    }
}

/// Reports that were stored together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// The number of the last one.
    pub(crate) last: i64,
    pub(crate) reports: Vec<Report>,
}

impl Group {
    /// The reports with their numbers.
    pub(crate) fn numbered(self) -> impl Iterator<Item = (i64, Report)> {
        let before = self.last - i64::try_from(self.reports.len()).unwrap_or(i64::MAX);
        (before + 1..).zip(self.reports)
    }
}

impl FromRow for Group {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let (run, last): (Uuid, i64) = (row.get("run_id")?, row.get("last")?);
        let reports = row
            .named("run_reports", format!("{run}/{last}"))
            .json("reports")?;
        Ok(Self { last, reports })
    }
}

impl Store {
    /// The groups of a run's reports that end after a number.
    pub(crate) async fn reports(
        &self,
        run: Uuid,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Group>, OrchestrationError> {
        let query = Query::new(GROUPS).bind(run).bind(after).bind(limit);
        Ok(self.db.read("run_reports.list").all(query).await?)
    }

    /// The newest groups of a run's reports that end before a number, the newest first.
    pub(crate) async fn newest_reports(
        &self,
        run: Uuid,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Group>, OrchestrationError> {
        let query = Query::new(NEWEST_GROUPS).bind(run).bind(before).bind(limit);
        Ok(self.db.read("run_reports.newest").all(query).await?)
    }
}

/// Adds a group of reports, and records in their run how far it is, and how fast.
pub(crate) async fn insert_reports(
    tx: &mut Transaction,
    run: Uuid,
    group: &Group,
    rate: Option<f64>,
) -> Result<(), OrchestrationError> {
    let Some(newest) = group.reports.last() else {
        return Ok(());
    };
    let insert = Query::new(INSERT)
        .bind(run)
        .bind(group.last)
        .bind(json(&group.reports)?);
    tx.execute(insert).await?.any();
    let record = Query::new(RECORD)
        .bind(group.last)
        .bind(i64::try_from(newest.step).unwrap_or(i64::MAX))
        .bind(i64::try_from(newest.episode).unwrap_or(i64::MAX))
        .bind(rate)
        .bind(run);
    Ok(tx.execute(record).await?.one()?)
}

/// Forgets the reports of all runs that have ended but the newest.
pub(crate) async fn drop_old_reports(
    tx: &mut Transaction,
    retained: u32,
) -> Result<(), OrchestrationError> {
    let drop = Query::new(DROP_OLD).bind(retained);
    tx.execute(drop).await?.any();
    Ok(())
}
