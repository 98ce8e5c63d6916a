//! Correlated equilibria (Aumann, "Subjectivity and Correlation in Randomized Strategies", 1974) and
//! coarse correlated equilibria (Moulin and Vial, 1978): lotteries over joint actions from whose
//! draws nobody gains by deviating. The best one by an objective is a linear program.

use crate::{Game, Options, game::ProfileError, lottery::LinearProgram, search::Control};

/// Which deviations must not pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concept {
    /// Playing another action after a recommendation was seen.
    Correlated,
    /// Committing to one action before the draw.
    Coarse,
}

/// What the chosen equilibrium maximises.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// The sum of the payoffs.
    Welfare,
    /// The smallest payoff, as a share of its player's payoff range.
    Fairness,
    /// The weighted sum of the payoffs, with a weight for each player.
    Weighted(Vec<f64>),
}

/// A lottery over joint actions with its certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Correlated {
    /// The probability of each joint action, in the order of [`Game::joint`].
    pub lottery: Vec<f64>,
    /// The expected payoff of each player.
    pub payoffs: Vec<f64>,
    /// What each player could gain by deviating, in units of its payoffs.
    pub regret: Vec<f64>,
    /// The largest regret, as a share of its player's payoff range.
    pub relative_regret: f64,
    /// The bound on `relative_regret` that [`converged`](Self::converged) checks.
    pub tolerance: f64,
    /// Whether the lottery was proven to maximise the objective.
    pub optimal: bool,
}

impl Correlated {
    /// Whether the lottery is an equilibrium within its tolerance.
    pub fn converged(&self) -> bool {
        self.relative_regret <= self.tolerance
    }
}

/// The largest number of entries in the incentive constraints. Larger programs take longer to solve
/// than a call may.
pub const MAX_ENTRIES: usize = 1 << 15;

/// The incentive constraints have this many entries, more than [`MAX_ENTRIES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the game's incentive constraints have {0} entries; correlated equilibria support up to {MAX_ENTRIES}"
)]
pub struct ProgramTooLarge(pub usize);

/// The accuracy of the linear programs.
const TOLERANCE: f64 = 1e-6;

impl Game {
    /// The equilibrium that maximises the objective. When the program is stopped, the lottery that
    /// the best Nash profile so far induces, which is then not `optimal`.
    ///
    /// # Errors
    ///
    /// When the game is too large.
    pub fn correlated(
        &self,
        concept: Concept,
        objective: &Objective,
        options: &Options,
        control: &dyn Control,
    ) -> Result<Correlated, ProgramTooLarge> {
        let entries = self.cells() * self.shape().iter().map(|a| a - 1).sum::<usize>();
        if entries > MAX_ENTRIES {
            return Err(ProgramTooLarge(entries));
        }
        let stopped = || control.is_stopped();
        let best = self
            .program(concept, objective, &stopped)
            .and_then(|program| program.solve(&stopped));
        let optimal = best.is_some();
        let lottery = best.unwrap_or_else(|| {
            let nash = self.any_equilibrium(options, control);
            self.product(&nash.profile.concat())
        });
        let tolerance = options.tolerance.unwrap_or(TOLERANCE);
        Ok(self.certify_lottery(lottery, concept, tolerance, optimal))
    }

    /// Certifies a given lottery. Its certificate is never `optimal`.
    ///
    /// # Errors
    ///
    /// When it is not a probability distribution over the joint actions.
    pub fn verify_lottery(
        &self,
        lottery: &[f64],
        concept: Concept,
        tolerance: f64,
    ) -> Result<Correlated, ProfileError> {
        let lottery = crate::game::strategy(lottery, 0, self.cells())?;
        Ok(self.certify_lottery(lottery, concept, tolerance, false))
    }

