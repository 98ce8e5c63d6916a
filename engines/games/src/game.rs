//! A finite game in normal form: players, their actions, and a payoff of each player for every joint
//! action.
//!
//! Solvers work on payoffs that are scaled to the range 0..=1 for each player. This leaves equilibria
//! unchanged and gives tolerances the same meaning for payoffs of any magnitude.

/// The largest number of players.
pub const MAX_PLAYERS: usize = 16;
/// The largest number of actions of one player.
pub const MAX_ACTIONS: usize = 128;
/// The largest number of payoffs: joint actions times players.
pub const MAX_PAYOFFS: usize = 1 << 17;
/// The largest magnitude of a payoff. The difference of two such payoffs does not overflow.
pub const MAX_PAYOFF: f64 = 1e300;

/// A game that has been checked. Players, actions and joint actions are numbered from zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Game {
    shape: Vec<usize>,
    /// The offset of each player's actions among those of all players, and the total.
    offsets: Vec<usize>,
    payoffs: Vec<Vec<f64>>,
    unit: Vec<Vec<f64>>,
    low: Vec<f64>,
    span: Vec<f64>,
}

/// Why payoffs are not a game.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GameError {
    /// This many players, or payoff tensors, were given.
    #[error("a game has 1 to {MAX_PLAYERS} players, not {0}")]
    Players(usize),
    /// A player has no actions, or too many.
    #[error("player {player} has {given} actions; 1 to {MAX_ACTIONS} are supported")]
    Actions {
        /// The player.
        player: usize,
        /// The number of its actions.
        given: usize,
    },
    /// There are more than [`MAX_PAYOFFS`] payoffs.
    #[error("the game has more than {MAX_PAYOFFS} payoffs")]
    TooLarge,
    /// A player's payoffs do not match the joint actions.
    #[error(
        "player {player} has {given} payoffs; one for each of {needed} joint actions is required"
    )]
    Payoffs {
        /// The player.
        player: usize,
        /// The number of its payoffs.
        given: usize,
        /// The number of joint actions.
        needed: usize,
    },
    /// A payoff is not a number, or its magnitude is above [`MAX_PAYOFF`].
    #[error("payoff {index} of player {player} is not a number within ±{MAX_PAYOFF:e}")]
    NotFinite {
        /// The player.
        player: usize,
        /// The joint action.
        index: usize,
    },
}

/// Why strategies are not a profile of a game.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// The number of strategies is not that of players.
    #[error("the profile has {given} strategies; the game has {needed} players")]
    Players {
        /// The number of strategies.
        given: usize,
        /// The number of players.
        needed: usize,
    },
    /// A strategy's length is not the number of its player's actions.
    #[error("player {player} has {given} probabilities and {needed} actions")]
    Actions {
        /// The player.
        player: usize,
        /// The number of probabilities.
        given: usize,
        /// The number of actions.
        needed: usize,
    },
    /// A probability is not a number in 0..=1.
    #[error("probability {index} of player {player} is not between 0 and 1")]
    Probability {
        /// The player.
        player: usize,
        /// The action.
        index: usize,
    },
    /// A strategy's sum is more than 1e-6 away from one.
    #[error("the probabilities of player {player} sum to {sum}, not to 1")]
    Sum {
        /// The player.
        player: usize,
        /// The sum.
        sum: f64,
    },
}

/// The largest deviation of a given strategy's sum from one.
const SUM_SLACK: f64 = 1e-6;

/// The number of joint actions of a game in which player `i` has `shape[i]` actions.
///
/// # Errors
///
/// When such a game has too many players, actions or payoffs.
pub fn joint_actions(shape: &[usize]) -> Result<usize, GameError> {
    if !(1..=MAX_PLAYERS).contains(&shape.len()) {
        return Err(GameError::Players(shape.len()));
    }
    for (player, given) in shape.iter().copied().enumerate() {
        if !(1..=MAX_ACTIONS).contains(&given) {
            return Err(GameError::Actions { player, given });
        }
    }
    shape
        .iter()
        .try_fold(1usize, |total, a| {
            total
                .checked_mul(*a)
                .filter(|t| t * shape.len() <= MAX_PAYOFFS)
        })
        .ok_or(GameError::TooLarge)
}

impl Game {
    /// Checks payoffs and makes a game of them. `payoffs` holds one tensor for each player in row-major
    /// order: the first player's action varies slowest.
    ///
    /// # Errors
    ///
    /// The first mistake; see [`GameError`].
    pub fn new(shape: Vec<usize>, payoffs: Vec<Vec<f64>>) -> Result<Self, GameError> {
        let needed = joint_actions(&shape)?;
        if payoffs.len() != shape.len() {
            return Err(GameError::Players(payoffs.len()));
        }
        for (player, tensor) in payoffs.iter().enumerate() {
            if tensor.len() != needed {
                let given = tensor.len();
                return Err(GameError::Payoffs {
                    player,
                    given,
                    needed,
                });
            }
            if let Some(index) = tensor
                .iter()
                .position(|v| v.is_nan() || v.abs() > MAX_PAYOFF)
            {
                return Err(GameError::NotFinite { player, index });
            }
        }
        Ok(Self::from_checked(shape, payoffs))
    }

