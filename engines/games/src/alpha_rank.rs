//! Alpha-rank (Omidshafiei et al., "α-Rank: Multi-Agent Evaluation by Evolution", 2019): how often
//! each joint action is played in the long run when populations imitate what earns more, with rare
//! mutations. It is meant for meta-games, whose actions are whole agents.

use crate::Game;

/// The largest number of joint actions, which are the states of the Markov chain.
pub const MAX_STATES: usize = 1024;

/// The least fixation probability, which keeps the chain irreducible.
const RAREST: f64 = 1e-60;
/// Unnormalised masses above this are scaled down, so that they do not overflow.
const LARGE: f64 = 1e100;

/// The parameters of the evolutionary process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    /// The intensity of selection, on payoffs scaled to the range 0..=1; above zero, by default 100.
    pub intensity: f64,
    /// The individuals of each population; at least 2, by default 50.
    pub population: u32,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            intensity: 100.0,
            population: 50,
        }
    }
}

/// Why a game was not ranked.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum RankError {
    /// The game has this many joint actions, more than [`MAX_STATES`].
    #[error("the game has {0} joint actions; alpha-rank supports up to {MAX_STATES}")]
    TooLarge(usize),
    /// A parameter is out of bounds.
    #[error("the intensity must be a number above zero, and the population at least 2")]
    Selection,
    /// The computation was stopped before its end.
    #[error("the computation was stopped")]
    Stopped,
}

impl Game {
    /// The share of time that each joint action is played, in the order of [`Game::joint`]. The sum
    /// is one.
    ///
    /// # Errors
    ///
    /// See [`RankError`].
    pub fn alpha_rank(
        &self,
        selection: Selection,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<f64>, RankError> {
        let states = self.cells();
        if states > MAX_STATES {
            return Err(RankError::TooLarge(states));
        }
        let Selection {
            intensity,
            population,
        } = selection;
        if !(intensity > 0.0 && intensity.is_finite()) || population < 2 {
            return Err(RankError::Selection);
        }
        let mut rates = vec![0.0; states * states];
        for player in 0..self.players() {
            let (actions, stride) = (self.shape()[player], self.stride(player));
            let unit = self.unit(player);
            for from in 0..states {
                let own = from / stride % actions;
                for to in (0..actions).filter(|a| *a != own) {
                    let to = from - own * stride + to * stride;
                    let gain = unit[to] - unit[from];
                    rates[from * states + to] = fixation(gain, intensity, f64::from(population));
                }
            }
        }
        stationary(&mut rates, states, stopped).ok_or(RankError::Stopped)
    }
}

/// The probability that a single mutant with this payoff advantage takes over a population.
fn fixation(gain: f64, intensity: f64, population: f64) -> f64 {
    let strength = intensity * gain;
    if strength.abs() * population < 1e-9 {
        return 1.0 / population;
    }
    if strength > 0.0 {
        (-(-strength).exp_m1()) / (-(-strength * population).exp_m1())
    } else {
        // The same formula, rearranged so that it does not overflow.
        let taken = (-strength).exp_m1() * (strength * population).exp()
            / (-(strength * population).exp_m1());
        taken.max(RAREST)
    }
}

/// The stationary distribution by the elimination of Grassmann, Taksar and Heyman (1985). It does not
/// subtract, so no precision is lost to cancellation, however small some rates are.
fn stationary(rates: &mut [f64], n: usize, stopped: &dyn Fn() -> bool) -> Option<Vec<f64>> {
    for last in (1..n).rev() {
        if stopped() {
            return None;
        }
        let (above, row) = rates.split_at_mut(last * n);
        let out: f64 = row[..last].iter().sum();
        for line in above.chunks_exact_mut(n) {
            let share = line[last] / out;
            line[last] = share;
            if share > 0.0 {
                crate::kernel::add_scaled(&mut line[..last], share, &row[..last]);
            }
        }
    }
    let mut mass = vec![0.0; n];
    mass[0] = 1.0;
    for state in 1..n {
        mass[state] = (0..state).map(|s| mass[s] * rates[s * n + state]).sum();
        if mass[state] > LARGE {
            let scale = 1.0 / mass[state];
            mass[..=state].iter_mut().for_each(|m| *m *= scale);
        }
    }
    let sum: f64 = mass.iter().sum();
    mass.iter_mut().for_each(|m| *m /= sum);
    mass.iter().all(|m| m.is_finite()).then_some(mass)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(shape: &[usize], payoffs: &[&[f64]]) -> Vec<f64> {
        let payoffs = payoffs.iter().map(|p| p.to_vec()).collect();
        let game = Game::new(shape.to_vec(), payoffs).unwrap();
        game.alpha_rank(Selection::default(), &|| false).unwrap()
    }

    #[test]
    fn a_dominant_joint_action_has_almost_all_mass() {
        let mass = rank(&[2, 2], &[&[3.0, 0.0, 5.0, 1.0], &[3.0, 5.0, 0.0, 1.0]]);
        assert!(mass[3] > 0.999, "{mass:?}");
    }

    #[test]
    fn a_cycle_has_equal_masses() {
        let rps = [0.0, -1.0, 1.0, 1.0, 0.0, -1.0, -1.0, 1.0, 0.0];
        let mass = rank(&[3, 3], &[&rps, &rps.map(|v| -v)]);
        let off: Vec<f64> = mass.iter().copied().filter(|m| *m > 0.01).collect();
        assert!((mass.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(
            off.windows(2).all(|w| (w[0] - w[1]).abs() < 0.12),
            "{mass:?}"
        );
    }

    #[test]
    fn fixation_probabilities_agree_with_the_formula() {
        let even = rank(&[2, 2], &[&[1.0; 4], &[1.0; 4]]);
        assert!(even.iter().all(|m| (m - 0.25).abs() < 1e-12));
        assert!((fixation(0.0, 10.0, 50.0) - 0.02).abs() < 1e-12);
        let truth = (1.0 - (-0.5f64).exp()) / (1.0 - (-25.0f64).exp());
        assert!((fixation(0.5, 1.0, 50.0) - truth).abs() < 1e-15);
        let truth = (1.0 - 0.5f64.exp()) / (1.0 - 25.0f64.exp());
        assert!((fixation(-0.5, 1.0, 50.0) / truth - 1.0).abs() < 1e-9);
    }

    #[test]
    fn large_games_bad_parameters_and_stopped_computations_are_errors() {
        let game = Game::new(vec![32, 33], vec![vec![0.0; 32 * 33]; 2]).unwrap();
        let rank = |g: &Game, s, stop: bool| g.alpha_rank(s, &|| stop).unwrap_err();
        let usual = Selection::default();
        assert_eq!(rank(&game, usual, false), RankError::TooLarge(1056));
        let small = Game::new(vec![2, 2], vec![vec![0.0; 4]; 2]).unwrap();
        assert_eq!(rank(&small, usual, true), RankError::Stopped);
        for (intensity, population) in [(0.0, 50), (f64::NAN, 50), (1.0, 1)] {
            let bad = Selection {
                intensity,
                population,
            };
            assert_eq!(rank(&small, bad, false), RankError::Selection);
        }
    }
}