    /// The linear program; `None` when it was stopped while it was built.
    fn program(
        &self,
        concept: Concept,
        objective: &Objective,
        stopped: &dyn Fn() -> bool,
    ) -> Option<LinearProgram> {
        let players = 0..self.players();
        let weights: Vec<f64> = match objective {
            Objective::Welfare => players.map(|i| self.span(i)).collect(),
            Objective::Weighted(w) => players.map(|i| w[i] * self.span(i)).collect(),
            Objective::Fairness => vec![0.0; self.players()],
        };
        let largest = weights.iter().fold(0.0f64, |l, w| l.max(w.abs()));
        let scale = if largest > 0.0 { largest } else { 1.0 };
        let worth = |cell: usize| -> f64 {
            let payoffs = weights.iter().enumerate();
            payoffs.map(|(i, w)| w / scale * self.unit(i)[cell]).sum()
        };
        let fair = *objective == Objective::Fairness;
        let mut program =
            LinearProgram::new((0..self.cells()).map(worth), f64::from(u8::from(fair)));
        if fair {
            for player in 0..self.players() {
                let earned = self.unit(player).iter().copied().enumerate();
                program.at_least(earned, 1.0, 0.0);
            }
        }
        let mut complete = true;
        self.deviations(concept, |cells| {
            complete = complete && !stopped();
            if complete {
                program.at_least(cells, 0.0, 0.0);
            }
        });
        complete.then_some(program)
    }

    /// The incentive constraints: for each deviation, what a player loses by it, as coefficients of
    /// the joint actions.
    fn deviations(
        &self,
        concept: Concept,
        mut row: impl FnMut(&mut dyn Iterator<Item = (usize, f64)>),
    ) {
        for player in 0..self.players() {
            let (actions, stride) = (self.shape()[player], self.stride(player));
            let own = |cell: usize| cell / stride % actions;
            let unit = self.unit(player);
            let loss =
                |cell: usize, to: usize| unit[cell] - unit[cell + to * stride - own(cell) * stride];
            for to in 0..actions {
                match concept {
                    Concept::Coarse => {
                        row(&mut (0..self.cells()).map(|cell| (cell, loss(cell, to))));
                    }
                    Concept::Correlated => {
                        for from in (0..actions).filter(|a| *a != to) {
                            let recommended = (0..self.cells()).filter(|cell| own(*cell) == from);
                            row(&mut recommended.map(|cell| (cell, loss(cell, to))));
                        }
                    }
                }
            }
        }
    }

    /// The lottery that independent mixed strategies induce.
    fn product(&self, profile: &[f64]) -> Vec<f64> {
        (0..self.cells())
            .map(|cell| {
                let joint = self.joint(cell).into_iter().enumerate();
                joint
                    .map(|(i, a)| profile[self.actions(i).start + a])
                    .product()
            })
            .collect()
    }

    fn certify_lottery(
        &self,
        lottery: Vec<f64>,
        concept: Concept,
        tolerance: f64,
        optimal: bool,
    ) -> Correlated {
        let relative: Vec<f64> = (0..self.players())
            .map(|player| self.lottery_regret(&lottery, concept, player))
            .collect();
        let payoffs = (0..self.players())
            .map(|i| self.low(i) + self.span(i) * crate::kernel::dot(&lottery, self.unit(i)))
            .collect();
        Correlated {
            payoffs,
            regret: relative
                .iter()
                .enumerate()
                .map(|(i, r)| r * self.span(i))
                .collect(),
            relative_regret: relative.iter().copied().fold(0.0, f64::max),
            tolerance,
            optimal,
            lottery,
        }
    }

    /// What the best deviation gains: the best action for each recommendation, or one action for all
    /// draws.
    fn lottery_regret(&self, lottery: &[f64], concept: Concept, player: usize) -> f64 {
        let (actions, stride) = (self.shape()[player], self.stride(player));
        let unit = self.unit(player);
        let mut gains = vec![0.0f64; actions * actions];
        for (cell, weight) in lottery.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            let from = cell / stride % actions;
            let first = cell - from * stride;
            for to in 0..actions {
                gains[from * actions + to] += weight * (unit[first + to * stride] - unit[cell]);
            }
        }
        let best = |gains: &mut dyn Iterator<Item = f64>| gains.fold(0.0, f64::max);
        match concept {
            Concept::Correlated => gains
                .chunks_exact(actions)
                .map(|row| best(&mut row.iter().copied()))
                .sum(),
            Concept::Coarse => {
                best(&mut (0..actions).map(|to| gains.iter().skip(to).step_by(actions).sum()))
            }
        }
    }
}
