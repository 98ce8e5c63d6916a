//! Homotopy along the principal branch of logit quantal response equilibria (McKelvey and Palfrey,
//! 1995), traced as by Turocy ("A dynamic homotopy interpretation of the logistic quantal response
//! equilibrium correspondence", 2005). The branch starts at uniform strategies with precision zero,
//! where payoffs have no influence, and converges to a Nash equilibrium as the precision grows.
//!
//! The unknowns are the logarithms of the probabilities and the precision. A predictor step along the
//! tangent is corrected by Newton's method, and the step length follows the number of corrections.

use crate::{
    Game, linear,
    newton::Newton,
    search::{Method, Search},
};

/// The precision at which the search ends; regrets are then about its inverse.
const MAX_PRECISION: f64 = 1e8;
/// Steps along the branch.
const MAX_STEPS: u32 = 5_000;
/// The length of the first step.
const FIRST_STEP: f64 = 0.1;
/// The step length below which the search ends.
const MIN_STEP: f64 = 1e-9;
/// Corrections of one step; a step that needs more is too long.
const CORRECTIONS: u32 = 6;
/// The residual within which a point is on the branch, at small precision.
const ON_BRANCH: f64 = 1e-9;
/// Thresholds of the probabilities that make up a candidate support.
const SUPPORT: [f64; 2] = [1e-2, 1e-4];

struct Branch {
    /// The present point: logarithms of probabilities, then the precision.
    at: Vec<f64>,
    tangent: Vec<f64>,
    trial: Vec<f64>,
    profile: Vec<f64>,
    slopes: Vec<f64>,
    values: Vec<f64>,
    matrix: Vec<f64>,
    work: Vec<f64>,
    right: Vec<f64>,
}

/// Follows the branch until Newton's method, or the branch itself, arrives at an equilibrium.
pub(crate) fn search(search: &mut Search<'_>, newton: &mut Newton) {
    let mut branch = Branch::new(search.game);
    let mut length = FIRST_STEP;
    let mut has_moved = true;
    for step in 0..MAX_STEPS {
        if search.is_stopped() || length < MIN_STEP {
            return;
        }
        search.iterations += 1;
        if has_moved && !branch.turn(search) {
            return;
        }
        has_moved = branch.advance(search, &mut length);
        if has_moved && branch.offer(search, newton, step) {
            return;
        }
    }
}

impl Branch {
    /// The start of the branch: uniform strategies at precision zero.
    fn new(game: &Game) -> Self {
        let size = game.total_actions() + 1;
        let widest = game.shape().iter().copied().max().unwrap_or(1);
        let mut tangent = vec![0.0; size];
        tangent[size - 1] = 1.0;
        Self {
            at: game.uniform().iter().map(|p| p.ln()).chain([0.0]).collect(),
            tangent,
            trial: vec![0.0; size],
            profile: vec![0.0; size - 1],
            slopes: vec![0.0; widest * (size - 1)],
            values: vec![0.0; size - 1],
            matrix: vec![0.0; size * size],
            work: vec![0.0; size * size],
            right: vec![0.0; size],
        }
    }

    /// Does a step of this length and adapts the length; false when the step was too long.
    fn advance(&mut self, search: &mut Search<'_>, length: &mut f64) -> bool {
        let Some(corrections) = self.correct(search, *length) else {
            *length *= 0.3;
            return false;
        };
        std::mem::swap(&mut self.at, &mut self.trial);
        *length *= match corrections {
            0..=2 => 1.8,
            3..=4 => 1.0,
            _ => 0.6,
        };
        true
    }

    /// Offers the present point, and now and then what Newton's method makes of it. Returns whether
    /// the search is over.
    fn offer(&mut self, search: &mut Search<'_>, newton: &mut Newton, step: u32) -> bool {
        self.exponentiate(false);
        let regret = search.offer(Method::LogitHomotopy, &self.profile);
        if regret < 0.3 && (step % 4 == 3 || regret < 1e-3) {
            self.polish(search, newton);
        }
        search.solved() || self.at[self.at.len() - 1] > MAX_PRECISION
    }

    fn exponentiate(&mut self, trial: bool) {
        let from = if trial { &self.trial } else { &self.at };
        for (p, x) in self.profile.iter_mut().zip(from) {
            *p = x.exp();
        }
    }

