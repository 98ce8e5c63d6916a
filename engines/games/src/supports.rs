//! Support enumeration in order of size (Porter, Nudelman and Shoham, "Simple search methods for finding
//! a Nash equilibrium", 2008). Supports with a conditionally dominated action are skipped; on each
//! other one Newton's method solves the indifference equations.
//!
//! In a nondegenerate two-player game this finds every equilibrium.

use crate::{
    Game,
    newton::Newton,
    search::{Method, Search},
};

/// Supports with more joint actions than this poll whether to stop for each action.
const LARGE: usize = 256;
/// Weights up to this are zero.
const ZERO_WEIGHT: f64 = 1e-9;

/// The bounds of an enumeration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Supports that are examined.
    pub(crate) supports: u64,
    /// Systems of equations that are solved.
    pub(crate) systems: u64,
}

impl Budget {
    pub(crate) const UNLIMITED: Self = Self {
        supports: u64::MAX,
        systems: u64::MAX,
    };
}

/// Enumerates mixed supports until `found` returns true, the budget is used up, or the search is
/// stopped.
pub(crate) fn search(
    search: &mut Search<'_>,
    newton: &mut Newton,
    mut budget: Budget,
    found: &mut dyn FnMut(&[f64]) -> bool,
) {
    let game = search.game;
    let mut start = vec![0.0; game.total_actions()];
    let mut used = vec![false; game.total_actions()];
    let sizes = Sizes::new(game.shape());
    let mut supports = Supports::new(game);
    for size in sizes {
        supports.begin(size);
        loop {
            budget.supports = budget.supports.saturating_sub(1);
            search.iterations += 1;
            if budget.supports == 0 || (search.iterations.is_multiple_of(16) && search.is_stopped())
            {
                return;
            }
            if supports.is_plausible(game, &|| search.is_stopped()) {
                budget.systems = budget.systems.saturating_sub(1);
                if budget.systems == 0 {
                    return;
                }
                supports.spread(game, &mut start, &mut used);
                let solved = newton.solve(search, |k| used[k], &start);
                if let Some(profile) = solved
                    && search.offer(Method::SupportEnumeration, profile) <= search.tolerance
                    // A profile on a smaller support is found there.
                    && (0..used.len()).all(|k| !used[k] || search.candidate()[k] > ZERO_WEIGHT)
                    && found(search.candidate())
                {
                    return;
                }
            }
            if !supports.advance(game) {
                break;
            }
        }
    }
}

/// The combinations of support sizes, without the all-pure one: with two players balanced sizes come
/// first, with more players small sums. They are generated one stage at a time.
struct Sizes<'a> {
    shape: &'a [usize],
    /// The difference of a pair, or the sum of more sizes.
    stage: usize,
    ready: std::vec::IntoIter<Vec<usize>>,
}

impl<'a> Sizes<'a> {
    fn new(shape: &'a [usize]) -> Self {
        Self {
            shape,
            stage: if shape.len() == 2 { 0 } else { shape.len() + 1 },
            ready: Vec::new().into_iter(),
        }
    }

    fn pairs(&self, apart: usize) -> Vec<Vec<usize>> {
        let largest = self.shape[0].max(self.shape[1]);
        let both = (1..=largest).flat_map(|k| [vec![k, k + apart], vec![k + apart, k]]);
        let mut pairs: Vec<Vec<usize>> = both
            .filter(|p| p[0] <= self.shape[0] && p[1] <= self.shape[1] && p[0] + p[1] > 2)
            .collect();
        pairs.dedup();
        pairs
    }

    /// The sizes with this sum, the most balanced first.
    fn sums(&self, sum: usize) -> Vec<Vec<usize>> {
        let mut all = Vec::new();
        compose(self.shape, sum, &mut Vec::new(), &mut all);
        all.sort_by_key(|sizes| {
            let (least, most) = sizes
                .iter()
                .fold((usize::MAX, 0), |(l, m), s| (l.min(*s), m.max(*s)));
            most - least
        });
        all
    }
}

impl Iterator for Sizes<'_> {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let pair = self.shape.len() == 2;
        let last = if pair {
            self.shape[0].max(self.shape[1]) - 1
        } else {
            self.shape.iter().sum()
        };
        loop {
            if let Some(sizes) = self.ready.next() {
                return Some(sizes);
            }
            if self.stage > last {
                return None;
            }
            let stage = if pair {
                self.pairs(self.stage)
            } else {
                self.sums(self.stage)
            };
            self.ready = stage.into_iter();
            self.stage += 1;
        }
    }
}

/// All compositions of a sum into sizes that fit the shape.
fn compose(shape: &[usize], sum: usize, begun: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
    let Some((first, rest)) = shape.split_first() else {
        out.push(begun.clone());
        return;
    };
    let (least, most) = (rest.len(), rest.iter().sum::<usize>());
    for size in sum.saturating_sub(most).max(1)..=(*first).min(sum - least) {
        begun.push(size);
        compose(rest, sum - size, begun, out);
        begun.pop();
    }
}

