//! Support enumeration in order of size, balanced supports first (Porter, Nudelman and Shoham,
//! 2008): for a pair of supports, the strategies that make the other player indifferent.

use crate::{
    bimatrix::{Bimatrix, Method, Solution, better},
    linear,
};

/// How many candidates between two looks at the clock.
const CHECK_EVERY: u64 = 64;

pub(crate) fn search(
    game: &Bimatrix,
    mut best: Solution,
    tolerance: f64,
    stopped: &dyn Fn() -> bool,
) -> Solution {
    let mut seen = best.iterations;
    for (own, other) in sizes(game.rows, game.columns) {
        let mut rows = Subset::first(game.rows, own);
        while let Some(support) = rows.next() {
            let mut columns = Subset::first(game.columns, other);
            while let Some(against) = columns.next() {
                seen += 1;
                if seen.is_multiple_of(CHECK_EVERY) && stopped() {
                    best.iterations = seen;
                    return best;
                }
                let Some(profile) = indifferent(game, &support, &against) else {
                    continue;
                };
                let solution = game.certify(profile, Method::SupportEnumeration, seen, tolerance);
                if solution.converged() {
                    return solution;
                }
                best = better(best, solution);
            }
        }
    }
    best.iterations = seen;
    best
}

/// Pairs of support sizes: by their difference, then by their sum. Pure pairs have been tried.
fn sizes(rows: usize, columns: usize) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = (1..=rows)
        .flat_map(|i| (1..=columns).map(move |j| (i, j)))
        .collect();
    all.retain(|pair| *pair != (1, 1));
    all.sort_by_key(|(i, j)| (i.abs_diff(*j), i + j));
    all
}

/// The profile on these supports where each player is indifferent between the actions it uses.
fn indifferent(game: &Bimatrix, support: &[usize], against: &[usize]) -> Option<[Vec<f64>; 2]> {
    let n = game.columns;
    let y = mix(support, against, game.columns, |i, j| game.a[i * n + j])?;
    let x = mix(against, support, game.rows, |j, i| game.b[i * n + j])?;
    Some([x, y])
}

/// Weights over `over` that make every action in `equal` earn the same. With supports of different
/// sizes there are too many or too few equations: least squares then finds a solution if there is
/// one, and the certificate judges it.
fn mix(
    equal: &[usize],
    over: &[usize],
    len: usize,
    payoff: impl Fn(usize, usize) -> f64,
) -> Option<Vec<f64>> {
    let k = over.len();
    let scale = equal
        .iter()
        .flat_map(|i| {
            over.iter()
                .map(|j| payoff(*i, *j).abs())
                .collect::<Vec<_>>()
        })
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut rows: Vec<Vec<f64>> = equal
        .windows(2)
        .map(|pair| {
            over.iter()
                .map(|j| payoff(pair[0], *j) / scale - payoff(pair[1], *j) / scale)
                .collect()
        })
        .collect();
    rows.push(vec![1.0; k]);
    let right = |r: usize| if r + 1 == rows.len() { 1.0 } else { 0.0 };
    let solved = if rows.len() == k {
        let mut matrix: Vec<f64> = rows.concat();
        let mut x: Vec<f64> = (0..k).map(right).collect();
        linear::solve(&mut matrix, &mut x)?;
        x
    } else {
        least_squares(&rows, &(0..rows.len()).map(right).collect::<Vec<_>>(), k)?
    };
    if solved.iter().any(|p| *p < -1e-12 || !p.is_finite()) {
        return None;
    }
    let total: f64 = solved.iter().map(|p| p.max(0.0)).sum();
    let mut weights = vec![0.0; len];
    for (j, p) in over.iter().zip(&solved) {
        weights[*j] = p.max(0.0) / total;
    }
    (total > 0.5).then_some(weights)
}

fn least_squares(rows: &[Vec<f64>], right: &[f64], k: usize) -> Option<Vec<f64>> {
    let mut normal = vec![0.0; k * k];
    let mut target = vec![0.0; k];
    for (row, r) in rows.iter().zip(right) {
        for i in 0..k {
            target[i] += row[i] * r;
            for j in 0..k {
                normal[i * k + j] += row[i] * row[j];
            }
        }
    }
    // Too few equations: the smallest solution, by a little regularisation.
    for i in 0..k {
        normal[i * k + i] += 1e-12;
    }
    linear::solve(&mut normal, &mut target)?;
    Some(target)
}

/// The subsets of a size, in lexicographic order.
struct Subset {
    len: usize,
    next: Option<Vec<usize>>,
}

impl Subset {
    fn first(len: usize, size: usize) -> Self {
        Self {
            len,
            next: Some((0..size).collect()),
        }
    }

    fn next(&mut self) -> Option<Vec<usize>> {
        let current = self.next.take()?;
        let size = current.len();
        let movable = (0..size).rev().find(|i| current[*i] + size - i < self.len);
        self.next = movable.map(|at| {
            let mut following = current.clone();
            following[at] += 1;
            for i in at + 1..size {
                following[i] = following[i - 1] + 1;
            }
            following
        });
        Some(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_all_there_once() {
        let mut subsets = Subset::first(5, 3);
        let mut all = Vec::new();
        while let Some(s) = subsets.next() {
            all.push(s);
        }
        assert_eq!(all.len(), 10);
        assert!(all.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(all[9], [2, 3, 4]);
    }
}
