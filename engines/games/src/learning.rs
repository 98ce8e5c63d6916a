//! Processes that approach an equilibrium, or do not: fictitious play (Brown, 1951), regret
//! matching plus (Tammelin, 2014), replicator dynamics (Taylor and Jonker, 1978) and its projected
//! variant (Lanctot et al., 2017). In zero-sum games the first two arrive, slowly; elsewhere the
//! certificate says how near they came.

use crate::{
    Game,
    kernel::dot,
    random::Stream,
    search::{Method, Search},
};

/// Time of one step of the dynamics, in units where payoffs span one.
const TIME: f64 = 0.2;
/// How many payoffs are summed between two looks at whether to stop.
const PAYOFFS_BETWEEN_CHECKS: usize = 50_000;
/// The least weight that projected replicators keep on all of a player's actions together.
const EXPLORE: f64 = 1e-6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    FictitiousPlay,
    RegretMatchingPlus,
    Replicator,
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

/// Runs a process for a number of rounds or until its mean or its present is a solution.
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
        // An even mix can be at rest without being an equilibrium.
        Stream::new(seed).profile(game, &mut state.now);
    }
    let payoffs = game.cells() * game.players();
    let check_every = (PAYOFFS_BETWEEN_CHECKS / payoffs).clamp(1, 64) as u64;
    let mut look = 1;
    for round in 1..=rounds {
        search.iterations += 1;
        state.advance(search, process, round);
        if round == look || round == rounds {
            look += 1 + look / 4;
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
            // Fictitious play answers what was seen so far, the others what is played now.
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
                Process::FictitiousPlay => self.answer(game, player),
                Process::RegretMatchingPlus => {}
                Process::Replicator => self.replicate(game, player, 0.0),
                Process::ProjectedReplicator => self.replicate(game, player, EXPLORE),
            }
        }
        // Later rounds weigh more where that is known to help.
        let weight = match process {
            Process::RegretMatchingPlus => 2.0 / (round as f64 + 1.0),
            _ => 1.0 / (round as f64 + 1.0),
        };
        for (mean, now) in self.mean.iter_mut().zip(&self.now) {
            *mean += weight * (now - *mean);
        }
    }

    fn answer(&mut self, game: &Game, player: usize) {
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

    fn replicate(&mut self, game: &Game, player: usize, explore: f64) {
        let own = game.actions(player);
        let mean = dot(&self.now[own.clone()], &self.values[own.clone()]);
        let floor = explore / own.len() as f64;
        let mut sum = 0.0;
        for k in own.clone() {
            let grown = self.now[k] * (1.0 + TIME * self.values[k]) / (1.0 + TIME * mean);
            self.now[k] = grown.max(floor);
            sum += self.now[k];
        }
        self.now[own].iter_mut().for_each(|p| *p /= sum);
    }
}
