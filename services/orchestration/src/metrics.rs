//! What training measured of an agent, read from the stored reports of its runs, so that every replica
//! returns the same, also of runs that another one trains.

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    points,
    store::{AgentReport, Group, MemberRow, Store},
    training::REPORTED,
};
use std::collections::{BTreeMap, HashMap};
use tars_learn::{Algorithm, Update};
use uuid::Uuid;

/// Groups of reports that are read at once: few, as each may be long.
const READ: i64 = 8;
/// The most reports that are read of an agent, whatever was measured in them.
const MOST: usize = 8192;

/// A quantity as one report has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) run: Uuid,
    pub(crate) step: u64,
    pub(crate) episode: u64,
    pub(crate) value: f64,
}

/// The points of one quantity, the oldest first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<Point>,
}

/// What one report of a run says of the agent.
#[derive(Debug, Clone)]
struct Entry {
    run: Uuid,
    step: u64,
    episode: u64,
    of: AgentReport,
}

/// An agent's reports, the oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Vec<Entry>);

/// The newest runs, the newest first, with the agents that each trains. Older ones have no reports any more.
#[derive(Debug)]
pub(crate) struct ReportedRuns {
    runs: Vec<Uuid>,
    members: HashMap<Uuid, Vec<MemberRow>>,
}

impl ReportedRuns {
    /// Those that train an agent.
    fn of<'a>(&'a self, agent: &'a str) -> impl Iterator<Item = Uuid> + 'a {
        let trains = move |run: &&Uuid| {
            let mut members = self.members.get(run).into_iter().flatten();
            members.any(|member| member.agent == agent)
        };
        self.runs.iter().filter(trains).copied()
    }
}

/// The name of the mean return of the episodes that ended since the report before.
const RETURN: &str = "mean_return";

/// Reads a quantity from what gradient steps measured.
type Measure = fn(&Update) -> Option<f32>;

/// What is measured of every algorithm that has it; losses have names of their own.
const QUANTITIES: &[(&str, Measure)] = &[
    ("entropy", |update| update.entropy),
    ("kl", |update| update.kl),
    ("clip_fraction", |update| update.clip_fraction),
    ("explained_variance", |update| update.explained_variance),
    ("q", |update| update.q),
    ("gradient_norm", |update| update.gradient_norm),
];

impl Series {
    fn new(name: &'static str, points: Vec<Point>) -> Self {
        Self { name, points }
    }

    /// With so many points at most, where that is given.
    pub(crate) fn down_to(self, most: Option<u32>) -> Self {
        let points = down_to(most, self.points, |point| point.value);
        Self { points, ..self }
    }
}

/// So many of the items at most, where that is given, which look like all of them when their values are drawn.
pub(crate) fn down_to<T: Clone>(
    most: Option<u32>,
    items: Vec<T>,
    value: impl Fn(&T) -> f64,
) -> Vec<T> {
    let Some(most) = most else {
        return items;
    };
    let drawn: Vec<f64> = items.iter().map(value).collect();
    let chosen = points::downsample(&drawn, count(most));
    chosen.into_iter().map(|at| items[at].clone()).collect()
}

pub(crate) fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

pub(crate) fn values(points: &[Point]) -> Vec<f64> {
    points.iter().map(|point| point.value).collect()
}

impl Reports {
    /// A quantity wherever it was measured.
    fn points(&self, of: impl Fn(&AgentReport) -> Option<f64>) -> Vec<Point> {
        let measured = self.0.iter().filter_map(|entry| {
            let value = of(&entry.of).filter(|value| value.is_finite())?;
            Some(Point {
                run: entry.run,
                step: entry.step,
                episode: entry.episode,
                value,
            })
        });
        measured.collect()
    }

    fn update(&self, name: &'static str, of: Measure) -> Series {
        let points = self.points(|report| of(&report.update).map(f64::from));
        Series::new(name, points)
    }

    pub(crate) fn returns(&self) -> Vec<Point> {
        self.points(|report| report.mean_return)
    }

    /// What the newest report says.
    pub(crate) fn newest(&self) -> Option<&AgentReport> {
        self.0.last().map(|entry| &entry.of)
    }

