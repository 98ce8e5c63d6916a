//! Learning curves as files: everything that was measured as CSV, and a picture of the evaluations.

use super::chart::{Chart, Point};
use crate::commands::CommandError;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use tars_learn::training::{Evaluation, Progress};

const HEADER: &str = "seed,steps,kind,episodes,mean_return,std_return,min_return,max_return,\
                      exploration,gradient_steps,loss,policy_loss,value_loss,entropy,kl,\
                      clip_fraction,explained_variance,q,gradient_norm\n";

/// Something that was measured.
#[derive(Debug, Clone)]
pub(super) enum Record {
    /// Since the report before it.
    Training(Progress),
    Evaluation(Evaluation),
}

/// What one seed measured, in the order of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed<'a> {
    pub(super) seed: u64,
    pub(super) records: &'a [Record],
}

/// The files of a run.
#[derive(Debug)]
pub(super) struct Curves {
    csv: PathBuf,
    svg: PathBuf,
    title: String,
    agent: usize,
}

impl Curves {
    /// Files in a folder, which is created.
    ///
    /// # Errors
    ///
    /// When there can be no such folder.
    pub(super) fn create(
        folder: &Path,
        name: &str,
        title: String,
        agent: usize,
    ) -> Result<Self, CommandError> {
        fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        Ok(Self {
            csv: folder.join(format!("{name}.csv")),
            svg: folder.join(format!("{name}.svg")),
            title,
            agent,
        })
    }

    /// Writes the files, in place of those of an earlier run of the same name.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub(super) fn write(&self, seeds: &[Seed<'_>]) -> Result<(), CommandError> {
        let write = |path, text: String| fs::write(path, text).map_err(|e| failed(path, e));
        write(&self.csv, csv(seeds, self.agent))?;
        write(&self.svg, self.svg(seeds))
    }

    /// The files, for people.
    pub(super) fn describe(&self) -> String {
        format!("{} and {}", self.csv.display(), self.svg.display())
    }

    fn svg(&self, seeds: &[Seed<'_>]) -> String {
        let subtitle = match seeds.len() {
            1 => "evaluations without exploring, one seed".to_owned(),
            n => format!("evaluations without exploring: the mean of {n} seeds, and their range"),
        };
        Chart {
            title: &self.title,
            subtitle: &subtitle,
            horizontal: "environment steps",
            vertical: "mean return",
            points: &points(seeds, self.agent),
            band: seeds.len() > 1,
        }
        .svg()
    }
}

fn failed(path: &Path, source: io::Error) -> CommandError {
    let path = path.to_owned();
    CommandError::File { path, source }
}

/// The mean and the range of the seeds' evaluations after the same steps.
fn points(seeds: &[Seed<'_>], agent: usize) -> Vec<Point> {
    let mut means: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for record in seeds.iter().flat_map(|seed| seed.records) {
        if let Record::Evaluation(evaluation) = record {
            let mean = evaluation.mean(agent);
            means.entry(evaluation.step).or_default().push(mean);
        }
    }
    let point = |(step, means): (&u64, &Vec<f64>)| Point {
        x: *step as f64,
        y: means.iter().sum::<f64>() / means.len() as f64,
        low: means.iter().copied().fold(f64::INFINITY, f64::min),
        high: means.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    };
    means.iter().map(point).collect()
}

/// One row for each record. What was not measured is left empty.
fn csv(seeds: &[Seed<'_>], agent: usize) -> String {
    let rows = seeds.iter().flat_map(|seed| {
        let row = move |record: &Record| format!("{},{}\n", seed.seed, row(record, agent));
        seed.records.iter().map(row)
    });
    std::iter::once(HEADER.to_owned()).chain(rows).collect()
}

/// A record's cells after the seed.
fn row(record: &Record, agent: usize) -> String {
    let cells = match record {
        Record::Training(progress) => training(progress, agent),
        Record::Evaluation(evaluation) => evaluated(evaluation, agent),
    };
    let empty = HEADER.split(',').count() - 1 - cells.len();
    cells.join(",") + &",".repeat(empty)
}

fn evaluated(evaluation: &Evaluation, agent: usize) -> Vec<String> {
    let returns = &evaluation.returns[agent];
    vec![
        evaluation.step.to_string(),
        "evaluation".to_owned(),
        returns.len().to_string(),
        evaluation.mean(agent).to_string(),
        evaluation.std(agent).to_string(),
        returns
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min)
            .to_string(),
        returns
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
            .to_string(),
    ]
}

fn training(progress: &Progress, agent: usize) -> Vec<String> {
    let mut cells = vec![
        progress.step.to_string(),
        "training".to_owned(),
        progress.episodes.to_string(),
    ];
    let Some(of) = progress.agents.iter().find(|a| a.agent == agent) else {
        return cells;
    };
    let mean = of
        .mean_return
        .map_or_else(String::new, |mean| mean.to_string());
    cells.extend([mean, String::new(), String::new(), String::new()]);
    cells.push(of.exploration.to_string());
    cells.push(of.update.gradient_steps.to_string());
    let update = &of.update;
    let measured = [
        update.loss,
        update.policy_loss,
        update.value_loss,
        update.entropy,
        update.kl,
        update.clip_fraction,
        update.explained_variance,
        update.q,
        update.gradient_norm,
    ];
    cells.extend(measured.map(|m| m.map_or_else(String::new, |m| m.to_string())));
    cells
}

#[cfg(test)]
mod tests;
