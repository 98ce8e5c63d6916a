//! The state of one search for an equilibrium: the best profile so far with its certificate, and the
//! control that may end it early. Every method offers its candidates here, so that the best one is
//! available however a search ends.

use crate::{Game, kernel::Kernel};

/// How the owner of a computation observes and stops it. Solvers have no clock of their own: time
/// limits are up to the owner.
pub trait Control: Sync {
    /// Whether the computation should stop. Polled at least every few hundred microseconds; once it
    /// returns true it must keep doing so.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Receives every improvement of the best profile.
    fn progress(&self, _: &Point) {}
}

/// A control that never stops the computation and ignores its progress.
#[derive(Debug, Clone, Copy)]
pub struct NeverStop;

impl Control for NeverStop {}

/// The method that found a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// None: the profile was given, or the search was stopped before its first candidate.
    Given,
    /// Enumeration of the pure joint actions.
    Pure,
    /// The linear program of a zero-sum game (Dantzig, 1951).
    LinearProgram,
    /// Complementary pivoting (Lemke and Howson, 1964).
    LemkeHowson,
    /// Supports in order of size (Porter, Nudelman and Shoham, 2008).
    SupportEnumeration,
    /// The vertices of the best-response polytopes (Mangasarian, 1964).
    VertexEnumeration,
    /// Iterated polymatrix approximation (Govindan and Wilson, 2004).
    IteratedPolymatrix,
    /// The principal branch of logit equilibria (McKelvey and Palfrey, 1995; Turocy, 2005).
    LogitHomotopy,
    /// [`Process::FictitiousPlay`](crate::Process::FictitiousPlay).
    FictitiousPlay,
    /// [`Process::RegretMatchingPlus`](crate::Process::RegretMatchingPlus).
    RegretMatchingPlus,
    /// [`Process::Replicator`](crate::Process::Replicator).
    Replicator,
    /// [`Process::ProjectedReplicator`](crate::Process::ProjectedReplicator).
    ProjectedReplicator,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 12] = [
        Self::Given,
        Self::Pure,
        Self::LinearProgram,
        Self::LemkeHowson,
        Self::SupportEnumeration,
        Self::VertexEnumeration,
        Self::IteratedPolymatrix,
        Self::LogitHomotopy,
        Self::FictitiousPlay,
        Self::RegretMatchingPlus,
        Self::Replicator,
        Self::ProjectedReplicator,
    ];

    /// The name that answers carry. These names are part of the API and do not change.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Pure => "pure",
            Self::LinearProgram => "linear_programme",
            Self::LemkeHowson => "lemke_howson",
            Self::SupportEnumeration => "support_enumeration",
            Self::VertexEnumeration => "vertex_enumeration",
            Self::IteratedPolymatrix => "iterated_polymatrix",
            Self::LogitHomotopy => "logit_homotopy",
            Self::FictitiousPlay => "fictitious_play",
            Self::RegretMatchingPlus => "regret_matching_plus",
            Self::Replicator => "replicator",
            Self::ProjectedReplicator => "projected_replicator",
        }
    }
}

/// One improvement of the best profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The iteration of the search in which it was found.
    pub iteration: u64,
    /// The method that found it.
    pub method: Method,
    /// Its NashConv (Lanctot et al., 2017): the sum of the players' regrets, in units of the payoffs.
    pub nash_conv: f64,
}

/// A profile with its certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Each player's mixed strategy.
    pub profile: Vec<Vec<f64>>,
    /// Each player's expected payoff.
    pub payoffs: Vec<f64>,
    /// What each player could still gain by deviating unilaterally, in units of its payoffs.
    pub regret: Vec<f64>,
    /// The largest regret, as a share of its player's payoff range.
    pub relative_regret: f64,
    /// The bound on `relative_regret` that [`converged`](Self::converged) checks.
    pub tolerance: f64,
    /// The method that found the profile.
    pub method: Method,
    /// The candidates, pivots and updates of all methods that were tried.
    pub iterations: u64,
    /// How the best profile improved. At most 128 points: long histories are thinned out.
    pub history: Vec<Point>,
}

impl Solution {
    /// The sum of the players' regrets, which is zero in an equilibrium.
    pub fn nash_conv(&self) -> f64 {
        self.regret.iter().sum()
    }