    fn from_checked(shape: Vec<usize>, payoffs: Vec<Vec<f64>>) -> Self {
        let mut offsets = vec![0];
        for actions in &shape {
            offsets.push(offsets[offsets.len() - 1] + actions);
        }
        let (low, span): (Vec<f64>, Vec<f64>) = payoffs.iter().map(|t| range(t)).unzip();
        let unit = payoffs
            .iter()
            .enumerate()
            .map(|(i, tensor)| {
                let to_unit = |v: &f64| (v - low[i]) / span[i];
                tensor
                    .iter()
                    .map(|v| if span[i] > 0.0 { to_unit(v) } else { 0.0 })
                    .collect()
            })
            .collect();
        Self {
            shape,
            offsets,
            payoffs,
            unit,
            low,
            span,
        }
    }

    /// The number of players.
    pub fn players(&self) -> usize {
        self.shape.len()
    }

    /// The number of each player's actions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of joint actions.
    pub fn cells(&self) -> usize {
        self.payoffs[0].len()
    }

    /// A player's payoffs as they were given, one for each joint action.
    pub fn payoffs(&self, player: usize) -> &[f64] {
        &self.payoffs[player]
    }

    /// A player's payoffs scaled to 0..=1; all zero when they are equal.
    pub(crate) fn unit(&self, player: usize) -> &[f64] {
        &self.unit[player]
    }

    /// A player's lowest payoff.
    pub(crate) fn low(&self, player: usize) -> f64 {
        self.low[player]
    }

    /// The payoff range of a player: its highest payoff less its lowest.
    pub fn span(&self, player: usize) -> f64 {
        self.span[player]
    }

    /// The number of all players' actions together, which is the length of a flat profile.
    pub(crate) fn total_actions(&self) -> usize {
        self.offsets[self.players()]
    }

    /// The positions of a player's actions in a flat profile.
    pub(crate) fn actions(&self, player: usize) -> std::ops::Range<usize> {
        self.offsets[player]..self.offsets[player + 1]
    }

    /// The distance between two joint actions that differ by one in a player's action.
    pub(crate) fn stride(&self, player: usize) -> usize {
        self.shape[player + 1..].iter().product()
    }

    /// Each player's action in a joint action.
    pub fn joint(&self, cell: usize) -> Vec<usize> {
        (0..self.players())
            .map(|i| cell / self.stride(i) % self.shape[i])
            .collect()
    }

    /// The number of the joint action in which the players take these actions; the inverse of
    /// [`joint`](Self::joint).
    pub fn cell(&self, joint: &[usize]) -> usize {
        joint
            .iter()
            .zip(&self.shape)
            .fold(0, |cell, (action, actions)| cell * actions + action)
    }

    /// The game in which each player has only these actions.
    pub(crate) fn restricted(&self, kept: &[Vec<usize>]) -> Self {
        let shape: Vec<usize> = kept.iter().map(Vec::len).collect();
        let small: usize = shape.iter().product();
        let mut payoffs = vec![Vec::with_capacity(small); self.players()];
        let mut at = vec![0; self.players()];
        for _ in 0..small {
            let joint: Vec<usize> = at.iter().zip(kept).map(|(k, list)| list[*k]).collect();
            let cell = self.cell(&joint);
            for (to, from) in payoffs.iter_mut().zip(&self.payoffs) {
                to.push(from[cell]);
            }
            increment(&mut at, &shape);
        }
        Self::from_checked(shape, payoffs)
    }

    /// The game among the players that have more than one action.
    pub(crate) fn without_single_action_players(self) -> Self {
        if self.shape.iter().all(|a| *a > 1) {
            return self;
        }
        let choosing = |i: &usize| self.shape[*i] > 1;
        let shape = self.shape.iter().copied().filter(|a| *a > 1).collect();
        let players = (0..self.players()).filter(choosing);
        Self::from_checked(shape, players.map(|i| self.payoffs[i].clone()).collect())
    }

    /// Checks mixed strategies, one for each player, and normalises them into one flat profile.
    ///
    /// # Errors
    ///
    /// The first mistake; see [`ProfileError`].
    pub fn profile(&self, strategies: &[Vec<f64>]) -> Result<Vec<f64>, ProfileError> {
        if strategies.len() != self.players() {
            return Err(ProfileError::Players {
                given: strategies.len(),
                needed: self.players(),
            });
        }
        let mut flat = Vec::with_capacity(self.total_actions());
        for (player, strategy) in strategies.iter().enumerate() {
            flat.extend(self::strategy(strategy, player, self.shape[player])?);
        }
        Ok(flat)
    }

