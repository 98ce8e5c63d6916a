//! Comparisons of ways to act: episodes with given seeds, in which a learned policy and a controller that does
//! not learn take the same part, and the differences between what each of them earned.
//!
//! A difference is taken seed by seed: both sides meet the same episode as far as they do not change it
//! themselves, so that the luck of the episode cancels out.

use crate::policy::{Policy, Scratch};
use rand::SeedableRng;
use tars_worlds::{Action, Controller, Generator, Observations, TimeStep, World};

/// A learned policy in the place of a controller. It takes the best known actions and does not explore.
#[derive(Debug, Clone)]
pub struct Trained {
    policy: Policy,
    scratch: Scratch,
}

impl From<Policy> for Trained {
    fn from(policy: Policy) -> Self {
        Self {
            policy,
            scratch: Scratch::default(),
        }
    }
}

impl Controller for Trained {
    fn act(&mut self, observation: &[f32], action: &mut Action) {
        let scratch = &mut self.scratch;
        self.policy.act_into(observation, &[], scratch, action);
    }
}

/// Plays an episode with each seed and returns the mean reward of a step: by agent, for each seed. The
/// controllers act for the agents in their order, in a world that has a time limit and no invalid actions.
///
/// # Panics
///
/// When there are not as many controllers as agents.
pub fn play(
    world: &mut dyn World,
    players: &mut [Box<dyn Controller>],
    seeds: impl IntoIterator<Item = u64>,
) -> Vec<Vec<f64>> {
    let mut rewards = vec![Vec::new(); players.len()];
    for seed in seeds {
        for (rewards, mean) in rewards.iter_mut().zip(episode(world, players, seed)) {
            rewards.push(mean);
        }
    }
    rewards
}

/// The mean reward of each agent in one episode.
fn episode(world: &mut dyn World, players: &mut [Box<dyn Controller>], seed: u64) -> Vec<f64> {
    let agents = &world.spec().agents;
    assert_eq!(players.len(), agents.len(), "a controller for each agent");
    let mut joint: Vec<Action> = agents.iter().map(|a| a.action.first()).collect();
    let mut seen = Observations::new(world.spec());
    let mut steps = vec![TimeStep::default(); players.len()];
    let mut rng = Generator::seed_from_u64(seed);
    let (mut sums, mut count) = (vec![0.0; players.len()], 0.0);
    players.iter_mut().for_each(|player| player.reset());
    world.reset(&mut rng, &mut seen);
    while count == 0.0 || !steps.iter().all(TimeStep::is_last) {
        for (agent, player) in players.iter_mut().enumerate() {
            player.act(seen.of(agent), &mut joint[agent]);
        }
        world.step(&joint, &mut rng, &mut seen, &mut steps);
        count += 1.0;
        for (sum, step) in sums.iter_mut().zip(&steps) {
            *sum += f64::from(step.reward);
        }
    }
    sums.into_iter().map(|sum| sum / count).collect()
}

/// By how much a candidate exceeds an incumbent, with the 95 % interval of the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The mean of the differences.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What a difference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval is above zero.
    Better,
    /// The whole interval is below zero.
    Worse,
    /// The interval contains zero.
    Undecided,
}

impl Difference {
    /// The mean of paired differences and its interval by Student's distribution ("The Probable Error of a
    /// Mean", 1908). With fewer than two pairs the interval is unbounded.
    ///
    /// # Panics
    ///
    /// When there are not as many candidates as incumbents, or none.
    pub fn paired(candidate: &[f64], incumbent: &[f64]) -> Self {
        assert_eq!(candidate.len(), incumbent.len(), "a pair for each seed");
        assert!(!candidate.is_empty(), "at least one pair");
        let pairs = candidate.iter().zip(incumbent);
        let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
        let count = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / count;
        let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
        let half = match differences.len() {
            1 => f64::INFINITY,
            _ => student(count - 1.0) * (squares / (count - 1.0) / count).sqrt(),
        };
        Self {
            mean,
            low: mean - half,
            high: mean + half,
        }
    }

    /// What it says at this level.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self { low, .. } if *low > 0.0 => Verdict::Better,
            Self { high, .. } if *high < 0.0 => Verdict::Worse,
            _ => Verdict::Undecided,
        }
    }
}

/// The 97.5th percentile of Student's distribution (Fisher and Cornish, "The Percentile Points of
/// Distributions Having Known Cumulants", 1960): within 1 % from 4 degrees of freedom, 0.01 % from 10.
fn student(degrees: f64) -> f64 {
    const Z: f64 = 1.959_963_984_540_054;
    let powers = |coefficients: &[f64]| {
        let squared = Z * Z;
        Z * coefficients.iter().fold(0.0, |sum, c| sum * squared + c)
    };
    Z + powers(&[1.0, 1.0]) / (4.0 * degrees)
        + powers(&[5.0, 16.0, 3.0]) / (96.0 * degrees.powi(2))
        + powers(&[3.0, 19.0, 17.0, -15.0]) / (384.0 * degrees.powi(3))
        + powers(&[79.0, 776.0, 1482.0, -1920.0, -945.0]) / (92_160.0 * degrees.powi(4))
}

#[cfg(test)]
mod tests;
