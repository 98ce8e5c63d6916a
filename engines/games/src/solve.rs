//! One equilibrium of any game, by what is quick and certain first and what always arrives last.

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

/// How one equilibrium is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Whatever fits the game, one after the other, until one arrives.
    #[default]
    Automatic,
    LinearProgram,
    LemkeHowson,
    SupportEnumeration,
    IteratedPolymatrix,
    LogitHomotopy,
    /// An approximation; it arrives where the theory says so.
    Learning(Process),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The largest regret of a solution, as a share of a player's payoff range; `None` is 1e-9 for
    /// two players and 1e-6 for more.
    pub tolerance: Option<f64>,
    pub seed: u64,
    pub algorithm: Algorithm,
    /// Rounds of a learning process.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsuitableAlgorithm {
    #[error("this algorithm is for two players")]
    TwoPlayers,
    #[error("this algorithm is for two players whose payoffs are opposed")]
    ZeroSum,
}

/// Starts of the polymatrix iteration before the homotopy is followed.
const STARTS: u32 = 8;
/// Starts before small supports are looked at.
const FIRST_STARTS: u32 = 1;
/// What small supports may cost before paths are followed.
const SMALL_SUPPORTS: Budget = Budget {
    supports: 300,
    systems: 20,
};
impl Game {
    /// The largest regret of a solution where none is asked for, as a share of a player's payoff
    /// range.
    pub fn default_tolerance(&self) -> f64 {
        if self.players() <= 2 { 1e-9 } else { 1e-6 }
    }

    /// Finds one equilibrium. Whatever ends the search, the best profile so far is returned with
    /// what certifies it.
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

    /// What one equilibrium takes, without a choice.
    pub(crate) fn any(&self, options: &Options, control: &dyn Control) -> Solution {
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

    /// Certifies a profile from outside.
    pub fn verify(
        &self,
        strategies: &[Vec<f64>],
        tolerance: f64,
    ) -> Result<Solution, ProfileError> {
        let profile = self.profile(strategies)?;
        Ok(search::certify(self, &profile, Method::Given, tolerance))
    }
}

/// A profile of the game without dominated actions, in the whole game.
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
    let small = game.restricted(&kept).without_idle();
    let mut inner = search.within(&small);
    mixed(&mut inner, seed);
    search.adopt(inner, |profile| {
        // Who has one action left plays it.
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

/// One of the ways to an equilibrium.
type Stage<'a> = dyn Fn(&mut Search<'_>, &mut Newton) + 'a;

fn mixed(search: &mut Search<'_>, seed: u64) {
    let mut newton = Newton::new(search.game);
    let steps: [&Stage<'_>; 6] = [
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
    for step in steps {
        step(search, &mut newton);
        if search.solved() || search.is_stopped() {
            return;
        }
    }
    learning::search(search, Process::RegretMatchingPlus, LAST_RESORT, seed);
}

/// Rounds of regret matching when everything else failed.
const LAST_RESORT: u64 = 10_000;

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
                supports::search(search, &mut newton, Budget::ENDLESS, &mut |_| true);
            }
        }
        Algorithm::IteratedPolymatrix if search.game.players() > 1 => {
            polymatrix::search(search, &mut newton, 0..u32::MAX, options.seed);
        }
        Algorithm::LogitHomotopy if search.game.players() > 1 => {
            logit::search(search, &mut newton);
        }
        // One player's equilibria are its best actions.
        Algorithm::IteratedPolymatrix | Algorithm::LogitHomotopy => {
            portfolio(search, options.seed);
        }
        Algorithm::Learning(process) => {
            learning::search(search, process, options.rounds, options.seed);
        }
    }
}
