//! The reports of training runs.

use super::Store;
use crate::OrchestrationError;
use serde::{Deserialize, Serialize};
use tars_learn::{
    Update,
    training::{AgentProgress, Progress, Statistics},
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
#[serde(from = "StoredReport")]
pub(crate) struct Report {
    pub(crate) step: u64,
    pub(crate) episode: u64,
    /// On each agent that the run trains, in the order of their environment.
    pub(crate) agents: Vec<AgentReport>,
}

/// What a report says of one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgentReport {
    /// Empty for the only agent of a run whose reports do not name it.
    #[serde(default)]
    pub(crate) agent: String,
    pub(crate) mean_return: Option<f64>,
    /// How much it explored.
    #[serde(alias = "epsilon")]
    pub(crate) exploration: f64,
    /// What the gradient steps measured.
    #[serde(default)]
    pub(crate) update: Update,
    /// How it has done so far; absent in reports from before it was measured.
    #[serde(default)]
    pub(crate) statistics: Option<Statistics>,
    /// The version of the agent's hyperparameters that the run followed.
    pub(crate) version: i64,
}

/// A report as it is stored. Older ones of a run that trains one agent have what is about it in fields of their
/// own.
#[derive(Deserialize)]
struct StoredReport {
    step: u64,
    episode: u64,
    #[serde(default)]
    agents: Vec<AgentReport>,
    /// From before there were others to measure.
    loss: Option<f32>,
    #[serde(flatten)]
    only: Option<AgentReport>,
}

impl From<StoredReport> for Report {
    fn from(stored: StoredReport) -> Self {
        let mut agents = stored.agents;
        if let Some(mut only) = stored.only.filter(|_| agents.is_empty()) {
            only.update.loss = only.update.loss.or(stored.loss);
            agents.push(only);
        }
        Self {
            step: stored.step,
            episode: stored.episode,
            agents,
        }
    }
}

impl AgentReport {
    fn new(progress: &AgentProgress, agent: &str, version: i64) -> Self {
        Self {
            agent: agent.to_owned(),
            mean_return: progress.mean_return,
            exploration: f64::from(progress.exploration),
            update: progress.update,
            statistics: Some(progress.statistics),
            version,
        }
    }
}

impl Report {
    /// The report on the agents that learn, whose names and versions are given in the same order.
    pub(crate) fn new(progress: &Progress, learners: &[(&str, i64)]) -> Self {
        let named = progress.agents.iter().zip(learners);
        Self {
            step: progress.step,
            episode: progress.episodes,
            agents: named
                .map(|(agent, (name, version))| AgentReport::new(agent, name, *version))
                .collect(),
        }
    }

    /// What it says of an agent that its run trains.
    pub(crate) fn about(self, agent: &str) -> Option<AgentReport> {
        let is_about = |of: &AgentReport| of.agent == agent || of.agent.is_empty();
        self.agents.into_iter().find(is_about)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(agent: &str) -> AgentReport {
        AgentReport {
            agent: agent.to_owned(),
            mean_return: Some(1.5),
            exploration: 0.5,
            update: Update {
                gradient_steps: 3,
                loss: Some(0.25),
                ..Update::default()
            },
            statistics: Some(Statistics::default()),
            version: 2,
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        for agents in [&["policy"][..], &["policy", "ethical"]] {
            let written = Report {
                step: 7,
                episode: 1,
                agents: agents.iter().map(|agent| of(agent)).collect(),
            };
            let read: Report = serde_json::from_str(&json(&written).unwrap()).unwrap();
            assert_eq!(read, written);
            let last = agents[agents.len() - 1];
            assert_eq!(read.clone().about(last), Some(of(last)));
            assert_eq!(read.about("resource"), None);
        }
    }

    #[test]
    fn an_older_report_on_one_agent_is_about_the_only_one_of_its_run() {
        let stored =
            r#"{"step":7,"episode":1,"mean_return":1.5,"loss":0.25,"epsilon":0.5,"version":2}"#;
        let read: Report = serde_json::from_str(stored).unwrap();
        assert_eq!((read.step, read.episode, read.agents.len()), (7, 1, 1));
        let expected = AgentReport {
            update: Update {
                loss: Some(0.25),
                ..Update::default()
            },
            statistics: None,
            ..of("")
        };
        assert_eq!(read.about("policy"), Some(expected));
    }

    #[test]
    fn an_older_report_on_several_agents_has_each_once() {
        let update = json(&of("").update).unwrap();
        let agent = |name: &str| {
            format!(
                r#"{{"agent":"{name}","mean_return":1.5,"loss":0.25,"epsilon":0.5,"update":{update},"version":2}}"#
            )
        };
        let stored = format!(
            r#"{{"step":7,"episode":1,"mean_return":1.5,"loss":0.25,"epsilon":0.5,"update":{update},"version":2,
                "agents":[{},{}]}}"#,
            agent("policy"),
            agent("ethical"),
        );
        let read: Report = serde_json::from_str(&stored).unwrap();
        let names: Vec<&str> = read.agents.iter().map(|of| &*of.agent).collect();
        assert_eq!(names, ["policy", "ethical"]);
        let expected = AgentReport {
            statistics: None,
            ..of("ethical")
        };
        assert_eq!(read.about("ethical"), Some(expected));
    }
}