    /// A flat profile as one strategy for each player.
    pub(crate) fn split(&self, flat: &[f64]) -> Vec<Vec<f64>> {
        (0..self.players())
            .map(|i| flat[self.actions(i)].to_vec())
            .collect()
    }

    /// The flat profile of uniform strategies.
    pub(crate) fn uniform(&self) -> Vec<f64> {
        self.shape
            .iter()
            .flat_map(|a| vec![1.0 / *a as f64; *a])
            .collect()
    }
}

/// Checks the probabilities of a strategy and normalises them.
pub(crate) fn strategy(
    given: &[f64],
    player: usize,
    needed: usize,
) -> Result<Vec<f64>, ProfileError> {
    if given.len() != needed {
        let given = given.len();
        return Err(ProfileError::Actions {
            player,
            given,
            needed,
        });
    }
    if let Some(index) = given.iter().position(|p| !(0.0..=1.0).contains(p)) {
        return Err(ProfileError::Probability { player, index });
    }
    let sum: f64 = given.iter().sum();
    if (sum - 1.0).abs() > SUM_SLACK {
        return Err(ProfileError::Sum { player, sum });
    }
    Ok(given.iter().map(|p| p / sum).collect())
}

fn range(values: &[f64]) -> (f64, f64) {
    let (low, high) = values
        .iter()
        .fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    (low, high - low)
}

/// Advances a multi-index in row-major order; wraps around at the end.
pub(crate) fn increment(at: &mut [usize], shape: &[usize]) {
    for (digit, base) in at.iter_mut().zip(shape).rev() {
        *digit += 1;
        if *digit < *base {
            return;
        }
        *digit = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_games_are_refused() {
        let new = |shape: &[usize], payoffs: Vec<Vec<f64>>| {
            Game::new(shape.to_vec(), payoffs).unwrap_err()
        };
        assert_eq!(new(&[], vec![]), GameError::Players(0));
        assert_eq!(new(&[1; 17], vec![]), GameError::Players(17));
        assert_eq!(
            new(&[2, 0], vec![]),
            GameError::Actions {
                player: 1,
                given: 0
            }
        );
        assert_eq!(
            new(&[129], vec![]),
            GameError::Actions {
                player: 0,
                given: 129
            }
        );
        assert_eq!(new(&[128, 128, 128], vec![]), GameError::TooLarge);
        assert_eq!(new(&[128; 16], vec![]), GameError::TooLarge);
        assert_eq!(new(&[2, 2], vec![vec![0.0; 4]]), GameError::Players(1));
        assert_eq!(
            new(&[2, 2], vec![vec![0.0; 4], vec![0.0; 3]]),
            GameError::Payoffs {
                player: 1,
                given: 3,
                needed: 4
            }
        );
        for bad in [f64::NAN, f64::INFINITY, -f64::INFINITY, 1e301] {
            assert_eq!(
                new(&[1, 2], vec![vec![0.0; 2], vec![0.0, bad]]),
                GameError::NotFinite {
                    player: 1,
                    index: 1
                }
            );
        }
    }

    #[test]
    fn malformed_profiles_are_refused() {
        let game = Game::new(vec![2, 2], vec![vec![0.0; 4]; 2]).unwrap();
        let half = vec![0.5, 0.5];
        let refused = |strategies: &[Vec<f64>]| game.profile(strategies).unwrap_err();
        assert_eq!(
            refused(std::slice::from_ref(&half)),
            ProfileError::Players {
                given: 1,
                needed: 2
            }
        );
        assert_eq!(
            refused(&[half.clone(), vec![1.0]]),
            ProfileError::Actions {
                player: 1,
                given: 1,
                needed: 2
            }
        );
        for bad in [-0.1, 1.1, f64::NAN] {
            assert_eq!(
                refused(&[half.clone(), vec![bad, 0.5]]),
                ProfileError::Probability {
                    player: 1,
                    index: 0
                }
            );
        }
        assert!(matches!(
            refused(&[vec![0.2, 0.2], half.clone()]),
            ProfileError::Sum { player: 0, .. }
        ));
        assert_eq!(
            game.profile(&[half, vec![1.0, 0.0]]).unwrap(),
            [0.5, 0.5, 1.0, 0.0]
        );
    }

    #[test]
    fn joint_actions_are_numbered_in_row_major_order() {
        let tensor: Vec<f64> = (0..24).map(f64::from).collect();
        let game = Game::new(vec![2, 3, 4], vec![tensor.clone(), tensor.clone(), tensor]).unwrap();
        assert_eq!(game.cell(&[1, 2, 3]), 23);
        assert_eq!(game.joint(17), [1, 1, 1]);
        assert_eq!(game.cell(&game.joint(17)), 17);
        let small = game.restricted(&[vec![1], vec![0, 2], vec![3]]);
        assert_eq!(
            (small.shape(), small.payoffs(0)),
            (&[1, 2, 1][..], &[15.0, 23.0][..])
        );
    }
}
