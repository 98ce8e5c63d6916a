//! Two-player games in normal form.
//!
//! Pure equilibria first, then a linear programme when the game is zero-sum, then supports in order
//! of size. The best profile seen so far is always at hand, so that a search that is cut short
//! still answers, with the regret that it has.

use crate::{support, zero_sum};

/// Relative to the largest payoff difference.
pub const TOLERANCE: f64 = 1e-9;
pub const MAX_ACTIONS: usize = 50;

/// Payoffs, row-major: the row player's action varies slowest.
#[derive(Debug, Clone, PartialEq)]
pub struct Bimatrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) a: Vec<f64>,
    pub(crate) b: Vec<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GameError {
    #[error("a player needs 1 to {MAX_ACTIONS} actions")]
    Actions,
    #[error("{given} payoffs given; {rows} x {columns} actions need {}", rows * columns)]
    Payoffs {
        given: usize,
        rows: usize,
        columns: usize,
    },
    #[error("payoffs must be finite")]
    NotFinite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Pure,
    LinearProgramme,
    SupportEnumeration,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::LinearProgramme => "linear_programme",
            Self::SupportEnumeration => "support_enumeration",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    pub profile: [Vec<f64>; 2],
    pub payoffs: [f64; 2],
    pub regret: [f64; 2],
    pub method: Method,
    /// Candidates looked at.
    pub iterations: u64,
    /// In units of the payoffs.
    pub tolerance: f64,
}

impl Solution {
    pub fn nash_conv(&self) -> f64 {
        self.regret[0] + self.regret[1]
    }

    pub fn converged(&self) -> bool {
        self.regret.iter().all(|r| *r <= self.tolerance)
    }

    pub fn is_pure(&self) -> bool {
        self.profile
            .iter()
            .all(|s| s.iter().filter(|p| **p > 0.0).count() == 1)
    }
}

impl Bimatrix {
    pub fn new(rows: usize, columns: usize, a: Vec<f64>, b: Vec<f64>) -> Result<Self, GameError> {
        if !(1..=MAX_ACTIONS).contains(&rows) || !(1..=MAX_ACTIONS).contains(&columns) {
            return Err(GameError::Actions);
        }
        for payoffs in [&a, &b] {
            if payoffs.len() != rows * columns {
                return Err(GameError::Payoffs {
                    given: payoffs.len(),
                    rows,
                    columns,
                });
            }
        }
        if !a.iter().chain(&b).all(|v| v.is_finite()) {
            return Err(GameError::NotFinite);
        }
        Ok(Self {
            rows,
            columns,
            a,
            b,
        })
    }

    /// Solves; `stopped` is asked often and ends the search with the best profile so far.
    pub fn solve(&self, stopped: &dyn Fn() -> bool) -> Solution {
        let tolerance = TOLERANCE * self.scale();
        let mut best = self.best_pure(tolerance);
        if best.converged() {
            return best;
        }
        if self.is_zero_sum(tolerance)
            && let Some(profile) = zero_sum::solve(self)
        {
            let solution = self.certify(
                profile,
                Method::LinearProgramme,
                best.iterations + 1,
                tolerance,
            );
            if solution.converged() {
                return solution;
            }
            best = better(best, solution);
        }
        support::search(self, best, tolerance, stopped)
    }

    /// The pure profile with the least regret.
    fn best_pure(&self, tolerance: f64) -> Solution {
        let mut best: Option<Solution> = None;
        let mut seen = 0;
        for i in 0..self.rows {
            for j in 0..self.columns {
                seen += 1;
                let profile = [unit(self.rows, i), unit(self.columns, j)];
                let solution = self.certify(profile, Method::Pure, seen, tolerance);
                if solution.converged() {
                    return solution;
                }
                best = Some(match best {
                    Some(best) => better(best, solution),
                    None => solution,
                });
            }
        }
        best.expect("a game has at least one profile")
    }

    /// A profile with its payoffs and regrets, computed from the raw payoffs.
    pub fn certify(
        &self,
        profile: [Vec<f64>; 2],
        method: Method,
        iterations: u64,
        tolerance: f64,
    ) -> Solution {
        let by_row = self.row_values(&profile[1]);
        let by_column = self.column_values(&profile[0]);
        let dot = |x: &[f64], v: &[f64]| x.iter().zip(v).map(|(p, v)| p * v).sum::<f64>();
        let payoffs = [dot(&profile[0], &by_row), dot(&profile[1], &by_column)];
        let gain = |values: &[f64], now: f64| {
            (values.iter().copied().fold(f64::MIN, f64::max) - now).max(0.0)
        };
        let regret = [gain(&by_row, payoffs[0]), gain(&by_column, payoffs[1])];
        Solution {
            profile,
            payoffs,
            regret,
            method,
            iterations,
            tolerance,
        }
    }

    /// What each row earns against a column strategy.
    pub(crate) fn row_values(&self, y: &[f64]) -> Vec<f64> {
        self.a
            .chunks_exact(self.columns)
            .map(|row| row.iter().zip(y).map(|(v, p)| v * p).sum())
            .collect()
    }

    pub(crate) fn column_values(&self, x: &[f64]) -> Vec<f64> {
        let mut values = vec![0.0; self.columns];
        for (row, p) in self.b.chunks_exact(self.columns).zip(x) {
            values
                .iter_mut()
                .zip(row)
                .for_each(|(total, v)| *total += v * p);
        }
        values
    }

