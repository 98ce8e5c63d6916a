//! Linear programs over lotteries on joint actions. They are solved in time slices, so that a solve
//! can be stopped.

use microlp::{ComparisonOp, LinearExpr, OptimizationDirection, Problem, ResumeOptions, Variable};
use std::time::Duration;

/// The first time slice between two polls of whether to stop.
const SLICE: Duration = Duration::from_micros(500);
/// The time slice that later ones grow to. Resuming a large program costs some milliseconds, so a
/// program that did nothing else in its slices would never end.
const LONGEST_SLICE: Duration = Duration::from_millis(20);
/// Weights below this are rounding errors.
const DUST: f64 = 1e-12;

/// A linear program for a lottery and one more free variable, the level.
pub(crate) struct LinearProgram {
    problem: Problem,
    weights: Vec<Variable>,
    level: Variable,
}

impl LinearProgram {
    /// A program that maximises the mean of `objective` under the lottery plus `level` times the free
    /// variable.
    pub(crate) fn new(objective: impl Iterator<Item = f64>, level: f64) -> Self {
        let mut problem = Problem::new(OptimizationDirection::Maximize);
        problem.set_time_limit(SLICE);
        let level = match level {
            0.0 => problem.add_var(0.0, (0.0, 0.0)),
            worth => problem.add_var(worth, (f64::NEG_INFINITY, f64::INFINITY)),
        };
        let weights: Vec<Variable> = objective
            .map(|worth| problem.add_var(worth, (0.0, f64::INFINITY)))
            .collect();
        let mut sum = LinearExpr::empty();
        weights.iter().for_each(|w| sum.add(*w, 1.0));
        problem.add_constraint(sum, ComparisonOp::Eq, 1.0);
        Self {
            problem,
            weights,
            level,
        }
    }

    /// Adds a constraint: the mean of `coefficients` under the lottery less `level` times the free
    /// variable is at least `bound`.
    pub(crate) fn at_least(
        &mut self,
        coefficients: impl Iterator<Item = (usize, f64)>,
        level: f64,
        bound: f64,
    ) {
        let mut row = LinearExpr::empty();
        for (cell, coefficient) in coefficients.filter(|(_, c)| *c != 0.0) {
            row.add(self.weights[cell], coefficient);
        }
        if level != 0.0 {
            row.add(self.level, -level);
        }
        self.problem.add_constraint(row, ComparisonOp::Ge, bound);
    }

    /// The optimal lottery; `None` when the program is infeasible or the solve was stopped.
    pub(crate) fn solve(&self, stopped: &dyn Fn() -> bool) -> Option<Vec<f64>> {
        let mut outcome = self.problem.solve().ok()?;
        let mut slice = SLICE;
        loop {
            if outcome.is_optimal() {
                let solution = outcome.solution()?;
                return tidy(self.weights.iter().map(|w| solution[*w]));
            }
            if stopped() {
                return None;
            }
            slice = (slice * 2).min(LONGEST_SLICE);
            let mut options = ResumeOptions::default();
            options.time_limit = Some(slice);
            outcome = outcome.resume_with(options).ok()?;
        }
    }
}

fn tidy(weights: impl Iterator<Item = f64>) -> Option<Vec<f64>> {
    let mut lottery: Vec<f64> = weights.map(|w| if w > DUST { w } else { 0.0 }).collect();
    let sum: f64 = lottery.iter().sum();
    lottery.iter_mut().for_each(|w| *w /= sum);
    (sum > 0.5).then_some(lottery)
}
