//! Games of any number of players by iterated polymatrix approximation (Govindan and Wilson, "Computing
//! Nash equilibria by iterated polymatrix approximation", 2004): around a profile the game is
//! approximated by a polymatrix game, whose equilibrium is found by Lemke's algorithm (Howson, 1972).
//! The next approximation is taken there, and Newton's method finishes the search.

use crate::{
    Game,
    newton::Newton,
    random::Stream,
    search::{Method, Search},
    tableau::Tableau,
};

/// Added to costs to keep them positive, so that Lemke's path ends in an equilibrium.
const LIFT: f64 = 1.1;
/// The bound on the pivots of a cold-started path, in multiples of the rows.
const COLD_PIVOTS: usize = 20;
/// The bound on the pivots of a warm-started path. A longer one has gone astray, and a cold start is
/// then faster.
const WARM_PIVOTS: usize = 2;
/// Approximations from one start.
const ROUNDS: u32 = 40;
/// The relative regret below which Newton's method is tried on the support.
const NEAR: f64 = 0.05;

/// The equilibrium conditions of a polymatrix game as a linear complementarity problem. The slacks
/// come first, then their complements (probabilities, then each player's level), then the artificial
/// variable.
#[derive(Debug)]
struct Polymatrix {
    tableau: Tableau,
    start: Tableau,
    size: usize,
    /// The complements that a warm start makes basic.
    wanted: Vec<bool>,
    values: Vec<f64>,
}

impl Polymatrix {
    fn new(game: &Game) -> Self {
        let size = game.total_actions() + game.players();
        let start = Tableau::new(0..size, size..2 * size + 1, |_, _| 0.0);
        Self {
            tableau: start.clone(),
            start,
            size,
            wanted: vec![false; size],
            values: vec![0.0; size],
        }
    }

    /// Writes the approximation at a profile into the tableau.
    fn fill(&mut self, search: &mut Search<'_>, at: &[f64], slopes: &mut [f64]) {
        let game = search.game;
        let (total, n, size) = (game.total_actions(), game.players(), self.size);
        self.tableau.reset(&self.start);
        for player in 0..n {
            if search.is_stopped() {
                return;
            }
            let own = game.actions(player);
            let slopes = &mut slopes[..own.len() * total];
            let values = &mut self.values[own.clone()];
            let kernel = &mut search.kernel;
            kernel.linearise(game, player, at, slopes, values);
            for (line, row) in slopes.chunks_exact(total).zip(own.clone()) {
                let value = self.values[row];
                let cells = self.tableau.row_mut(row);
                for (cell, slope) in cells.iter_mut().zip(line) {
                    *cell = slope - LIFT;
                }
                cells[own.clone()].fill(-LIFT - value * (n as f64 - 2.0));
                cells[total + player] = 1.0;
            }
            let cells = self.tableau.row_mut(total + player);
            cells[own].fill(-1.0);
            cells[size + 1] = -1.0;
        }
    }

    /// A cold start: the artificial variable enters with these coefficients.
    fn start_cold(&mut self, cover: &[f64]) {
        for (row, cover) in cover.iter().enumerate() {
            self.tableau.row_mut(row)[self.size] = -cover;
        }
    }

    /// A warm start: the artificial variable covers the infeasibility of a profile, whose support is
    /// made basic, so that the path starts there. False when the support's equations are singular.
    fn start_warm(&mut self, search: &Search<'_>, at: &[f64]) -> bool {
        let game = search.game;
        let (total, size) = (game.total_actions(), self.size);
        for player in 0..game.players() {
            let own = game.actions(player);
            let mut level = 0.0;
            for row in own.clone() {
                let cost = -crate::kernel::dot(&self.tableau.row(row)[..total], at);
                self.values[row] = cost;
                level += at[row] * cost;
            }
            for row in own {
                let lacking = self.values[row] - level;
                self.wanted[row] = at[row] > 1e-9;
                // Positive slacks need no cover; they are kept apart, so that ratios do not tie.
                let apart = 0.01 * (1.0 + row as f64 / size as f64);
                let slack = if self.wanted[row] {
                    0.0
                } else {
                    lacking.max(apart)
                };
                self.tableau.row_mut(row)[size] = lacking - slack;
            }
            self.wanted[total + player] = true;
            self.tableau.row_mut(total + player)[size] = 0.0;
        }
        (0..size).all(|k| !self.wanted[k] || (!search.is_stopped() && self.enter(k)))
    }

    /// Makes a complement basic in place of a slack that the warm start does not keep.
    fn enter(&mut self, k: usize) -> bool {
        let Some(column) = self.tableau.column(self.size + k) else {
            return true;
        };
        let mut best = (0, 1e-7);
        for row in 0..self.size {
            let basic = self.tableau.basic(row);
            let size = self.tableau.row(row)[column].abs();
            if basic < self.size && self.wanted[basic] && size > best.1 {
                best = (row, size);
            }
        }
        if best.1 <= 1e-7 {
            return false;
        }
        self.tableau.pivot(best.0, column);
        true
    }

    /// The row with the largest infeasibility relative to its cover; `None` when all are feasible.
    fn most_infeasible(&self) -> Option<usize> {
        let mut most: Option<(usize, f64)> = None;
        for row in 0..self.size {
            let (right, cover) = (self.tableau.right(row), self.tableau.row(row)[self.size]);
            if right < -1e-12 && cover < -1e-12 {
                let ratio = right / cover;
                if most.is_none_or(|(_, r)| ratio >= r) {
                    most = Some((row, ratio));
                }
            }
        }
        most.map(|(row, _)| row)
    }