    /// The largest payoff difference of a player, which regrets are measured against.
    fn scale(&self) -> f64 {
        let span = |v: &[f64]| {
            let (low, high) = v
                .iter()
                .fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
            high - low
        };
        span(&self.a).max(span(&self.b)).max(f64::MIN_POSITIVE)
    }

    fn is_zero_sum(&self, tolerance: f64) -> bool {
        let first = self.a[0] + self.b[0];
        self.a
            .iter()
            .zip(&self.b)
            .all(|(a, b)| (a + b - first).abs() <= tolerance)
    }
}

pub(crate) fn better(one: Solution, other: Solution) -> Solution {
    if other.nash_conv() < one.nash_conv() {
        other
    } else {
        one
    }
}

fn unit(len: usize, at: usize) -> Vec<f64> {
    let mut vector = vec![0.0; len];
    vector[at] = 1.0;
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solve(rows: usize, columns: usize, a: &[f64], b: &[f64]) -> Solution {
        Bimatrix::new(rows, columns, a.to_vec(), b.to_vec())
            .unwrap()
            .solve(&|| false)
    }

    fn near(one: &[f64], other: &[f64]) -> bool {
        one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn textbook_games() {
        let dilemma = solve(2, 2, &[3.0, 0.0, 5.0, 1.0], &[3.0, 5.0, 0.0, 1.0]);
        assert!(dilemma.converged() && dilemma.is_pure());
        assert_eq!(dilemma.profile, [vec![0.0, 1.0], vec![0.0, 1.0]]);

        let pennies = solve(2, 2, &[1.0, -1.0, -1.0, 1.0], &[-1.0, 1.0, 1.0, -1.0]);
        assert!(pennies.converged() && pennies.method == Method::LinearProgramme);
        assert!(near(&pennies.profile[0], &[0.5, 0.5]) && near(&pennies.payoffs, &[0.0, 0.0]));

        let a = [0.0, -1.0, 1.0, 1.0, 0.0, -1.0, -1.0, 1.0, 0.0];
        let rps = solve(3, 3, &a, &a.map(|v| -v));
        assert!(rps.converged() && near(&rps.profile[1], &[1.0 / 3.0; 3]));

        // A general-sum game with only a mixed equilibrium.
        let mixed = solve(2, 2, &[2.0, 0.0, 0.0, 1.0], &[0.0, 1.0, 3.0, 0.0]);
        assert!(mixed.converged() && mixed.method == Method::SupportEnumeration);
        assert!(
            near(&mixed.profile[0], &[0.75, 0.25])
                && near(&mixed.profile[1], &[1.0 / 3.0, 2.0 / 3.0])
        );
    }

    #[test]
    fn odd_shapes_and_scales() {
        assert!(solve(1, 4, &[1.0, 2.0, 3.0, 4.0], &[0.0, 9.0, 9.0, 1.0]).converged());
        assert!(
            solve(
                3,
                2,
                &[1.0, 0.0, 0.0, 1.0, 0.4, 0.4],
                &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
            )
            .converged()
        );
        assert!(solve(2, 2, &[0.0; 4], &[0.0; 4]).converged());
        for scale in [1e-200, 1e-9, 1e9, 1e200] {
            let a = [2.0, 0.0, 0.0, 1.0].map(|v| v * scale);
            let b = [0.0, 1.0, 3.0, 0.0].map(|v| v * scale);
            let s = solve(2, 2, &a, &b);
            assert!(
                s.converged() && near(&s.profile[0], &[0.75, 0.25]),
                "{scale}: {s:?}"
            );
        }
    }

    #[test]
    fn random_games_are_solved_and_certified() {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 31)
        };
        for _ in 0..300 {
            let (m, n) = (1 + (next() * 5.0) as usize, 1 + (next() * 5.0) as usize);
            let a: Vec<f64> = (0..m * n).map(|_| next()).collect();
            let b: Vec<f64> = (0..m * n).map(|_| next()).collect();
            let s = solve(m, n, &a, &b);
            assert!(s.converged(), "{m}x{n} {a:?} {b:?} {s:?}");
            for strategy in &s.profile {
                assert!(
                    (strategy.iter().sum::<f64>() - 1.0).abs() < 1e-9
                        && strategy.iter().all(|p| *p >= 0.0)
                );
            }
        }
    }

    #[test]
    fn a_search_that_is_cut_short_says_so() {
        let a: Vec<f64> = (0..64).map(|i| f64::from(i * 7919 % 101)).collect();
        let b: Vec<f64> = a
            .iter()
            .enumerate()
            .map(|(i, v)| 100.0 - v + (i % 3) as f64)
            .collect();
        let s = Bimatrix::new(8, 8, a, b).unwrap().solve(&|| true);
        assert!(!s.converged() && s.nash_conv() > 0.0);
    }

    #[test]
    fn broken_games_are_refused() {
        let new =
            |r, c, a: &[f64], b: &[f64]| Bimatrix::new(r, c, a.to_vec(), b.to_vec()).unwrap_err();
        assert_eq!(new(0, 2, &[], &[]), GameError::Actions);
        assert_eq!(new(51, 1, &[0.0; 51], &[0.0; 51]), GameError::Actions);
        assert!(matches!(
            new(2, 2, &[0.0; 3], &[0.0; 4]),
            GameError::Payoffs { given: 3, .. }
        ));
        assert_eq!(new(1, 1, &[f64::NAN], &[0.0]), GameError::NotFinite);
    }
}
