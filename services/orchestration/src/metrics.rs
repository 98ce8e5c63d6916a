//! What training measured of an agent, read from the stored reports of its runs, so that every replica
//! returns the same, also of runs that another one trains.

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    points,
    store::{Group, Report, Store},
    training::REPORTED,
};
use std::collections::BTreeMap;
use tars_learn::{Algorithm, Update};
use uuid::Uuid;

/// Groups of reports that are read at once.
const READ: i64 = 32;
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

/// An agent's reports with the runs that they are of, the oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Vec<(Uuid, Report)>);

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
    fn points(&self, of: impl Fn(&Report) -> Option<f64>) -> Vec<Point> {
        let measured = self.0.iter().filter_map(|(run, report)| {
            let value = of(report).filter(|value| value.is_finite())?;
            Some(Point {
                run: *run,
                step: report.step,
                episode: report.episode,
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

    pub(crate) fn exploration(&self, of: &Algorithm) -> Series {
        let points = self.points(|report| Some(report.epsilon));
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

/// What a report says of an agent; those of a run that trains one agent are about it.
fn about(agent: &str, report: Report) -> Option<Report> {
    if report.agents.is_empty() {
        return Some(report);
    }
    let mut agents = report.agents.into_iter();
    let of = agents.find(|of| of.agent == agent)?;
    Some(Report {
        step: report.step,
        episode: report.episode,
        mean_return: of.mean_return,
        loss: of.loss,
        epsilon: of.epsilon,
        update: of.update,
        version: of.version,
        agents: Vec::new(),
    })
}

/// Reads the newest reports of an agent until there are enough that count, the newest first.
struct Reading<'a, F> {
    store: &'a Store,
    agent: &'a str,
    counts: F,
    wanted: usize,
    read: Vec<(Uuid, Report)>,
    counted: usize,
}

impl<F: Fn(&Report) -> bool> Reading<'_, F> {
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
        let reports = group.reports.into_iter().rev();
        for report in reports.filter_map(|report| about(self.agent, report)) {
            if self.is_done() {
                return;
            }
            self.counted += usize::from((self.counts)(&report));
            self.read.push((run, report));
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
        counts: impl Fn(&Report) -> bool,
    ) -> Result<Reports, OrchestrationError> {
        let mut reading = Reading {
            store: &self.store,
            agent: agent.id(),
            counts,
            wanted,
            read: Vec::new(),
            counted: 0,
        };
        for run in self.runs_of(agent).await? {
            reading.run(run).await?;
        }
        Ok(reading.oldest_first())
    }

    /// The newest runs that train an agent, the newest first. Older ones have no reports any more.
    async fn runs_of(&self, agent: &Agent) -> Result<Vec<Uuid>, OrchestrationError> {
        let runs = self.store.runs(Uuid::max(), i64::from(REPORTED)).await?;
        let (Some(newest), Some(oldest)) = (runs.first(), runs.last()) else {
            return Ok(Vec::new());
        };
        let members = self.store.members_between(oldest.id, newest.id).await?;
        let trains = |run: &Uuid| {
            let mut members = members.get(run).into_iter().flatten();
            members.any(|member| member.agent == agent.id())
        };
        Ok(runs.iter().map(|run| run.id).filter(trains).collect())
    }
}

#[cfg(test)]
mod tests;
