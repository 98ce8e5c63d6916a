//! One equilibrium of any game by a portfolio of methods: fast ones first, the most robust one last.

use crate::{
    Game,
    game::ProfileError,
    learning::{self, Process},
    lemke_howson, logit,
    newton::Newton,
    polymatrix, pure,
    search::{self, Control, Method, Search, Solution},
    supports::{self, Budget},
    zero_sum,
};

/// The method by which [`Game::solve`] searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// The portfolio: the methods that suit the game, one after the other, until one converges.
    #[default]
    Automatic,
    /// The linear program of a two-player zero-sum game (Dantzig, 1951).
    LinearProgram,
    /// Complementary pivoting in a two-player game (Lemke and Howson, 1964).
    LemkeHowson,
    /// Supports in order of size (Porter, Nudelman and Shoham, 2008).
    SupportEnumeration,
    /// Iterated polymatrix approximation (Govindan and Wilson, 2004).
    IteratedPolymatrix,
    /// The principal branch of logit equilibria (McKelvey and Palfrey, 1995; Turocy, 2005).
    LogitHomotopy,
    /// A learning process, which approximates an equilibrium where theory guarantees convergence.
    Learning(Process),
}

/// The options of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The largest regret of a solution, as a share of a player's payoff range. `None`, the default,
    /// is [`Game::default_tolerance`].
    pub tolerance: Option<f64>,
    /// Determines all random starts, so that a search is reproducible; by default 1.
    pub seed: u64,
    /// The method; by default the portfolio.
    pub algorithm: Algorithm,
    /// The rounds of a learning process; by default 100000.
    pub rounds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tolerance: None,
            seed: 1,
            algorithm: Algorithm::Automatic,
            rounds: 100_000,
        }
    }
}

impl Options {
    pub(crate) fn tolerance(&self, game: &Game) -> f64 {
        self.tolerance.unwrap_or_else(|| game.default_tolerance())
    }
}

/// Why an algorithm does not apply to a game.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsuitableAlgorithm {
    /// The game does not have two players.
    #[error("this algorithm requires two players")]
    TwoPlayers,
    /// The game does not have two players with opposed payoffs.
    #[error("this algorithm requires two players with opposed payoffs")]
    ZeroSum,
}

/// Starts of the polymatrix iteration before the homotopy.
const STARTS: u32 = 8;
/// Starts before the enumeration of small supports.
const FIRST_STARTS: u32 = 1;
/// The budget of that enumeration.
const SMALL_SUPPORTS: Budget = Budget {
    supports: 300,
    systems: 20,
};
/// Rounds of regret matching when every other method has failed.
const LAST_RESORT_ROUNDS: u64 = 10_000;

impl Game {
    /// The largest regret of a solution where the caller sets none, as a share of a player's payoff
    /// range: 1e-9 for up to two players, 1e-6 for more.
    pub fn default_tolerance(&self) -> f64 {
        if self.players() <= 2 { 1e-9 } else { 1e-6 }
    }

    /// Finds one equilibrium. However the search ends, the best profile so far is returned with its
    /// certificate; [`Solution::converged`] tells whether it is an equilibrium.
    ///
    /// # Errors
    ///
    /// When the algorithm does not apply to this game.
    pub fn solve(
        &self,
        options: &Options,
        control: &dyn Control,
    ) -> Result<Solution, UnsuitableAlgorithm> {
        self.check(options.algorithm)?;
        let mut search = Search::new(self, options.tolerance(self), control);
        match options.algorithm {
            Algorithm::Automatic => portfolio(&mut search, options.seed),
            named => by_name(&mut search, named, options),
        }
        Ok(search.finish())
    }

    /// Finds one equilibrium by the portfolio, whatever algorithm the options name.
    pub(crate) fn any_equilibrium(&self, options: &Options, control: &dyn Control) -> Solution {
        let mut search = Search::new(self, options.tolerance(self), control);
        portfolio(&mut search, options.seed);
        search.finish()
    }

    fn check(&self, algorithm: Algorithm) -> Result<(), UnsuitableAlgorithm> {
        match algorithm {
            Algorithm::LinearProgram if !zero_sum::applies(self) => {
                Err(UnsuitableAlgorithm::ZeroSum)
            }
            Algorithm::LemkeHowson if self.players() != 2 => Err(UnsuitableAlgorithm::TwoPlayers),
            _ => Ok(()),
        }
    }

