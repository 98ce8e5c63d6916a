//! One search for an equilibrium: the best profile so far with what certifies it, and who may end
//! it early. Every method offers its candidates here, so that whatever ends a search, the best is
//! at hand.

use crate::{Game, kernel::Kernel};

/// The outside of a long computation. Time belongs to whoever asks, not to the solver.
pub trait Control: Sync {
    /// Asked at least every few hundred microseconds; once true, it stays so.
    fn is_stopped(&self) -> bool {
        false
    }

    /// The search has come further.
    fn progress(&self, _: &Point) {}
}

/// Never stops, tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct NeverStop;

impl Control for NeverStop {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A profile that was given from outside.
    Given,
    Pure,
    LinearProgram,
    LemkeHowson,
    SupportEnumeration,
    VertexEnumeration,
    IteratedPolymatrix,
    LogitHomotopy,
    FictitiousPlay,
    RegretMatchingPlus,
    Replicator,
    ProjectedReplicator,
}

impl Method {
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

/// The best profile's quality when it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub iteration: u64,
    pub method: Method,
    /// The sum of the regrets, in units of the payoffs.
    pub nash_conv: f64,
}

/// A profile and what certifies it.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    pub profile: Vec<Vec<f64>>,
    pub payoffs: Vec<f64>,
    /// What each player could still gain by deviating alone, in units of the payoffs.
    pub regret: Vec<f64>,
    /// The largest regret, as a share of its player's payoff range.
    pub relative_regret: f64,
    /// What `relative_regret` must not exceed.
    pub tolerance: f64,
    pub method: Method,
    /// Steps of the methods that were tried: candidates, pivots, updates.
    pub iterations: u64,
    /// How the best profile improved; thinned out when long.
    pub history: Vec<Point>,
}

impl Solution {
    pub fn nash_conv(&self) -> f64 {
        self.regret.iter().sum()
    }

    /// A solution that was certified, not improved: its history is one point.
    pub(crate) fn seen_at(&mut self, iteration: u64) {
        self.iterations = iteration;
        self.history = vec![Point {
            iteration,
            method: self.method,
            nash_conv: self.nash_conv(),
        }];
    }

    pub fn converged(&self) -> bool {
        self.relative_regret <= self.tolerance
    }

    pub fn is_pure(&self) -> bool {
        self.profile
            .iter()
            .all(|s| s.iter().filter(|p| **p > 0.0).count() == 1)
    }
}

/// The most that a history keeps.
const HISTORY: usize = 128;
/// A candidate may put this much weight on an action that it does not mean to use.
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

    /// The profile that was made of the last offer.
    pub(crate) fn candidate(&self) -> &[f64] {
        &self.candidate
    }

    pub(crate) fn method(&self) -> Method {
        self.method
    }

    pub(crate) fn best(&self) -> &[f64] {
        &self.best
    }

    /// Makes a profile of a candidate (no negative weights, sums of one), certifies it and keeps
    /// it when it is the best so far. Returns its relative regret; infinite when it is no profile.
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
            self.remember();
        }
        regret
    }

    fn remember(&mut self) {
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

    /// A search of a part of the game, for the same caller.
    pub(crate) fn within<'b>(&self, part: &'b Game) -> Search<'b>
    where
        'a: 'b,
    {
        Search::new(part, self.tolerance, self.control)
    }

    /// Takes over what a search of a part of the game found.
    pub(crate) fn adopt(&mut self, inner: Search<'_>, whole: impl Fn(&[f64]) -> Vec<f64>) {
        self.iterations += inner.iterations;
        if inner.best_regret.is_finite() {
            self.history = inner.history;
            // It comes again, as a profile of this game.
            self.history.pop();
            self.offer(inner.method, &whole(&inner.best));
        }
    }

    /// The best so far. A search that was stopped before its first candidate answers with an even
    /// mix.
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

/// Regrets below this are rounding.
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

/// The largest regret on the unit scale; leaves the values of all actions behind.
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

/// What a strategy loses against the best action. Summed as differences: no payoff cancels.
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

/// The same for one of many.
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
        // Nothing is rounded where nothing is mixed.
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
    solution.seen_at(0);
    solution
}

/// The joint action that a profile plays, if it mixes none.
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
