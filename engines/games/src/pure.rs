//! Pure equilibria and dominated actions, which take no search.

use crate::Game;

/// The pure equilibria: every joint action from which no player gains by deviating unilaterally.
pub(crate) fn equilibria(game: &Game) -> Vec<usize> {
    let mut is_best = vec![true; game.cells()];
    for player in 0..game.players() {
        let (actions, stride) = (game.shape()[player], game.stride(player));
        let payoffs = game.payoffs(player);
        for block in (0..game.cells()).step_by(actions * stride) {
            for first in block..block + stride {
                let column = || (first..).step_by(stride).take(actions);
                let best = column().map(|c| payoffs[c]).fold(f64::MIN, f64::max);
                column()
                    .filter(|c| payoffs[*c] < best)
                    .for_each(|c| is_best[c] = false);
            }
        }
    }
    (0..game.cells()).filter(|c| is_best[*c]).collect()
}

/// The flat profile of a joint action.
pub(crate) fn profile(game: &Game, cell: usize) -> Vec<f64> {
    let mut flat = vec![0.0; game.total_actions()];
    for (player, action) in game.joint(cell).into_iter().enumerate() {
        flat[game.actions(player).start + action] = 1.0;
    }
    flat
}

/// Each player's actions that survive the iterated elimination of actions that another pure action
/// strictly dominates (Gale, Kuhn and Tucker, 1950). No equilibrium uses an eliminated action.
pub(crate) fn undominated(game: &Game, stopped: &dyn Fn() -> bool) -> Vec<Vec<usize>> {
    let mut kept: Vec<Vec<usize>> = game.shape().iter().map(|a| (0..*a).collect()).collect();
    let mut unchanged = 0;
    let mut player = 0;
    while unchanged < game.players() && !stopped() {
        let others = opponents(game, player, &kept);
        let before = kept[player].len();
        remove_dominated(game, player, &mut kept[player], &others, stopped);
        unchanged = if kept[player].len() == before {
            unchanged + 1
        } else {
            1
        };
        player = (player + 1) % game.players();
    }
    kept
}

/// The joint actions of the opponents' surviving actions, with the player's first action.
fn opponents(game: &Game, player: usize, kept: &[Vec<usize>]) -> Vec<usize> {
    let mut cells = vec![0];
    for (other, actions) in kept.iter().enumerate().filter(|(j, _)| *j != player) {
        let stride = game.stride(other);
        cells = cells
            .iter()
            .flat_map(|cell| actions.iter().map(move |a| cell + a * stride))
            .collect();
    }
    cells
}

fn remove_dominated(
    game: &Game,
    player: usize,
    own: &mut Vec<usize>,
    others: &[usize],
    stopped: &dyn Fn() -> bool,
) {
    let (payoffs, stride) = (game.payoffs(player), game.stride(player));
    let is_dominated = |weak: usize, strong: usize| {
        others
            .iter()
            .all(|c| payoffs[c + strong * stride] > payoffs[c + weak * stride])
    };
    let mut index = 0;
    while index < own.len() && !stopped() {
        let weak = own[index];
        if own.iter().any(|strong| is_dominated(weak, *strong)) {
            own.remove(index);
        } else {
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dominated_actions_are_eliminated_iteratively() {
        // The first column dominates the others only after the second row is eliminated.
        let game = Game::new(
            vec![2, 3],
            vec![
                vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
                vec![2.0, 1.0, 0.0, 0.0, 1.0, 2.0],
            ],
        )
        .unwrap();
        assert_eq!(undominated(&game, &|| false), [vec![0], vec![0]]);
        assert_eq!(equilibria(&game), [0]);
        assert_eq!(profile(&game, 4), [0.0, 1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn weakly_dominated_actions_are_kept() {
        let game = Game::new(vec![2, 2], vec![vec![1.0, 1.0, 1.0, 0.0], vec![0.0; 4]]).unwrap();
        assert_eq!(undominated(&game, &|| false), [vec![0, 1], vec![0, 1]]);
        assert_eq!(equilibria(&game), [0, 1, 2]);
    }
}
