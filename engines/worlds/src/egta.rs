//! Empirical games (Wellman, "Methods for Empirical Game-Theoretic Analysis", 2006): what every combination
//! of some actions of each agent earns in a world, measured by rollouts.
//!
//! All combinations are rolled out with the same random numbers, so that they differ by what the agents do and
//! not by luck. The payoffs are a game in normal form for a solver; how far the agents' own mixes are from an
//! equilibrium of it (`nash_conv`) needs no solver, and resampling the rollouts says how sure that is.

use crate::{
    space::Action,
    world::{BadSnapshot, Generator, Observations, TimeStep, World},
};
use rand::{Rng, RngExt, SeedableRng};

/// The largest number of joint actions.
pub const MAX_JOINT: usize = 10_000;

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Rollouts of each joint action.
    pub rollouts: usize,
    /// The steps of a rollout. It is shorter where the episode ends.
    pub steps: usize,
    /// For how many steps the joint action is taken. Afterwards the agents do what `then` says.
    pub repeat: usize,
    /// The discount factor of rewards; a payoff is the discounted mean, in the range of a reward.
    pub discount: f64,
    /// The seed of the random numbers that all rollouts share.
    pub seed: u64,
}

impl Default for Plan {
    /// 8 rollouts of 30 steps, of which the first 5 take the joint action.
    fn default() -> Self {
        Self {
            rollouts: 8,
            steps: 30,
            repeat: 5,
            discount: 1.0,
            seed: 0,
        }
    }
}

/// Why there is no empirical game.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoGame {
    /// There is not one list of actions, with at least one action, for each agent.
    #[error("each agent needs at least one action")]
    Actions,
    /// An action is not in its agent's space.
    #[error("action {action} of agent {agent} is not in its space")]
    NotInSpace {
        /// The agent's position.
        agent: usize,
        /// The action's position.
        action: usize,
    },
    /// There are more than [`MAX_JOINT`] joint actions.
    #[error("there are more than {MAX_JOINT} joint actions")]
    TooLarge,
    /// There is nothing to measure.
    #[error("at least one rollout of at least one step is needed")]
    Empty,
    /// The world cannot be copied, or refuses its own snapshot.
    #[error("the world cannot be copied")]
    NoCopy,
    /// The caller stopped it.
    #[error("the measurement was stopped")]
    Stopped,
}

impl From<BadSnapshot> for NoGame {
    fn from(_: BadSnapshot) -> Self {
        Self::NoCopy
    }
}

/// What joint actions earn, by rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct EmpiricalGame {
    shape: Vec<usize>,
    rollouts: usize,
    /// By agent, joint action (the last agent's action varies fastest) and rollout.
    samples: Vec<Vec<f32>>,
}

/// A measured number with a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The number, of all rollouts.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What the agents go on with after a joint action: it writes an action of its space for each of them, by what
/// they observe. It may be asked in any order of states, so it remembers nothing.
pub type Then<'a> = &'a mut dyn FnMut(&Observations, &mut [Action]);

/// Goes on with the same actions, whatever is observed.
pub fn always(actions: &[Action]) -> impl FnMut(&Observations, &mut [Action]) {
    move |_, joint| joint.clone_from_slice(actions)
}

/// Rolls out every joint action of some choices from the present state of a world, which it leaves in that
/// state. `then` is what the agents go on with.
///
/// # Errors
///
/// When the choices are none, or the world cannot be copied.
pub fn measure(
    world: &mut dyn World,
    choices: &[Vec<Action>],
    then: Then<'_>,
    plan: &Plan,
) -> Result<EmpiricalGame, NoGame> {
    measure_until(world, choices, then, plan, &|| false)
}