    /// Tries Newton's method on the supports that the profile suggests.
    fn polish(&self, search: &mut Search<'_>, newton: &mut Newton) {
        for least in SUPPORT {
            let support = |k: usize| self.profile[k] > least;
            let found = newton.solve(search, support, &self.profile);
            if let Some(better) = found {
                search.offer(Method::LogitHomotopy, better);
            }
            if search.solved() {
                return;
            }
        }
    }

    /// Fills in the derivatives and residuals of the equations at the trial point; returns the largest
    /// residual.
    fn linearise(&mut self, search: &mut Search<'_>) -> f64 {
        let game = search.game;
        let total = game.total_actions();
        let size = total + 1;
        let precision = self.trial[total];
        self.matrix.fill(0.0);
        let mut row = 0;
        for player in 0..game.players() {
            if search.is_stopped() {
                return f64::NAN;
            }
            let own = game.actions(player);
            let slopes = &mut self.slopes[..own.len() * total];
            let values = &mut self.values[own.clone()];
            let kernel = &mut search.kernel;
            kernel.linearise(game, player, &self.profile, slopes, values);
            let (reference, others) = slopes.split_at(total);
            for (line, action) in others.chunks_exact(total).zip(own.start + 1..own.end) {
                let cells = &mut self.matrix[row * size..(row + 1) * size];
                for (k, cell) in cells[..total].iter_mut().enumerate() {
                    *cell = -precision * (line[k] - reference[k]) * self.profile[k];
                }
                cells[action] += 1.0;
                cells[own.start] -= 1.0;
                let ahead = self.values[action] - self.values[own.start];
                cells[total] = -ahead;
                self.right[row] = self.trial[action] - self.trial[own.start] - precision * ahead;
                row += 1;
            }
            let cells = &mut self.matrix[row * size..(row + 1) * size];
            cells[own.clone()].copy_from_slice(&self.profile[own.clone()]);
            self.right[row] = self.profile[own].iter().sum::<f64>() - 1.0;
            row += 1;
        }
        self.right[..total]
            .iter()
            .fold(0.0, |worst: f64, e| worst.max(e.abs()))
    }

    /// Computes the tangent at the present point, oriented like the last one; false when it is not
    /// unique.
    fn turn(&mut self, search: &mut Search<'_>) -> bool {
        self.trial.copy_from_slice(&self.at);
        self.exponentiate(true);
        self.linearise(search);
        let total = self.tangent.len() - 1;
        let size = total + 1;
        self.matrix[total * size..].copy_from_slice(&self.tangent);
        self.right.fill(0.0);
        self.right[total] = 1.0;
        self.work.copy_from_slice(&self.matrix);
        if linear::solve(&mut self.work, &mut self.right, &|| search.is_stopped()).is_none() {
            return false;
        }
        let norm = crate::kernel::dot(&self.right, &self.right).sqrt();
        for (t, r) in self.tangent.iter_mut().zip(&self.right) {
            *t = r / norm;
        }
        norm.is_finite()
    }

    /// A step along the tangent and corrections back onto the branch. Returns the number of
    /// corrections; `None` when they do not converge.
    fn correct(&mut self, search: &mut Search<'_>, length: f64) -> Option<u32> {
        let total = self.tangent.len() - 1;
        let size = total + 1;
        for ((trial, at), t) in self.trial.iter_mut().zip(&self.at).zip(&self.tangent) {
            *trial = at + length * t;
        }
        let mut last = f64::INFINITY;
        for correction in 0..=CORRECTIONS {
            if search.is_stopped() {
                return None;
            }
            self.exponentiate(true);
            let error = self.linearise(search);
            if error < ON_BRANCH * (1.0 + self.trial[total].abs() * 1e-3) {
                return (self.trial[total] >= 0.0).then_some(correction);
            }
            if error.is_nan() || error >= last * 2.0 || correction == CORRECTIONS {
                return None;
            }
            last = error;
            self.matrix[total * size..].copy_from_slice(&self.tangent);
            self.right[total] = 0.0;
            self.work.copy_from_slice(&self.matrix);
            linear::solve(&mut self.work, &mut self.right, &|| search.is_stopped())?;
            for (trial, change) in self.trial.iter_mut().zip(&self.right) {
                *trial -= change.clamp(-2.0, 2.0);
            }
        }
        None
    }
}
