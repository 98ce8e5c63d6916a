//! Zero-sum games by linear programming (von Neumann, 1928; Dantzig, 1951): each player maximises
//! what it earns against the best answer.

use crate::bimatrix::Bimatrix;
use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOutcome};

pub(crate) fn solve(game: &Bimatrix) -> Option<[Vec<f64>; 2]> {
    let (m, n) = (game.rows, game.columns);
    let row = max_min(m, n, |i, j| game.a[i * n + j])?;
    let column = max_min(n, m, |j, i| game.b[i * n + j])?;
    Some([row, column])
}

/// The strategy over `own` actions that maximises the least payoff over `other` actions.
fn max_min(own: usize, other: usize, payoff: impl Fn(usize, usize) -> f64) -> Option<Vec<f64>> {
    // Payoffs are scaled to about one: the solver's tolerances are absolute.
    let scale = (0..own * other)
        .map(|k| payoff(k / other, k % other).abs())
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut problem = Problem::new(OptimizationDirection::Maximize);
    let value = problem.add_var(1.0, (f64::NEG_INFINITY, f64::INFINITY));
    let weights: Vec<_> = (0..own).map(|_| problem.add_var(0.0, (0.0, 1.0))).collect();
    problem.add_constraint(
        weights.iter().map(|w| (*w, 1.0)).collect::<Vec<_>>(),
        ComparisonOp::Eq,
        1.0,
    );
    for j in 0..other {
        let mut terms: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(i, w)| (*w, payoff(i, j) / scale))
            .collect();
        terms.push((value, -1.0));
        problem.add_constraint(terms, ComparisonOp::Ge, 0.0);
    }
    let SolveOutcome::Solution(solution) = problem.solve().ok()? else {
        return None;
    };
    let raw: Vec<f64> = weights.iter().map(|w| solution[*w].max(0.0)).collect();
    let total: f64 = raw.iter().sum();
    (total > 0.5).then(|| raw.iter().map(|p| p / total).collect())
}