    /// Follows Lemke's path ("Bimatrix Equilibrium Points and Mathematical Programming", 1965) and
    /// writes the profile. False when the path ends in a ray, is too long or was stopped.
    fn solve(&mut self, search: &Search<'_>, max_pivots: usize, profile: &mut [f64]) -> bool {
        let (size, artificial) = (self.size, 2 * self.size);
        let Some(row) = self.most_infeasible() else {
            self.read(profile);
            return true;
        };
        let mut left = self.tableau.pivot(row, size);
        for _ in 0..max_pivots * size {
            if search.is_stopped() {
                return false;
            }
            let entering = if left < size {
                left + size
            } else {
                left - size
            };
            let Some(column) = self.tableau.column(entering) else {
                return false;
            };
            let Some(row) = self.tableau.leaving(column) else {
                return false;
            };
            left = self.tableau.pivot(row, column);
            if left == artificial {
                self.read(profile);
                return true;
            }
        }
        false
    }

    fn read(&self, profile: &mut [f64]) {
        profile.fill(0.0);
        for (variable, value) in self.tableau.solution() {
            if (self.size..self.size + profile.len()).contains(&variable) {
                profile[variable - self.size] = value;
            }
        }
    }
}

/// The buffers of a search, whose rounds allocate nothing.
struct Work {
    polymatrix: Polymatrix,
    slopes: Vec<f64>,
    cover: Vec<f64>,
    at: Vec<f64>,
    towards: Vec<f64>,
    middle: Vec<f64>,
}

impl Work {
    /// Solves the approximation at the present profile, with a warm or a cold start.
    fn approximate(&mut self, search: &mut Search<'_>, warm: bool) -> bool {
        self.polymatrix.fill(search, &self.at, &mut self.slopes);
        if warm {
            if !self.polymatrix.start_warm(search, &self.at) {
                return false;
            }
        } else {
            self.polymatrix.start_cold(&self.cover);
        }
        let max_pivots = if warm { WARM_PIVOTS } else { COLD_PIVOTS };
        self.polymatrix.solve(search, max_pivots, &mut self.towards)
    }
}

/// Searches from a number of profiles: start 0 is uniform, the others are random.
pub(crate) fn search(
    search: &mut Search<'_>,
    newton: &mut Newton,
    starts: std::ops::Range<u32>,
    seed: u64,
) {
    let game = search.game;
    let total = game.total_actions();
    let widest = game.shape().iter().copied().max().unwrap_or(1);
    let polymatrix = Polymatrix::new(game);
    let mut work = Work {
        cover: vec![1.0; polymatrix.size],
        polymatrix,
        slopes: vec![0.0; widest * total],
        at: game.uniform(),
        towards: vec![0.0; total],
        middle: vec![0.0; total],
    };
    for start in starts {
        if start > 0 {
            let mut stream = Stream::new(seed ^ u64::from(start) << 32);
            stream.profile(game, &mut work.at);
            work.cover.iter_mut().for_each(|c| *c = 0.5 + stream.unit());
        }
        rounds(search, newton, &mut work);
        if search.solved() || search.is_stopped() {
            return;
        }
    }
}

fn rounds(search: &mut Search<'_>, newton: &mut Newton, work: &mut Work) {
    let mut merit = search.offer(Method::IteratedPolymatrix, &work.at);
    for round in 0..ROUNDS {
        search.iterations += 1;
        if !work.approximate(search, round > 0) && !work.approximate(search, false) {
            return;
        }
        let regret = search.offer(Method::IteratedPolymatrix, &work.towards);
        if regret < NEAR {
            let Work { towards, .. } = work;
            let support = |k: usize| towards[k] > 1e-9;
            if let Some(better) = newton.solve(search, support, towards) {
                search.offer(Method::IteratedPolymatrix, better);
            }
        }
        if search.solved() || search.is_stopped() {
            return;
        }
        merit = advance(search, work, merit, regret, round);
    }
}

/// Moves towards the approximation's equilibrium by the largest tried share that reduces the regret,
/// or else by a share that shrinks with the rounds. Returns the regret there.
fn advance(
    search: &mut Search<'_>,
    work: &mut Work,
    merit: f64,
    full_step: f64,
    round: u32,
) -> f64 {
    if full_step < merit {
        work.at.copy_from_slice(&work.towards);
        return full_step;
    }
    for part in [0.5, 0.25, 0.125] {
        if search.is_stopped() {
            return merit;
        }
        mix(work, part);
        let regret = search.offer(Method::IteratedPolymatrix, &work.middle);
        if regret < merit {
            work.at.copy_from_slice(&work.middle);
            return regret;
        }
    }
    mix(work, 1.0 / f64::from(round + 2));
    work.at.copy_from_slice(&work.middle);
    search.offer(Method::IteratedPolymatrix, &work.at)
}

fn mix(work: &mut Work, part: f64) {
    let pairs = work.at.iter().zip(&work.towards);
    for (to, (from, towards)) in work.middle.iter_mut().zip(pairs) {
        *to = from + part * (towards - from);
    }
}
