//! Two-player zero-sum games as one linear program (Dantzig, "A Proof of the Equivalence of the
//! Programming Problem and the Game Problem", 1951): the primal solution is one player's strategy, the
//! dual solution the other's.

use crate::{
    Game,
    lemke_howson::Polytopes,
    newton::Newton,
    search::{Method, Search},
};

/// Reduced costs up to this are zero.
const COST: f64 = 1e-12;

/// Whether the scaled payoffs sum to one everywhere: the payoffs are then opposed, up to scale.
pub(crate) fn applies(game: &Game) -> bool {
    game.players() == 2
        && game
            .unit(0)
            .iter()
            .zip(game.unit(1))
            .all(|(a, b)| (a + b - 1.0).abs() <= 1e-12)
}

pub(crate) fn search(search: &mut Search<'_>, newton: &mut Newton) {
    let polytopes = Polytopes::new(search.game);
    let (m, n) = (polytopes.rows, polytopes.columns);
    let [_, mut tableau] = polytopes.tableaux;
    // The reduced cost of each column.
    let mut costs = vec![1.0f64; n];
    while let Some(column) = (0..n)
        .max_by(|a, b| costs[*a].total_cmp(&costs[*b]))
        .filter(|c| costs[*c] > COST)
    {
        let Some(row) = tableau.leaving(column) else {
            return;
        };
        if search.iterations % 8 == 7 && search.is_stopped() {
            return;
        }
        search.iterations += 1;
        tableau.pivot(row, column);
        let cost = std::mem::take(&mut costs[column]);
        crate::kernel::add_scaled(&mut costs, -cost, &tableau.row(row)[..n]);
    }
    let mut weights = vec![0.0; m + n];
    for (variable, value) in tableau.solution().filter(|(v, _)| *v >= m) {
        weights[variable] = value;
    }
    for (variable, cost) in tableau.columns().iter().zip(&costs) {
        if *variable < m {
            weights[*variable] = -cost;
        }
    }
    for strategy in [0..m, m..m + n] {
        let sum: f64 = weights[strategy.clone()].iter().sum();
        weights[strategy].iter_mut().for_each(|w| *w /= sum);
    }
    crate::lemke_howson::offer(search, newton, Method::LinearProgram, &weights);
}