/// As [`measure`], until `is_stopped`, which is asked before each joint action.
///
/// # Errors
///
/// As [`measure`], and [`NoGame::Stopped`]. The world is then in the state that it was in, too.
pub fn measure_until(
    world: &mut dyn World,
    choices: &[Vec<Action>],
    then: Then<'_>,
    plan: &Plan,
    is_stopped: &dyn Fn() -> bool,
) -> Result<EmpiricalGame, NoGame> {
    check(world, choices, plan)?;
    let shape: Vec<usize> = choices.iter().map(Vec::len).collect();
    let joint = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
    let joint = joint
        .filter(|all| *all <= MAX_JOINT)
        .ok_or(NoGame::TooLarge)?;
    let snapshot = world.snapshot().ok_or(NoGame::NoCopy)?;
    let mut game = EmpiricalGame {
        samples: vec![Vec::with_capacity(joint * plan.rollouts); shape.len()],
        rollouts: plan.rollouts,
        shape,
    };
    let mut roller = Roller::new(world, then, plan);
    let mut stopped = false;
    for at in 0..joint {
        stopped = is_stopped();
        if stopped {
            break;
        }
        let first = game.actions(at, choices);
        for rollout in 0..plan.rollouts {
            roller.world.restore(&snapshot)?;
            for (samples, payoff) in game.samples.iter_mut().zip(roller.roll(&first, rollout)) {
                samples.push(*payoff as f32);
            }
        }
    }
    roller.world.restore(&snapshot)?;
    if stopped {
        return Err(NoGame::Stopped);
    }
    Ok(game)
}

fn check(world: &dyn World, choices: &[Vec<Action>], plan: &Plan) -> Result<(), NoGame> {
    let agents = &world.spec().agents;
    if choices.len() != agents.len() || choices.iter().any(Vec::is_empty) {
        return Err(NoGame::Actions);
    }
    if plan.rollouts == 0 || plan.steps == 0 {
        return Err(NoGame::Empty);
    }
    for (agent, space) in agents.iter().enumerate() {
        for (action, one) in choices[agent].iter().enumerate() {
            let checked = space.action.check(one);
            checked.map_err(|_| NoGame::NotInSpace { agent, action })?;
        }
    }
    Ok(())
}

/// Plays rollouts with buffers that it keeps.
struct Roller<'a> {
    world: &'a mut dyn World,
    then: Then<'a>,
    plan: &'a Plan,
    /// One seed for each rollout.
    seeds: Vec<u64>,
    seen: Observations,
    steps: Vec<TimeStep>,
    payoffs: Vec<f64>,
    /// What the agents do in a step.
    joint: Vec<Action>,
}

impl<'a> Roller<'a> {
    fn new(world: &'a mut dyn World, then: Then<'a>, plan: &'a Plan) -> Self {
        let mut seeds = Generator::seed_from_u64(plan.seed);
        let spaces = &world.spec().agents;
        let agents = spaces.len();
        Self {
            joint: spaces.iter().map(|space| space.action.first()).collect(),
            seen: Observations::new(world.spec()),
            steps: vec![TimeStep::default(); agents],
            payoffs: vec![0.0; agents],
            seeds: (0..plan.rollouts).map(|_| seeds.next_u64()).collect(),
            world,
            then,
            plan,
        }
    }

    /// The discounted mean reward of each agent.
    fn roll(&mut self, first: &[Action], rollout: usize) -> &[f64] {
        let mut rng = Generator::seed_from_u64(self.seeds[rollout]);
        let (mut weight, mut weights) = (1.0, 0.0);
        self.payoffs.fill(0.0);
        self.world.observe(&mut self.seen);
        self.joint.clone_from_slice(first);
        for step in 0..self.plan.steps {
            if step >= self.plan.repeat {
                (self.then)(&self.seen, &mut self.joint);
            }
            self.world
                .step(&self.joint, &mut rng, &mut self.seen, &mut self.steps);
            for (payoff, step) in self.payoffs.iter_mut().zip(&self.steps) {
                *payoff += weight * f64::from(step.reward);
            }
            weights += weight;
            weight *= self.plan.discount;
            if self.steps.iter().all(TimeStep::is_last) {
                break;
            }
        }
        self.payoffs
            .iter_mut()
            .for_each(|payoff| *payoff /= weights);
        &self.payoffs
    }
}

