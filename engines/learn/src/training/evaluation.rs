//! Episodes that are played without exploring and without learning.

use super::{player::Player, seats::Seats};
use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use tars_worlds::{Action, ActionSpace, Generator, Observations, Soundness, TimeStep, World};

/// The most steps of an episode in a world without a time limit.
const MAX_STEPS: u32 = 100_000;

/// An evaluation: the undiscounted returns of some episodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The steps of the training before it.
    pub step: u64,
    /// For each agent of the world, a return for each episode.
    pub returns: Vec<Vec<f64>>,
}

impl Evaluation {
    /// The mean return of an agent.
    ///
    /// # Panics
    ///
    /// When the world has no such agent.
    pub fn mean(&self, agent: usize) -> f64 {
        let returns = &self.returns[agent];
        returns.iter().sum::<f64>() / returns.len().max(1) as f64
    }

    /// The sample standard deviation of an agent's returns; 0 for fewer than two.
    ///
    /// # Panics
    ///
    /// As [`mean`](Self::mean).
    pub fn std(&self, agent: usize) -> f64 {
        let (returns, mean) = (&self.returns[agent], self.mean(agent));
        if returns.len() < 2 {
            return 0.0;
        }
        let squares: f64 = returns.iter().map(|r| (r - mean).powi(2)).sum();
        (squares / (returns.len() - 1) as f64).sqrt()
    }
}

/// How many actions a mask is about: none for continuous ones.
pub(super) fn mask_width(space: &ActionSpace) -> usize {
    match space {
        ActionSpace::Discrete(names) => names.len(),
        ActionSpace::Continuous(_) => 0,
    }
}

/// Plays episodes, at least one, with a player for each agent. The seed determines them. An episode that the
/// world could not complete is repeated. The returns mean nothing when the world is then
/// [lost](Soundness::Lost).
///
/// # Panics
///
/// When there are not as many players as agents, or a policy does not fit its agent.
pub fn evaluate(
    world: &mut dyn World,
    players: &[Player],
    episodes: u32,
    seed: u64,
    step: u64,
) -> Evaluation {
    let agents = &world.spec().agents;
    assert_eq!(players.len(), agents.len(), "a player for each agent");
    let mut table = Table {
        seen: Observations::new(world.spec()),
        steps: vec![TimeStep::default(); players.len()],
        actions: agents.iter().map(|a| a.action.first()).collect(),
        masks: agents
            .iter()
            .map(|a| vec![true; mask_width(&a.action)])
            .collect(),
        seats: players.iter().map(|player| Seats::new(player, 1)).collect(),
        rng: Generator::seed_from_u64(seed),
    };
    let mut returns = vec![Vec::new(); players.len()];
    let mut left = episodes.max(1);
    while left > 0 {
        let totals = table.play(world);
        if world.soundness() == Soundness::Interrupted {
            continue;
        }
        left -= 1;
        for (returns, total) in returns.iter_mut().zip(totals) {
            returns.push(total);
        }
    }
    Evaluation { step, returns }
}

/// What an episode is played with.
struct Table {
    seats: Vec<Seats>,
    seen: Observations,
    steps: Vec<TimeStep>,
    actions: Vec<Action>,
    masks: Vec<Vec<bool>>,
    rng: Generator,
}

impl Table {
    /// Plays one episode and returns what each agent got.
    fn play(&mut self, world: &mut dyn World) -> Vec<f64> {
        world.reset(&mut self.rng, &mut self.seen);
        let mut totals = vec![0.0; self.seats.len()];
        self.seats.iter_mut().for_each(|seats| seats.reset(0));
        for _ in 0..MAX_STEPS {
            for (agent, seats) in self.seats.iter_mut().enumerate() {
                let mask = &mut self.masks[agent];
                if !mask.is_empty() {
                    world.write_mask(agent, mask);
                }
                let (seen, action) = (self.seen.of(agent), &mut self.actions[agent]);
                seats.act(0, seen, mask, action);
            }
            world.step(
                &self.actions,
                &mut self.rng,
                &mut self.seen,
                &mut self.steps,
            );
            for (total, step) in totals.iter_mut().zip(&self.steps) {
                *total += f64::from(step.reward);
            }
            if self.steps.iter().all(TimeStep::is_last) {
                break;
            }
        }
        totals
    }
}
