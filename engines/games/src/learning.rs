//! Learning processes: fictitious play (Brown, "Iterative Solution of Games by Fictitious Play", 1951),
//! regret matching plus (Tammelin, "Solving Large Imperfect Information Games Using CFR+", 2014),
//! replicator dynamics (Taylor and Jonker, 1978) and projected replicator dynamics (Lanctot et al.,
//! 2017).
//!
//! In zero-sum games the averages of the first two converge to an equilibrium, slowly. In other games
//! there is no guarantee, and the certificate tells how close the result is.

use crate::{
    Game,
    kernel::dot,
    random::Stream,
    search::{Method, Search},
};

/// The time step of the replicator dynamics, for payoffs scaled to 0..=1.
const TIME_STEP: f64 = 0.2;
/// Payoffs that are read between two polls of whether to stop.
const PAYOFFS_BETWEEN_CHECKS: usize = 50_000;
/// The total probability that the projected dynamics keep on a player's actions as a minimum.
const EXPLORATION: f64 = 1e-6;

/// A learning process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// Every player best-responds to the empirical frequencies of the others' actions.
    FictitiousPlay,
    /// Every player mixes in proportion to its clipped cumulative regrets; later rounds have more
    /// weight in the average.
    RegretMatchingPlus,
    /// Shares grow with their payoff relative to the mean, from a random start.
    Replicator,
    /// The replicator dynamics with a lower bound on every share, which keeps exploring.
    ProjectedReplicator,
}

impl Process {
    fn method(self) -> Method {
        match self {
            Self::FictitiousPlay => Method::FictitiousPlay,
            Self::RegretMatchingPlus => Method::RegretMatchingPlus,
            Self::Replicator => Method::Replicator,
            Self::ProjectedReplicator => Method::ProjectedReplicator,
        }
    }
}

struct State {
    now: Vec<f64>,
    mean: Vec<f64>,
    regrets: Vec<f64>,
    values: Vec<f64>,
}

/// Runs a process for a number of rounds, or until its average or its present profile is a solution.
pub(crate) fn search(search: &mut Search<'_>, process: Process, rounds: u64, seed: u64) {
    let game = search.game;
    let total = game.total_actions();
    let mut state = State {
        now: game.uniform(),
        mean: game.uniform(),
        regrets: vec![0.0; total],
        values: vec![0.0; total],
    };
    if matches!(process, Process::Replicator | Process::ProjectedReplicator) {
        // Uniform strategies can be a rest point without being an equilibrium.
        Stream::new(seed).profile(game, &mut state.now);
    }
    let payoffs = game.cells() * game.players();
    let check_every = (PAYOFFS_BETWEEN_CHECKS / payoffs).clamp(1, 64) as u64;
    let mut next_offer = 1;
    for round in 1..=rounds {
        search.iterations += 1;
        state.advance(search, process, round);
        if round == next_offer || round == rounds {
            next_offer += 1 + next_offer / 4;
            search.offer(process.method(), &state.mean);
            search.offer(process.method(), &state.now);
            if search.solved() {
                return;
            }
        }
        if round.is_multiple_of(check_every) && search.is_stopped() {
            search.offer(process.method(), &state.mean);
            return;
        }
    }
}

impl State {
    fn advance(&mut self, search: &mut Search<'_>, process: Process, round: u64) {
        let game = search.game;
        for player in 0..game.players() {
            let own = game.actions(player);
            // Fictitious play responds to the average so far, the other processes to the present.
            let against = match process {
                Process::FictitiousPlay => &self.mean,
                _ => &self.now,
            };
            let values = &mut self.values[own];
            search.kernel.values(game, player, against, values);
            if process == Process::RegretMatchingPlus {
                self.match_regrets(game, player);
            }
        }
        for player in 0..game.players() {
            match process {
                Process::FictitiousPlay => self.best_respond(game, player),
                Process::RegretMatchingPlus => {}
                Process::Replicator => self.replicate(game, player, 0.0),
                Process::ProjectedReplicator => self.replicate(game, player, EXPLORATION),
            }
        }
        // Linear averaging is known to speed up regret matching plus.
        let weight = match process {
            Process::RegretMatchingPlus => 2.0 / (round as f64 + 1.0),
            _ => 1.0 / (round as f64 + 1.0),
        };
        for (mean, now) in self.mean.iter_mut().zip(&self.now) {
            *mean += weight * (now - *mean);
        }
    }

    fn best_respond(&mut self, game: &Game, player: usize) {
        let own = game.actions(player);
        let best = own
            .clone()
            .rev()
            .max_by(|a, b| self.values[*a].total_cmp(&self.values[*b]));
        self.now[own].fill(0.0);
        if let Some(best) = best {
            self.now[best] = 1.0;
        }
    }

    fn match_regrets(&mut self, game: &Game, player: usize) {
        let own = game.actions(player);
        let mean = dot(&self.now[own.clone()], &self.values[own.clone()]);
        let mut sum = 0.0;
        for k in own.clone() {
            self.regrets[k] = (self.regrets[k] + self.values[k] - mean).max(0.0);
            sum += self.regrets[k];
        }
        let even = 1.0 / own.len() as f64;
        for k in own {
            self.now[k] = if sum > 0.0 {
                self.regrets[k] / sum
            } else {
                even
            };
        }
    }

    fn replicate(&mut self, game: &Game, player: usize, exploration: f64) {
        let own = game.actions(player);
        let mean = dot(&self.now[own.clone()], &self.values[own.clone()]);
        let floor = exploration / own.len() as f64;
        let mut sum = 0.0;
        for k in own.clone() {
            let grown = self.now[k] * (1.0 + TIME_STEP * self.values[k]) / (1.0 + TIME_STEP * mean);
            self.now[k] = grown.max(floor);
            sum += self.now[k];
        }
        self.now[own].iter_mut().for_each(|p| *p /= sum);
    }
}
