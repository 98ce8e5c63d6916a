//! Expected payoffs and their derivatives by the other players' strategies. This is the inner loop of
//! every solver, so it allocates nothing after its construction.

use crate::Game;

/// The buffers for one game.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// A payoff tensor after one, two, … axes were contracted.
    levels: Vec<Vec<f64>>,
}

/// The lengths of a tensor's axes; a contracted axis has length one.
type Dims = [usize; crate::game::MAX_PLAYERS];

impl Kernel {
    pub(crate) fn new(game: &Game) -> Self {
        let n = game.players();
        let levels = if n > 2 { n - 1 } else { 1 };
        Self {
            levels: vec![vec![0.0; game.cells()]; levels],
        }
    }

    /// The expected scaled payoff of each of a player's actions when the others play `profile`.
    pub(crate) fn values(&mut self, game: &Game, player: usize, profile: &[f64], out: &mut [f64]) {
        let mut dims = dims(game);
        let mut level = 0;
        for axis in (0..game.players()).filter(|j| *j != player) {
            self.contract(game, player, level, &mut dims, axis, profile);
            level += 1;
        }
        let source = self.at(game, player, level);
        out.copy_from_slice(&source[..out.len()]);
    }

    /// The derivatives of a player's action values by the other players' probabilities: a row for each
    /// of its actions, a column for each action of all players. The player's own columns are zero.
    fn jacobian(&mut self, game: &Game, player: usize, profile: &[f64], out: &mut [f64]) {
        out.fill(0.0);
        let mut others = [0; crate::game::MAX_PLAYERS];
        let mut count = 0;
        for j in (0..game.players()).filter(|j| *j != player) {
            others[count] = j;
            count += 1;
        }
        if count > 0 {
            self.descend(game, player, profile, 0, dims(game), &others[..count], out);
        }
    }

    /// The values of a player's actions and their derivatives.
    pub(crate) fn linearise(
        &mut self,
        game: &Game,
        player: usize,
        profile: &[f64],
        slopes: &mut [f64],
        values: &mut [f64],
    ) {
        self.jacobian(game, player, profile, slopes);
        // Payoffs are linear in the strategy of any single opponent.
        let other = game.actions(if player == 0 { 1 } else { 0 });
        let lines = slopes.chunks_exact(game.total_actions());
        for (value, line) in values.iter_mut().zip(lines) {
            *value = dot(&line[other.clone()], &profile[other.clone()]);
        }
    }

    /// Halves the set of opponents recursively, so that they share the contractions.
    #[allow(clippy::too_many_arguments)]
    fn descend(
        &mut self,
        game: &Game,
        player: usize,
        profile: &[f64],
        level: usize,
        dims: Dims,
        others: &[usize],
        out: &mut [f64],
    ) {
        if let [other] = others {
            return self.emit(game, player, level, *other, out);
        }
        let (left, right) = others.split_at(others.len() / 2);
        for (kept, summed) in [(left, right), (right, left)] {
            let (mut dims, mut level) = (dims, level);
            for axis in summed {
                self.contract(game, player, level, &mut dims, *axis, profile);
                level += 1;
            }
            self.descend(game, player, profile, level, dims, kept, out);
        }
    }

    fn at<'a>(&'a self, game: &'a Game, player: usize, level: usize) -> &'a [f64] {
        match level {
            0 => game.unit(player),
            level => &self.levels[level - 1],
        }
    }

    fn emit(&self, game: &Game, player: usize, level: usize, other: usize, out: &mut [f64]) {
        let source = self.at(game, player, level);
        let columns = game.total_actions();
        let (own, theirs) = (game.shape()[player], game.shape()[other]);
        let first = game.actions(other).start;
        for a in 0..own {
            let row = &mut out[a * columns + first..a * columns + first + theirs];
            if player < other {
                row.copy_from_slice(&source[a * theirs..(a + 1) * theirs]);
            } else {
                for (b, to) in row.iter_mut().enumerate() {
                    *to = source[b * own + a];
                }
            }
        }
    }

    /// Contracts one axis of the tensor at `level` with that player's strategy.
    fn contract(
        &mut self,
        game: &Game,
        player: usize,
        level: usize,
        dims: &mut Dims,
        axis: usize,
        profile: &[f64],
    ) {
        let n = game.players();
        let outer: usize = dims[..axis].iter().product();
        let inner: usize = dims[axis + 1..n].iter().product();
        let weights = &profile[game.actions(axis)];
        let (before, after) = self.levels.split_at_mut(level);
        let source = match level {
            0 => game.unit(player),
            level => &before[level - 1],
        };
        let target = &mut after[0][..outer * inner];
        if inner == 1 {
            for (to, row) in target.iter_mut().zip(source.chunks_exact(weights.len())) {
                *to = dot(row, weights);
            }
        } else {
            let blocks = source.chunks_exact(weights.len() * inner);
            for (to, block) in target.chunks_exact_mut(inner).zip(blocks) {
                to.fill(0.0);
                let used = weights.iter().zip(block.chunks_exact(inner));
                for (weight, row) in used.filter(|(w, _)| **w != 0.0) {
                    add_scaled(to, *weight, row);
                }
            }
        }
        dims[axis] = 1;
    }
}

fn dims(game: &Game) -> Dims {
    let mut dims = [1; crate::game::MAX_PLAYERS];
    dims[..game.players()].copy_from_slice(game.shape());
    dims
}

pub(crate) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(a, b)| a * b).sum()
}

pub(crate) fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t += factor * f;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// An action's value as a sum over all joint actions.
    fn by_definition(game: &Game, player: usize, action: usize, profile: &[f64]) -> f64 {
        (0..game.cells())
            .filter_map(|cell| {
                let joint = game.joint(cell);
                let others = (0..game.players())
                    .filter(|j| *j != player)
                    .map(|j| profile[game.actions(j).start + joint[j]])
                    .product::<f64>();
                (joint[player] == action).then(|| others * game.unit(player)[cell])
            })
            .sum()
    }

    #[test]
    fn values_and_derivatives_agree_with_the_definition() {
        for (seed, shape) in [
            (1, vec![3]),
            (2, vec![3, 2]),
            (3, vec![2, 3, 4]),
            (4, vec![2, 1, 3, 2]),
            (5, vec![2, 3, 2, 2, 3]),
        ] {
            let game = testing::random(seed, &shape);
            let profile = testing::random_profile(seed, &game);
            let mut kernel = Kernel::new(&game);
            let columns = game.total_actions();
            for (player, actions) in shape.iter().copied().enumerate() {
                let mut values = vec![0.0; actions];
                kernel.values(&game, player, &profile, &mut values);
                let mut jacobian = vec![0.0; actions * columns];
                kernel.jacobian(&game, player, &profile, &mut jacobian);
                for action in 0..actions {
                    let truth = by_definition(&game, player, action, &profile);
                    assert!((values[action] - truth).abs() < 1e-12, "{shape:?}");
                    for other in (0..shape.len()).filter(|j| *j != player) {
                        for b in 0..shape[other] {
                            let mut pure = profile.clone();
                            pure[game.actions(other)].fill(0.0);
                            pure[game.actions(other).start + b] = 1.0;
                            let slope = jacobian[action * columns + game.actions(other).start + b];
                            let truth = by_definition(&game, player, action, &pure);
                            assert!((slope - truth).abs() < 1e-12, "{shape:?}");
                        }
                    }
                }
            }
        }
    }
}
