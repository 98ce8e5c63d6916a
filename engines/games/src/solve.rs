//! Equilibria of any game: one, by what is quick and certain first and what always arrives last;
//! all, where that can be said; the best of those found, by a stated preference.

use crate::{
    Game,
    game::ProfileError,
    learning::{self, Process},
    lemke_howson, logit,
    newton::Newton,
    polymatrix, pure,
    search::{self, Control, Method, Search, Solution},
    supports::{self, Budget},
    vertices::{self, MAX_ALL},
    zero_sum,
};

/// How one equilibrium is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Whatever fits the game, one after the other, until one arrives.
    #[default]
    Automatic,
    LinearProgramme,
    LemkeHowson,
    SupportEnumeration,
    IteratedPolymatrix,
    LogitHomotopy,
    /// An approximation; it arrives where the theory says so.
    Learning(Process),
}

/// Which equilibrium is wanted when there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    #[default]
    Any,
    /// The largest sum of payoffs.
    Welfare,
    /// The largest least payoff, each as a share of its player's range.
    Fairness,
    /// The limit of the logit branch, which needs no comparison.
    Logit,
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
    fn tolerance(&self, game: &Game) -> f64 {
        self.tolerance.unwrap_or_else(|| game.usual_tolerance())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    #[error("this algorithm is for two players")]
    TwoPlayers,
    #[error("this algorithm is for two players whose payoffs are opposed")]
    ZeroSum,
}

/// Equilibria, each with its certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Equilibria {
    /// With two players the extreme ones: all others are mixtures of these within a component.
    pub found: Vec<Solution>,
    /// The connected component of each.
    pub components: Vec<usize>,
    /// Whether there are no others.
    pub complete: bool,
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
/// What looking for equilibria to choose from may cost, where not all can be found.
const TO_CHOOSE_FROM: Budget = Budget {
    supports: 50_000,
    systems: 2_000,
};
/// Equilibria kept of a game that has more.
const MAX_FOUND: usize = 4_096;

impl Game {
    /// The largest regret of a solution where none is asked for, as a share of a player's payoff
    /// range.
    pub fn usual_tolerance(&self) -> f64 {
        if self.players() <= 2 { 1e-9 } else { 1e-6 }
    }