    /// Sets the iterations of a solution that was found at once; its history is one point.
    pub(crate) fn set_iterations(&mut self, iteration: u64) {
        self.iterations = iteration;
        self.history = vec![Point {
            iteration,
            method: self.method,
            nash_conv: self.nash_conv(),
        }];
    }

    /// Whether the profile is an equilibrium within its tolerance.
    pub fn converged(&self) -> bool {
        self.relative_regret <= self.tolerance
    }

    /// Whether every player plays a single action.
    pub fn is_pure(&self) -> bool {
        self.profile
            .iter()
            .all(|s| s.iter().filter(|p| **p > 0.0).count() == 1)
    }
}

/// The points that a history keeps.
const HISTORY: usize = 128;
/// Weights of a candidate up to this are rounding errors.
const DUST: f64 = 1e-13;

pub(crate) struct Search<'a> {
    pub(crate) game: &'a Game,
    pub(crate) kernel: Kernel,
    control: &'a dyn Control,
    pub(crate) tolerance: f64,
    pub(crate) iterations: u64,
    method: Method,
    best: Vec<f64>,
    best_regret: f64,
    history: Vec<Point>,
    candidate: Vec<f64>,
    values: Vec<f64>,
}

impl std::fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search")
            .field("iterations", &self.iterations)
            .field("method", &self.method)
            .field("best_regret", &self.best_regret)
            .finish_non_exhaustive()
    }
}