impl EmpiricalGame {
    /// How many actions each agent chooses among.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The mean payoffs: by agent, for each joint action, in which the last agent's action varies fastest.
    pub fn payoffs(&self) -> Vec<Vec<f64>> {
        let all: Vec<usize> = (0..self.rollouts).collect();
        self.payoffs_of(&all)
    }

    /// The mean payoffs over some rollouts, which may repeat.
    fn payoffs_of(&self, rollouts: &[usize]) -> Vec<Vec<f64>> {
        let mean = |samples: &[f32]| {
            let sum: f64 = rollouts.iter().map(|at| f64::from(samples[*at])).sum();
            sum / rollouts.len() as f64
        };
        let of = |samples: &Vec<f32>| samples.chunks_exact(self.rollouts).map(mean).collect();
        self.samples.iter().map(of).collect()
    }

    /// The position of each agent's action in a joint action.
    fn positions(&self, mut joint: usize) -> Vec<usize> {
        let mut positions = vec![0; self.shape.len()];
        for (position, actions) in positions.iter_mut().zip(&self.shape).rev() {
            *position = joint % actions;
            joint /= actions;
        }
        positions
    }

    fn actions(&self, joint: usize, choices: &[Vec<Action>]) -> Vec<Action> {
        let positions = self.positions(joint).into_iter().enumerate();
        positions
            .map(|(agent, at)| choices[agent][at].clone())
            .collect()
    }

    /// The sum of what each agent would gain by its best action when all mix as given: 0 in an equilibrium.
    ///
    /// # Panics
    ///
    /// When the mixes are not one for each agent with a number for each action.
    pub fn nash_conv(&self, mixes: &[Vec<f64>]) -> f64 {
        self.nash_conv_of(&self.payoffs(), mixes)
    }

    fn nash_conv_of(&self, payoffs: &[Vec<f64>], mixes: &[Vec<f64>]) -> f64 {
        assert_eq!(mixes.len(), self.shape.len(), "a mix for each agent");
        let joints: usize = self.shape.iter().product();
        let mut values: Vec<Vec<f64>> = self
            .shape
            .iter()
            .map(|actions| vec![0.0; *actions])
            .collect();
        for (joint, positions) in (0..joints).map(|joint| (joint, self.positions(joint))) {
            for (agent, own) in positions.iter().enumerate() {
                let others = positions
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != agent);
                let chance: f64 = others.map(|(other, at)| mixes[other][*at]).product();
                values[agent][*own] += chance * payoffs[agent][joint];
            }
        }
        let gain = |(values, mix): (&Vec<f64>, &Vec<f64>)| {
            let expected: f64 = values
                .iter()
                .zip(mix)
                .map(|(value, chance)| value * chance)
                .sum();
            values.iter().copied().fold(f64::MIN, f64::max) - expected
        };
        values.iter().zip(mixes).map(gain).sum()
    }

    /// [`nash_conv`](Self::nash_conv) with its percentile bootstrap interval (Efron, "Bootstrap Methods:
    /// Another Look at the Jackknife", 1979): rollouts are drawn again, for all joint actions the same.
    pub fn nash_conv_interval(
        &self,
        mixes: &[Vec<f64>],
        resamples: usize,
        level: f64,
        seed: u64,
    ) -> Interval {
        let value = self.nash_conv(mixes);
        let mut rng = Generator::seed_from_u64(seed);
        let mut resample = || {
            let draw = (0..self.rollouts).map(|_| rng.random_range(0..self.rollouts));
            let rollouts: Vec<usize> = draw.collect();
            self.nash_conv_of(&self.payoffs_of(&rollouts), mixes)
        };
        let mut values: Vec<f64> = (0..resamples.max(1)).map(|_| resample()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let tail = (1.0 - level.clamp(0.0, 1.0)) / 2.0;
        Interval {
            value,
            low: at(tail),
            high: at(1.0 - tail),
        }
    }
}

#[cfg(test)]
mod tests;