    /// Finds one equilibrium. Whatever ends the search, the best profile so far is returned with
    /// what certifies it.
    pub fn solve(&self, options: &Options, control: &dyn Control) -> Result<Solution, Unsuitable> {
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

    fn check(&self, algorithm: Algorithm) -> Result<(), Unsuitable> {
        match algorithm {
            Algorithm::LinearProgramme if !zero_sum::applies(self) => Err(Unsuitable::ZeroSum),
            Algorithm::LemkeHowson if self.players() != 2 => Err(Unsuitable::TwoPlayers),
            _ => Ok(()),
        }
    }

    /// Finds all equilibria that it can, until it is stopped: all extreme ones of a two-player game
    /// that has no more than [`MAX_ALL`] undominated actions a player; otherwise pure ones, then
    /// one on each support where there is one.
    pub fn all(&self, options: &Options, control: &dyn Control) -> Equilibria {
        self.within(Budget::ENDLESS, options, control)
    }

    fn within(&self, budget: Budget, options: &Options, control: &dyn Control) -> Equilibria {
        let tolerance = options.tolerance(self);
        let kept = pure::undominated(self, &|| control.stopped());
        if self.players() == 2 && kept.iter().all(|k| k.len() <= MAX_ALL) {
            return self.extremes(&kept, tolerance, control);
        }
        let mut profiles: Vec<Vec<f64>> = pure::equilibria(self)
            .into_iter()
            .take(MAX_FOUND)
            .map(|cell| pure::profile(self, cell))
            .collect();
        let pure_ones = profiles.len();
        let mut search = Search::new(self, tolerance, control);
        let mut newton = Newton::new(self);
        let looked_at_all = supports::search(&mut search, &mut newton, budget, &mut |found| {
            profiles.push(found.to_vec());
            profiles.len() >= MAX_FOUND
        });
        if profiles.is_empty() && !control.stopped() {
            portfolio(&mut search, options.seed);
            profiles.push(search.best().to_vec());
        }
        let mut found = Vec::with_capacity(profiles.len());
        for (index, profile) in profiles.iter().enumerate() {
            // The first is worth its certificate even when the time is over.
            if index > 0 && control.stopped() {
                break;
            }
            let method = match index < pure_ones {
                true => Method::Pure,
                false => Method::SupportEnumeration,
            };
            let kernel = &mut search.kernel;
            let solution = search::certify_with(kernel, self, profile, method, tolerance);
            if solution.converged() {
                found.push(solution);
            }
        }
        Equilibria {
            components: (0..found.len()).collect(),
            // With one player nothing but pure ones matters.
            complete: looked_at_all && self.players() == 1,
            found,
        }
    }

    fn extremes(&self, kept: &[Vec<usize>], tolerance: f64, control: &dyn Control) -> Equilibria {
        let small = self.restricted(kept);
        let extremes = vertices::search(&small, &|| control.stopped());
        let mut complete = extremes.complete && extremes.profiles.len() <= MAX_FOUND;
        let mut out = Equilibria {
            found: Vec::new(),
            components: Vec::new(),
            complete: false,
        };
        let pairs = extremes.profiles.iter().zip(&extremes.components);
        for (profile, component) in pairs.take(MAX_FOUND) {
            let whole = embed(self, kept, profile);
            let mut solution = search::certify(self, &whole, Method::VertexEnumeration, tolerance);
            solution.iterations = extremes.bases;
            if solution.converged() {
                out.found.push(solution);
                out.components.push(*component);
            } else {
                complete = false;
            }
        }
        out.complete = complete;
        out
    }

    /// The preferred one of the equilibria that were found, and those it was chosen from.
    pub fn select(
        &self,
        preference: Preference,
        options: &Options,
        control: &dyn Control,
    ) -> (Solution, Equilibria) {
        let mut all = match preference {
            Preference::Any | Preference::Logit => Equilibria {
                found: Vec::new(),
                components: Vec::new(),
                complete: false,
            },
            _ => self.within(TO_CHOOSE_FROM, options, control),
        };
        let chosen = all
            .found
            .iter()
            .max_by(|a, b| {
                self.worth(preference, a)
                    .total_cmp(&self.worth(preference, b))
            })
            .cloned();
        let chosen = chosen.unwrap_or_else(|| {
            let mut search = Search::new(self, options.tolerance(self), control);
            if preference == Preference::Logit {
                logit::search(&mut search, &mut Newton::new(self));
            } else {
                portfolio(&mut search, options.seed);
            }
            search.finish()
        });
        if all.found.is_empty() && chosen.converged() {
            all.found.push(chosen.clone());
            all.components.push(0);
        }
        (chosen, all)
    }

    fn worth(&self, preference: Preference, solution: &Solution) -> f64 {
        let shares = solution.payoffs.iter().enumerate();
        match preference {
            Preference::Fairness => shares
                .filter(|(i, _)| self.span(*i) > 0.0)
                .map(|(i, p)| (p - self.low(i)) / self.span(i))
                .fold(f64::INFINITY, f64::min),
            _ => solution.payoffs.iter().sum(),
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
fn embed(game: &Game, kept: &[Vec<usize>], profile: &[f64]) -> Vec<f64> {
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

fn portfolio(search: &mut Search<'_>, seed: u64) {
    let game = search.game;
    if let Some(cell) = pure::equilibria(game).first() {
        search.iterations += 1;
        search.offer(Method::Pure, &pure::profile(game, *cell));
        return;
    }
    let kept = pure::undominated(game, &|| search.stopped());
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
type Step<'a> = dyn Fn(&mut Search<'_>, &mut Newton) + 'a;

fn mixed(search: &mut Search<'_>, seed: u64) {
    let mut newton = Newton::new(search.game);
    let steps: [&Step<'_>; 6] = [
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
        if search.solved() || search.stopped() {
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
        Algorithm::LinearProgramme => zero_sum::search(search, &mut newton),
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
