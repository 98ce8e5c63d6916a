//! Two-player games by the complementary pivoting of Lemke and Howson ("Equilibrium Points of Bimatrix
//! Games", 1964), with lexicographic pivots, from every initial label.

use crate::{
    newton::Newton,
    search::{Method, Search},
    tableau::Tableau,
};

/// Added to scaled payoffs, because the best-response polytopes require positive ones.
const LIFT: f64 = 0.5;
/// The bound on a path. An exact path is finite, but one that rounding has derailed need not be.
const PIVOTS_PER_LABEL: usize = 100_000;

/// The best-response polytopes: that of the first player's strategies, with a row for each action of
/// the second, and that of the second's. Variables are numbered by their labels.
#[derive(Debug)]
pub(crate) struct Polytopes {
    pub(crate) tableaux: [Tableau; 2],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Polytopes {
    pub(crate) fn new(game: &crate::Game) -> Self {
        let (m, n) = (game.shape()[0], game.shape()[1]);
        let (a, b) = (game.unit(0), game.unit(1));
        let first = Tableau::new(m..m + n, 0..m, |j, i| match i {
            i if i < m => b[i * n + j] + LIFT,
            _ => 1.0,
        });
        let second = Tableau::new(0..m, m..m + n, |i, j| match j {
            j if j < n => a[i * n + j] + LIFT,
            _ => 1.0,
        });
        Self {
            tableaux: [first, second],
            rows: m,
            columns: n,
        }
    }
}

/// Follows the paths of all labels until one ends in an equilibrium.
pub(crate) fn search(search: &mut Search<'_>, newton: &mut Newton) {
    let start = Polytopes::new(search.game);
    let mut work = start.tableaux.clone();
    let mut weights = vec![0.0; start.rows + start.columns];
    for label in 0..start.rows + start.columns {
        work[0].reset(&start.tableaux[0]);
        work[1].reset(&start.tableaux[1]);
        if follow(search, &mut work, label, start.rows) {
            read_weights(&work, start.rows, &mut weights);
            offer(search, newton, Method::LemkeHowson, &weights);
        }
        if search.solved() || search.is_stopped() {
            return;
        }
    }
}

/// Offers a profile, and what Newton's method makes of it where it is not exact.
pub(crate) fn offer(search: &mut Search<'_>, newton: &mut Newton, method: Method, weights: &[f64]) {
    let regret = search.offer(method, weights);
    if regret <= crate::search::EXACT || !regret.is_finite() {
        return;
    }
    let support = |k: usize| weights[k] > 1e-9;
    if let Some(better) = newton.solve(search, support, weights) {
        search.offer(method, better);
    }
}

/// Drops a label, then each duplicate label in turn, until the missing one is picked up.
fn follow(search: &mut Search<'_>, work: &mut [Tableau; 2], label: usize, rows: usize) -> bool {
    let mut side = usize::from(label >= rows);
    let mut entering = label;
    for pivot in 0..PIVOTS_PER_LABEL {
        if pivot % 8 == 7 && search.is_stopped() {
            return false;
        }
        let tableau = &mut work[side];
        let pivot = tableau
            .column(entering)
            .and_then(|column| Some((tableau.leaving(column)?, column)));
        let Some((row, column)) = pivot else {
            return false;
        };
        search.iterations += 1;
        entering = tableau.pivot(row, column);
        if entering == label {
            return true;
        }
        side = 1 - side;
    }
    false
}

fn read_weights(work: &[Tableau; 2], rows: usize, weights: &mut [f64]) {
    weights.fill(0.0);
    for (variable, value) in work[0].solution().filter(|(v, _)| *v < rows) {
        weights[variable] = value;
    }
    for (variable, value) in work[1].solution().filter(|(v, _)| *v >= rows) {
        weights[variable] = value;
    }
    for strategy in [0..rows, rows..weights.len()] {
        let sum: f64 = weights[strategy.clone()].iter().sum();
        weights[strategy].iter_mut().for_each(|w| *w /= sum);
    }
}
