//! The course of one seed: a training from its start to its end, with what was measured on the way.

use super::curves::Record;
use crate::commands::progress::Progress;
use indicatif::ProgressBar;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tars_learn::training::{
    Command as Next, Control, Evaluation, Player, Progress as Report, Training, TrainingError,
};

/// What one seed came to.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) seed: u64,
    /// The highest mean return in an evaluation, of each agent that learns.
    pub(super) best: Vec<f64>,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) steps_per_cpu_s: f64,
    pub(super) records: Vec<Record>,
}

impl Course {
    /// Trains to the end.
    pub(super) fn run(training: &Training, progress: &Progress) -> Result<Self, TrainingError> {
        let mut watched = Watched {
            bar: progress.bar("training", training.steps),
            watch: CpuWatch::default(),
            records: Vec::new(),
        };
        let outcome = training.execute(None, &mut watched)?;
        let outcome = outcome.expect("nobody stops it");
        watched.bar.finish_and_clear();
        let learned = outcome.learned.iter();
        Ok(Self {
            seed: training.seed,
            best: learned.map(|one| one.best_mean_return).collect(),
            evaluations: outcome.evaluations,
            steps_per_cpu_s: watched.watch.rate(),
            records: watched.records,
        })
    }
}

/// Moves the bar, measures the CPU time of learning, and keeps what is reported.
struct Watched {
    bar: ProgressBar,
    watch: CpuWatch,
    records: Vec<Record>,
}

impl Control for Watched {
    fn report(&mut self, report: Report) {
        self.bar.set_position(report.step);
        self.records.push(Record::Training(report));
    }

    fn poll(&mut self, step: u64) -> Next {
        self.watch.step(step, cpu_time());
        Next::Continue
    }

    fn evaluated(&mut self, evaluation: &Evaluation, _: &[Player]) {
        self.watch.interrupt();
        self.records.push(Record::Evaluation(evaluation.clone()));
    }
}

/// The CPU time between steps, without that of evaluations.
#[derive(Debug, Default)]
struct CpuWatch {
    last: Option<(u64, Duration)>,
    steps: u64,
    spent: Duration,
}

impl CpuWatch {
    fn step(&mut self, step: u64, now: Duration) {
        if let Some((before, then)) = self.last {
            self.steps += step - before;
            self.spent += now.saturating_sub(then);
        }
        self.last = Some((step, now));
    }

    /// What lies between the last step and the next one does not count.
    fn interrupt(&mut self) {
        self.last = None;
    }

    /// Steps a second; 0 where nothing was measured.
    fn rate(&self) -> f64 {
        match self.spent.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.steps as f64 / seconds,
        }
    }
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or(0),
        u32::try_from(at.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_do_not_count_as_learning() {
        let at = Duration::from_secs;
        let mut watch = CpuWatch::default();
        assert_eq!(watch.rate(), 0.0);
        for (step, now) in [(0, 10), (8, 12), (16, 14)] {
            watch.step(step, at(now));
        }
        watch.interrupt();
        for (step, now) in [(24, 100), (32, 102)] {
            watch.step(step, at(now));
        }
        assert_eq!((watch.steps, watch.spent), (24, at(6)));
    }
}