/// One support for each player, and an iteration over all supports of the same sizes.
struct Supports {
    sets: Vec<Vec<usize>>,
    at: Vec<usize>,
    lengths: Vec<usize>,
}

impl Supports {
    fn new(game: &Game) -> Self {
        Self {
            sets: game
                .shape()
                .iter()
                .map(|a| Vec::with_capacity(*a))
                .collect(),
            at: vec![0; game.players()],
            lengths: vec![0; game.players()],
        }
    }

    fn begin(&mut self, sizes: Vec<usize>) {
        for (set, size) in self.sets.iter_mut().zip(&sizes) {
            set.clear();
            set.extend(0..*size);
        }
        self.lengths = sizes;
    }

    fn advance(&mut self, game: &Game) -> bool {
        let sets = self.sets.iter_mut().zip(game.shape()).rev();
        for (set, actions) in sets {
            if next_subset(set, *actions) {
                return true;
            }
            let size = set.len();
            set.clear();
            set.extend(0..size);
        }
        false
    }

    /// Whether no action of the supports is conditionally dominated: strictly worse than another
    /// action against every joint action of the opponents' supports.
    fn is_plausible(&mut self, game: &Game, stopped: &dyn Fn() -> bool) -> bool {
        let large = self.lengths.iter().product::<usize>() > LARGE;
        (0..game.players()).all(|player| {
            (0..self.sets[player].len()).all(|index| {
                let own = self.sets[player][index];
                if large && stopped() {
                    return false;
                }
                (0..game.shape()[player])
                    .all(|other| other == own || !self.dominates(game, player, other, own))
            })
        })
    }

    fn dominates(&mut self, game: &Game, player: usize, strong: usize, weak: usize) -> bool {
        let payoffs = game.unit(player);
        let stride = game.stride(player);
        self.at.fill(0);
        let cells: usize = self.lengths.iter().product::<usize>() / self.lengths[player];
        for _ in 0..cells {
            let mut cell = 0;
            for (j, index) in self.at.iter().enumerate() {
                let action = if j == player { 0 } else { self.sets[j][*index] };
                cell = cell * game.shape()[j] + action;
            }
            if payoffs[cell + strong * stride] <= payoffs[cell + weak * stride] {
                return false;
            }
            for (j, digit) in self.at.iter_mut().enumerate().rev() {
                if j == player {
                    continue;
                }
                *digit += 1;
                if *digit < self.lengths[j] {
                    break;
                }
                *digit = 0;
            }
        }
        true
    }

    /// Writes uniform strategies on the supports.
    fn spread(&self, game: &Game, start: &mut [f64], used: &mut [bool]) {
        start.fill(0.0);
        used.fill(false);
        for (player, set) in self.sets.iter().enumerate() {
            for action in set {
                let k = game.actions(player).start + action;
                start[k] = 1.0 / set.len() as f64;
                used[k] = true;
            }
        }
    }
}

/// The next subset of the same size in lexicographic order.
fn next_subset(set: &mut [usize], of: usize) -> bool {
    let size = set.len();
    let Some(movable) = (0..size).rev().find(|i| set[*i] + size - i < of) else {
        return false;
    };
    set[movable] += 1;
    for i in movable + 1..size {
        set[i] = set[i - 1] + 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NeverStop, testing};

    #[test]
    fn every_subset_is_enumerated_once() {
        let mut set = vec![0, 1, 2];
        let mut all = vec![set.clone()];
        while next_subset(&mut set, 5) {
            all.push(set.clone());
        }
        assert_eq!(all.len(), 10);
        assert!(all.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(all[9], [2, 3, 4]);
    }

    #[test]
    fn balanced_pairs_come_first_and_small_sums_with_more_players() {
        let sizes = |shape: &[usize]| Sizes::new(shape).collect::<Vec<_>>();
        assert_eq!(sizes(&[2, 3]), [[2, 2], [1, 2], [2, 1], [2, 3], [1, 3]]);
        assert_eq!(sizes(&[1, 3]), [[1, 2], [1, 3]]);
        assert_eq!(sizes(&[3]), [[2], [3]]);
        let three = sizes(&[2, 2, 2]);
        assert_eq!(three.len(), 7);
        assert_eq!(three[6], [2, 2, 2]);
        assert_eq!(sizes(&[2, 3, 4]).len(), 2 * 3 * 4 - 1);
        assert!(
            sizes(&[2, 3, 4])
                .windows(2)
                .all(|w| { w[0].iter().sum::<usize>() <= w[1].iter().sum() })
        );
    }

    #[test]
    fn a_budget_ends_the_enumeration() {
        let game = testing::constant_sum(3, &[3, 3, 3]);
        let mut search_state = Search::new(&game, 1e-9, &NeverStop);
        let budget = Budget {
            supports: 10,
            systems: 10,
        };
        let mut newton = Newton::new(&game);
        search(&mut search_state, &mut newton, budget, &mut |_| false);
        assert!(search_state.iterations <= 10);
    }
}
