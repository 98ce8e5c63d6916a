//! Newton's method on the indifference equations of a support: its actions have equal values, and the
//! probabilities sum to one. From a nearby point it converges to machine precision.

use crate::{Game, linear, search::Search};

/// The residual at which the equations are solved.
const SOLVED: f64 = 1e-15;
/// Newton steps; convergence is quadratic, so more do not help.
const MAX_STEPS: usize = 12;
/// How far outside of the simplex a probability may be by rounding.
const OUTSIDE: f64 = -1e-9;

#[derive(Debug)]
pub(crate) struct Newton {
    slopes: Vec<f64>,
    values: Vec<f64>,
    matrix: Vec<f64>,
    right: Vec<f64>,
    unknowns: Vec<usize>,
    profile: Vec<f64>,
    levels: Vec<f64>,
}

impl Newton {
    pub(crate) fn new(game: &Game) -> Self {
        let (total, n) = (game.total_actions(), game.players());
        let widest = game.shape().iter().copied().max().unwrap_or(1);
        Self {
            slopes: vec![0.0; widest * total],
            values: vec![0.0; total],
            matrix: vec![0.0; (total + n) * (total + n)],
            right: vec![0.0; total + n],
            unknowns: Vec::with_capacity(total),
            profile: vec![0.0; total],
            levels: vec![0.0; n],
        }
    }

    /// The solution on the support that Newton's method reaches from `start`; `None` when the
    /// equations are singular or their solution is outside of the simplex.
    pub(crate) fn solve(
        &mut self,
        search: &mut Search<'_>,
        support: impl Fn(usize) -> bool,
        start: &[f64],
    ) -> Option<&[f64]> {
        let game = search.game;
        self.unknowns.clear();
        self.unknowns
            .extend((0..game.total_actions()).filter(|k| support(*k)));
        self.profile.fill(0.0);
        for k in &self.unknowns {
            self.profile[*k] = start[*k];
        }
        self.levels.fill(0.0);
        let mut last = f64::INFINITY;
        for step in 0..MAX_STEPS {
            let error = self.linearise(search);
            let stopped = || search.is_stopped();
            if stopped() {
                return None;
            }
            if error <= SOLVED || (step > 2 && error >= last) {
                last = last.min(error);
                break;
            }
            last = error;
            let size = self.unknowns.len() + game.players();
            linear::solve(
                &mut self.matrix[..size * size],
                &mut self.right[..size],
                &stopped,
            )?;
            for (k, change) in self.unknowns.iter().zip(&self.right) {
                self.profile[*k] -= change;
            }
            for (level, change) in self
                .levels
                .iter_mut()
                .zip(&self.right[self.unknowns.len()..])
            {
                *level -= change;
            }
            if !self.profile.iter().all(|p| p.abs() < 1e3) {
                return None;
            }
        }
        let inside = self.profile.iter().all(|p| *p >= OUTSIDE);
        (inside && last < 1e-6).then_some(&self.profile)
    }

    /// Fills in the matrix and the right-hand side at the present point; returns the largest
    /// residual.
    fn linearise(&mut self, search: &mut Search<'_>) -> f64 {
        let game = search.game;
        let (n, total, known) = (game.players(), game.total_actions(), self.unknowns.len());
        let size = known + n;
        self.matrix[..size * size].fill(0.0);
        let mut row = 0;
        for player in 0..n {
            if search.is_stopped() {
                return f64::NAN;
            }
            let own = game.actions(player);
            let slopes = &mut self.slopes[..own.len() * total];
            let values = &mut self.values[own.clone()];
            let kernel = &mut search.kernel;
            kernel.linearise(game, player, &self.profile, slopes, values);
            while row < known && own.contains(&self.unknowns[row]) {
                let action = self.unknowns[row];
                let line = &slopes[(action - own.start) * total..][..total];
                let cells = &mut self.matrix[row * size..(row + 1) * size];
                for (cell, k) in cells.iter_mut().zip(&self.unknowns) {
                    *cell = line[*k];
                }
                cells[known + player] = -1.0;
                self.right[row] = self.values[action] - self.levels[player];
                row += 1;
            }
        }
        for player in 0..n {
            let own = game.actions(player);
            let cells = &mut self.matrix[(known + player) * size..(known + player + 1) * size];
            for (cell, k) in cells.iter_mut().zip(&self.unknowns) {
                *cell = if own.contains(k) { 1.0 } else { 0.0 };
            }
            let sum: f64 = self.profile[own].iter().sum();
            self.right[known + player] = sum - 1.0;
        }
        self.right[..size]
            .iter()
            .fold(0.0, |worst, e| worst.max(e.abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NeverStop, testing};

    #[test]
    fn a_full_support_is_solved_from_uniform_strategies() {
        // Matching pennies with unequal stakes: each mixes by the other's stakes.
        let payoffs = vec![vec![3.0, -1.0, -1.0, 1.0], vec![-3.0, 1.0, 1.0, -1.0]];
        let game = Game::new(vec![2, 2], payoffs).unwrap();
        let mut newton = Newton::new(&game);
        let mut search = Search::new(&game, 1e-9, &NeverStop);
        let found = newton.solve(&mut search, |_| true, &game.uniform());
        let truth = [1.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0, 2.0 / 3.0];
        let found = found.unwrap();
        assert!(found.iter().zip(truth).all(|(p, t)| (p - t).abs() < 1e-14));
    }

    #[test]
    fn supports_without_an_equilibrium_are_refused() {
        let game = testing::random(5, &[2, 3]);
        let mut newton = Newton::new(&game);
        let mut search = Search::new(&game, 1e-9, &NeverStop);
        // Two actions against three: the equations are singular.
        assert!(
            newton
                .solve(&mut search, |_| true, &game.uniform())
                .is_none()
        );
        let dilemma = vec![vec![3.0, 0.0, 5.0, 1.0], vec![3.0, 5.0, 0.0, 1.0]];
        let game = Game::new(vec![2, 2], dilemma).unwrap();
        let mut newton = Newton::new(&game);
        let mut search = Search::new(&game, 1e-9, &NeverStop);
        // With dominated actions the solution is outside of the simplex.
        assert!(
            newton
                .solve(&mut search, |_| true, &game.uniform())
                .is_none()
        );
    }
}
