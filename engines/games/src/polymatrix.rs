//! Games of any number of players by iterated polymatrix approximation (Govindan and Wilson, 2004):
//! near a profile a game is one of pairs, whose equilibrium Lemke's path finds (Howson, 1972); from
//! there the next approximation is taken, and Newton's method ends it.

use crate::{
    Game,
    newton::Newton,
    random::Stream,
    search::{Method, Search},
    tableau::Tableau,
};

/// Keeps all costs positive, so that Lemke's path ends in an equilibrium.
const LIFT: f64 = 1.1;
/// A path from nowhere that is longer than this, in multiples of the rows, is given up.
const FROM_NOWHERE: usize = 20;
/// A path from a profile is short, or leads astray: one from nowhere is then shorter.
const FROM_PROFILE: usize = 2;
/// Approximations from one start.
const ROUNDS: u32 = 40;
/// From here on a support is worth an attempt of Newton's method.
const NEAR: f64 = 0.05;

/// The equilibrium conditions of a game of pairs, as a linear complementarity problem: slacks come
/// first, then what they are slacks of (probabilities, then each player's level), then the
/// artificial variable.
#[derive(Debug)]
struct Pairs {
    tableau: Tableau,
    start: Tableau,
    size: usize,
    /// The variables that are to be basic at the start.
    wanted: Vec<bool>,
    values: Vec<f64>,
}

impl Pairs {
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

    /// Writes the approximation at a profile.
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

    /// The artificial variable covers what it must.
    fn start_anywhere(&mut self, cover: &[f64]) {
        for (row, cover) in cover.iter().enumerate() {
            self.tableau.row_mut(row)[self.size] = -cover;
        }
    }

    /// The artificial variable covers what a profile lacks, and its support is made basic: the path
    /// then leads away from this profile. False when its equations are singular.
    fn start_at(&mut self, search: &Search<'_>, at: &[f64]) -> bool {
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
                // A slack that would be negative is covered; others stand as they are.
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

    /// Makes a variable basic in place of a slack that is to leave.
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

    /// The row that the artificial variable must cover most; `None` when there is none.
    fn most_lacking(&self) -> Option<usize> {
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

    /// Lemke's path (1965). Writes the profile; false when the path ends in a ray.
    fn solve(&mut self, search: &Search<'_>, longest: usize, profile: &mut [f64]) -> bool {
        let (size, artificial) = (self.size, 2 * self.size);
        let Some(row) = self.most_lacking() else {
            self.read(profile);
            return true;
        };
        let mut left = self.tableau.pivot(row, size);
        for _ in 0..longest * size {
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

/// Scratch of a search, so that its rounds allocate nothing.
struct Work {
    pairs: Pairs,
    slopes: Vec<f64>,
    cover: Vec<f64>,
    at: Vec<f64>,
    towards: Vec<f64>,
    middle: Vec<f64>,
}

impl Work {
    /// Solves the approximation at the present profile, from there or from nowhere.
    fn approximate(&mut self, search: &mut Search<'_>, near: bool) -> bool {
        self.pairs.fill(search, &self.at, &mut self.slopes);
        if near {
            if !self.pairs.start_at(search, &self.at) {
                return false;
            }
        } else {
            self.pairs.start_anywhere(&self.cover);
        }
        let longest = if near { FROM_PROFILE } else { FROM_NOWHERE };
        self.pairs.solve(search, longest, &mut self.towards)
    }
}

/// Tries a number of starts: an even mix, then random ones.
pub(crate) fn search(
    search: &mut Search<'_>,
    newton: &mut Newton,
    starts: std::ops::Range<u32>,
    seed: u64,
) {
    let game = search.game;
    let total = game.total_actions();
    let widest = game.shape().iter().copied().max().unwrap_or(1);
    let pairs = Pairs::new(game);
    let mut work = Work {
        cover: vec![1.0; pairs.size],
        pairs,
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

/// Goes as far towards the approximation's equilibrium as that helps, and else a shrinking part of
/// the way. Returns the regret there.
fn advance(
    search: &mut Search<'_>,
    work: &mut Work,
    merit: f64,
    at_the_end: f64,
    round: u32,
) -> f64 {
    if at_the_end < merit {
        work.at.copy_from_slice(&work.towards);
        return at_the_end;
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