impl<'a> Search<'a> {
    pub(crate) fn new(game: &'a Game, tolerance: f64, control: &'a dyn Control) -> Self {
        let total = game.total_actions();
        Self {
            game,
            kernel: Kernel::new(game),
            control,
            tolerance,
            iterations: 0,
            method: Method::Given,
            best: vec![0.0; total],
            best_regret: f64::INFINITY,
            history: Vec::with_capacity(HISTORY),
            candidate: vec![0.0; total],
            values: vec![0.0; total],
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.control.is_stopped()
    }

    pub(crate) fn solved(&self) -> bool {
        self.best_regret <= self.tolerance
    }

    /// The profile that the last offer became.
    pub(crate) fn candidate(&self) -> &[f64] {
        &self.candidate
    }

    pub(crate) fn method(&self) -> Method {
        self.method
    }

    pub(crate) fn best(&self) -> &[f64] {
        &self.best
    }

    /// Normalises a candidate, certifies it and keeps it when it is the best so far. Returns its
    /// relative regret, which is infinite when the weights are not a profile.
    pub(crate) fn offer(&mut self, method: Method, weights: &[f64]) -> f64 {
        for player in 0..self.game.players() {
            let range = self.game.actions(player);
            let own = &mut self.candidate[range.clone()];
            own.copy_from_slice(&weights[range]);
            if !tidy(own) {
                return f64::INFINITY;
            }
        }
        let regret = relative_regret(
            self.game,
            &mut self.kernel,
            &self.candidate,
            &mut self.values,
        );
        if regret < self.best_regret {
            self.best_regret = regret;
            self.method = method;
            self.best.copy_from_slice(&self.candidate);
            self.record_best();
        }
        regret
    }

    fn record_best(&mut self) {
        let point = Point {
            iteration: self.iterations,
            method: self.method,
            nash_conv: nash_conv(self.game, &self.candidate, &self.values),
        };
        if self.history.len() == HISTORY {
            let mut index = 0;
            self.history.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.history.push(point);
        self.control.progress(&point);
    }

    /// A search of a part of the game, with the same control.
    pub(crate) fn subsearch<'b>(&self, part: &'b Game) -> Search<'b>
    where
        'a: 'b,
    {
        Search::new(part, self.tolerance, self.control)
    }

    /// Takes over the result of a search of a part of the game.
    pub(crate) fn adopt(&mut self, inner: Search<'_>, whole: impl Fn(&[f64]) -> Vec<f64>) {
        self.iterations += inner.iterations;
        if inner.best_regret.is_finite() {
            self.history = inner.history;
            // The last point is recorded again when its profile is offered to this game.
            self.history.pop();
            self.offer(inner.method, &whole(&inner.best));
        }
    }

    /// The best profile so far; uniform strategies when the search was stopped before its first
    /// candidate.
    pub(crate) fn finish(mut self) -> Solution {
        if self.best_regret.is_infinite() {
            self.offer(Method::Given, &self.game.uniform());
        }
        let mut solution = certify(self.game, &self.best, self.method, self.tolerance);
        solution.iterations = self.iterations;
        solution.history = self.history;
        solution
    }
}

/// Regrets below this are rounding errors.
pub(crate) const EXACT: f64 = 1e-12;

fn tidy(strategy: &mut [f64]) -> bool {
    let mut sum = 0.0;
    for p in strategy.iter_mut() {
        if p.is_nan() || *p <= DUST {
            *p = 0.0;
        }
        sum += *p;
    }
    if !(sum > 0.0 && sum.is_finite()) {
        return false;
    }
    strategy.iter_mut().for_each(|p| *p /= sum);
    true
}

/// The largest regret as a share of the payoff range. Writes the values of all actions to `values`.
pub(crate) fn relative_regret(
    game: &Game,
    kernel: &mut Kernel,
    profile: &[f64],
    values: &mut [f64],
) -> f64 {
    let mut worst = 0.0f64;
    for player in 0..game.players() {
        let range = game.actions(player);
        kernel.values(game, player, profile, &mut values[range.clone()]);
        worst = worst.max(regret(&profile[range.clone()], &values[range]));
    }
    worst
}

/// What a strategy loses against the best action. It is a sum of non-negative differences, so that
/// nothing cancels.
fn regret(strategy: &[f64], values: &[f64]) -> f64 {
    let best = values.iter().copied().fold(f64::MIN, f64::max);
    strategy
        .iter()
        .zip(values)
        .map(|(p, v)| p * (best - v))
        .sum()
}

fn nash_conv(game: &Game, profile: &[f64], values: &[f64]) -> f64 {
    (0..game.players())
        .map(|i| game.span(i) * regret(&profile[game.actions(i)], &values[game.actions(i)]))
        .sum()
}

/// Certifies a profile from the payoffs alone.
pub(crate) fn certify(game: &Game, profile: &[f64], method: Method, tolerance: f64) -> Solution {
    certify_with(&mut Kernel::new(game), game, profile, method, tolerance)
}

/// The same with a kernel of the game that is reused.
pub(crate) fn certify_with(
    kernel: &mut Kernel,
    game: &Game,
    profile: &[f64],
    method: Method,
    tolerance: f64,
) -> Solution {
    let mut values = vec![0.0; game.total_actions()];
    let mut relative = relative_regret(game, kernel, profile, &mut values);
    let mut payoffs = Vec::with_capacity(game.players());
    let mut regrets = Vec::with_capacity(game.players());
    for i in 0..game.players() {
        let range = game.actions(i);
        let (own, earned) = (&profile[range.clone()], &values[range]);
        let mean = crate::kernel::dot(own, earned);
        payoffs.push(game.low(i) + game.span(i) * mean);
        regrets.push(game.span(i) * regret(own, earned));
    }
    if let Some(cell) = pure_cell(game, profile) {
        // A pure profile is certified exactly, from the payoffs as they were given.
        payoffs = (0..game.players()).map(|i| game.payoffs(i)[cell]).collect();
        regrets = (0..game.players())
            .map(|i| pure_regret(game, i, cell))
            .collect();
        let shares = regrets.iter().enumerate().filter(|(_, r)| **r > 0.0);
        relative = shares.map(|(i, r)| r / game.span(i)).fold(0.0, f64::max);
    }
    let mut solution = Solution {
        profile: game.split(profile),
        payoffs,
        regret: regrets,
        relative_regret: relative,
        tolerance,
        method,
        iterations: 0,
        history: Vec::new(),
    };
    solution.set_iterations(0);
    solution
}

/// The joint action of a pure profile; `None` when some player mixes.
fn pure_cell(game: &Game, profile: &[f64]) -> Option<usize> {
    (0..game.players()).try_fold(0, |cell, player| {
        let own = &profile[game.actions(player)];
        let action = own.iter().position(|p| *p == 1.0)?;
        Some(cell + action * game.stride(player))
    })
}

fn pure_regret(game: &Game, player: usize, cell: usize) -> f64 {
    let (actions, stride) = (game.shape()[player], game.stride(player));
    let payoffs = game.payoffs(player);
    let first = cell - cell / stride % actions * stride;
    let column = (0..actions).map(|a| payoffs[first + a * stride]);
    column.fold(f64::MIN, f64::max) - payoffs[cell]
}