    pub(crate) fn exploration(&self, of: &Algorithm) -> Series {
        let points = self.points(|report| Some(report.exploration));
        Series::new(of.exploration, points)
    }

    pub(crate) fn losses(&self, of: &Algorithm) -> Vec<Series> {
        let losses = of.losses.iter();
        losses.map(|loss| self.update(loss.name, loss.of)).collect()
    }

    /// Every quantity that was measured, under its name.
    pub(crate) fn all(&self, of: &Algorithm) -> Vec<Series> {
        let others = QUANTITIES.iter();
        let others = others.filter(|(name, _)| *name != of.exploration);
        let mut all = vec![Series::new(RETURN, self.returns())];
        all.extend(self.losses(of));
        all.push(self.exploration(of));
        all.extend(others.map(|(name, of)| self.update(name, *of)));
        all.retain(|series| !series.points.is_empty());
        all
    }

    /// The mean of every quantity but the returns.
    pub(crate) fn means(&self, of: &Algorithm) -> BTreeMap<String, f64> {
        let all = self.all(of).into_iter();
        let others = all.filter(|series| series.name != RETURN);
        let means = others.filter_map(|series| {
            let mean = points::mean(&values(&series.points))?;
            Some((series.name.to_owned(), mean))
        });
        means.collect()
    }
}

/// Reads the newest reports of an agent until there are enough that count, the newest first.
struct Reading<'a, F> {
    store: &'a Store,
    agent: &'a str,
    counts: F,
    wanted: usize,
    read: Vec<Entry>,
    counted: usize,
}

impl<F: Fn(&AgentReport) -> bool> Reading<'_, F> {
    fn is_done(&self) -> bool {
        self.counted >= self.wanted || self.read.len() >= MOST
    }

    async fn run(&mut self, run: Uuid) -> Result<(), OrchestrationError> {
        let mut before = i64::MAX;
        while !self.is_done() {
            let groups = self.store.newest_reports(run, before, READ).await?;
            let Some(oldest) = groups.last() else {
                break;
            };
            before = oldest.last;
            groups.into_iter().for_each(|group| self.group(run, group));
        }
        Ok(())
    }

    fn group(&mut self, run: Uuid, group: Group) {
        for report in group.reports.into_iter().rev() {
            if self.is_done() {
                return;
            }
            let (step, episode) = (report.step, report.episode);
            let Some(of) = report.about(self.agent) else {
                continue;
            };
            self.counted += usize::from((self.counts)(&of));
            self.read.push(Entry {
                run,
                step,
                episode,
                of,
            });
        }
    }

    fn oldest_first(mut self) -> Reports {
        self.read.reverse();
        Reports(self.read)
    }
}

impl Orchestration {
    /// The newest reports of an agent, as many as it takes for so many that count.
    pub(crate) async fn reports_of(
        &self,
        agent: &Agent,
        wanted: usize,
        counts: impl Fn(&AgentReport) -> bool,
    ) -> Result<Reports, OrchestrationError> {
        let runs = self.reported_runs().await?;
        self.reports_in(&runs, agent, wanted, counts).await
    }

    /// As [`reports_of`](Self::reports_of), of runs that were read before.
    pub(crate) async fn reports_in(
        &self,
        runs: &ReportedRuns,
        agent: &Agent,
        wanted: usize,
        counts: impl Fn(&AgentReport) -> bool,
    ) -> Result<Reports, OrchestrationError> {
        let mut reading = Reading {
            store: &self.store,
            agent: agent.id(),
            counts,
            wanted,
            read: Vec::new(),
            counted: 0,
        };
        for run in runs.of(agent.id()) {
            if reading.is_done() {
                break;
            }
            reading.run(run).await?;
        }
        Ok(reading.oldest_first())
    }

    /// The runs that may have reports.
    pub(crate) async fn reported_runs(&self) -> Result<ReportedRuns, OrchestrationError> {
        let runs = self.store.newest_runs(REPORTED).await?;
        let members = match (runs.last(), runs.first()) {
            (Some(oldest), Some(newest)) => self.store.members_between(*oldest, *newest).await?,
            _ => HashMap::new(),
        };
        Ok(ReportedRuns { runs, members })
    }
}

#[cfg(test)]
mod tests;