    /// Certifies given strategies, one for each player.
    ///
    /// # Errors
    ///
    /// When they are not a profile of this game.
    pub fn verify(
        &self,
        strategies: &[Vec<f64>],
        tolerance: f64,
    ) -> Result<Solution, ProfileError> {
        let profile = self.profile(strategies)?;
        Ok(search::certify(self, &profile, Method::Given, tolerance))
    }
}

/// A profile of the game without dominated actions as a profile of the whole game.
pub(crate) fn embed(game: &Game, kept: &[Vec<usize>], profile: &[f64]) -> Vec<f64> {
    let mut whole = vec![0.0; game.total_actions()];
    let mut weights = profile.iter();
    for (player, actions) in kept.iter().enumerate() {
        let first = game.actions(player).start;
        for (action, weight) in actions.iter().zip(&mut weights) {
            whole[first + action] = *weight;
        }
    }
    whole
}

pub(crate) fn portfolio(search: &mut Search<'_>, seed: u64) {
    let game = search.game;
    if let Some(cell) = pure::equilibria(game).first() {
        search.iterations += 1;
        search.offer(Method::Pure, &pure::profile(game, *cell));
        return;
    }
    let kept = pure::undominated(game, &|| search.is_stopped());
    if kept
        .iter()
        .zip(game.shape())
        .all(|(k, a)| k.len() == *a && k.len() > 1)
    {
        return mixed(search, seed);
    }
    let small = game.restricted(&kept).without_single_action_players();
    let mut inner = search.subsearch(&small);
    mixed(&mut inner, seed);
    search.adopt(inner, |profile| {
        // Players with a single action left were removed; they play it.
        let mut weights = profile.to_vec();
        let mut at = 0;
        for actions in &kept {
            if actions.len() == 1 {
                weights.insert(at, 1.0);
            }
            at += actions.len();
        }
        embed(game, &kept, &weights)
    });
}

/// One stage of the portfolio.
type Stage<'a> = dyn Fn(&mut Search<'_>, &mut Newton) + 'a;

fn mixed(search: &mut Search<'_>, seed: u64) {
    let mut newton = Newton::new(search.game);
    let stages: [&Stage<'_>; 6] = [
        &|search, newton| {
            if zero_sum::applies(search.game) {
                zero_sum::search(search, newton);
            }
        },
        &|search, newton| {
            if search.game.players() == 2 {
                lemke_howson::search(search, newton);
            }
        },
        &|search, newton| polymatrix::search(search, newton, 0..FIRST_STARTS, seed),
        &|search, newton| {
            supports::search(search, newton, SMALL_SUPPORTS, &mut |_| true);
        },
        &|search, newton| polymatrix::search(search, newton, FIRST_STARTS..STARTS, seed),
        &logit::search,
    ];
    for stage in stages {
        stage(search, &mut newton);
        if search.solved() || search.is_stopped() {
            return;
        }
    }
    learning::search(
        search,
        Process::RegretMatchingPlus,
        LAST_RESORT_ROUNDS,
        seed,
    );
}

fn by_name(search: &mut Search<'_>, algorithm: Algorithm, options: &Options) {
    let mut newton = Newton::new(search.game);
    match algorithm {
        Algorithm::Automatic => portfolio(search, options.seed),
        Algorithm::LinearProgram => zero_sum::search(search, &mut newton),
        Algorithm::LemkeHowson => lemke_howson::search(search, &mut newton),
        Algorithm::SupportEnumeration => {
            if let Some(cell) = pure::equilibria(search.game).first() {
                let profile = pure::profile(search.game, *cell);
                search.offer(Method::SupportEnumeration, &profile);
            } else {
                supports::search(search, &mut newton, Budget::UNLIMITED, &mut |_| true);
            }
        }
        Algorithm::IteratedPolymatrix if search.game.players() > 1 => {
            polymatrix::search(search, &mut newton, 0..u32::MAX, options.seed);
        }
        Algorithm::LogitHomotopy if search.game.players() > 1 => {
            logit::search(search, &mut newton);
        }
        // A single player's equilibria are its best actions.
        Algorithm::IteratedPolymatrix | Algorithm::LogitHomotopy => {
            portfolio(search, options.seed);
        }
        Algorithm::Learning(process) => {
            learning::search(search, process, options.rounds, options.seed);
        }
    }
}
