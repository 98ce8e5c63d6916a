//! Any game by the branch of logit equilibria (McKelvey and Palfrey, 1995; Turocy, 2005): it begins
//! at the even mix, where nobody looks at payoffs, and ends at an equilibrium, where everybody does.
//!
//! The unknowns are logarithms of probabilities and the precision; a predictor along the branch is
//! corrected by Newton's method, the step follows how well that went.

use crate::{
    linear,
    newton::Newton,
    search::{Method, Search},
};

/// Precision at which the branch is given up: regrets are then about its inverse.
const LAST: f64 = 1e8;
const STEPS: u32 = 5_000;
const FIRST_STEP: f64 = 0.1;
const LEAST_STEP: f64 = 1e-9;
/// Corrections of one step; more mean that the step was too long.
const CORRECTIONS: u32 = 6;
/// Equations that hold to this are on the branch.
const ON_BRANCH: f64 = 1e-9;
/// Probabilities above this are tried as a support.
const SUPPORT: [f64; 2] = [1e-2, 1e-4];

struct Branch {
    /// Logarithms of probabilities, then the precision.
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

/// Follows the branch until Newton's method or the branch itself ends in an equilibrium.
pub(crate) fn search(search: &mut Search<'_>, newton: &mut Newton) {
    let game = search.game;
    let size = game.total_actions() + 1;
    let widest = game.shape().iter().copied().max().unwrap_or(1);
    let mut branch = Branch {
        at: game.uniform().iter().map(|p| p.ln()).chain([0.0]).collect(),
        tangent: vec![0.0; size],
        trial: vec![0.0; size],
        profile: vec![0.0; size - 1],
        slopes: vec![0.0; widest * (size - 1)],
        values: vec![0.0; size - 1],
        matrix: vec![0.0; size * size],
        work: vec![0.0; size * size],
        right: vec![0.0; size],
    };
    branch.tangent[size - 1] = 1.0;
    let mut length = FIRST_STEP;
    let mut turned = false;
    for step in 0..STEPS {
        if search.is_stopped() || length < LEAST_STEP {
            return;
        }
        search.iterations += 1;
        if !turned && !branch.turn(search) {
            return;
        }
        turned = true;
        match branch.correct(search, length) {
            Some(corrections) => {
                std::mem::swap(&mut branch.at, &mut branch.trial);
                turned = false;
                length *= if corrections <= 2 {
                    1.8
                } else if corrections > 4 {
                    0.6
                } else {
                    1.0
                };
            }
            None => {
                length *= 0.3;
                continue;
            }
        }
        branch.exponentiate(false);
        let regret = search.offer(Method::LogitHomotopy, &branch.profile);
        if regret < 0.3 && (step % 4 == 3 || regret < 1e-3) {
            branch.finish(search, newton);
        }
        if search.solved() || branch.at[size - 1] > LAST {
            return;
        }
    }
}

impl Branch {
    fn exponentiate(&mut self, trial: bool) {
        let from = if trial { &self.trial } else { &self.at };
        for (p, x) in self.profile.iter_mut().zip(from) {
            *p = x.exp();
        }
    }

    /// Lets Newton's method end it on the supports that show by now.
    fn finish(&self, search: &mut Search<'_>, newton: &mut Newton) {
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

    /// The derivatives at the trial point, and the errors of the equations there.
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

    /// The direction of the branch at the present point, the same way as before.
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

    /// A step along the tangent and back onto the branch; the number of corrections that took.
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
