//! The gates: what an algorithm has to reach in a world, within how many steps, with which share of the seeds.

use tars_worlds::GridWorld;

/// What a seed has to come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// A mean return of 100 episodes without exploring, in one of the evaluations.
    Return(f64),
    /// A pure equilibrium of one round in each of the last rounds.
    Equilibrium,
    /// None that can be missed: the distance from an equilibrium is told. Those who learn by their own returns go round
    /// the only equilibrium, a mixed one.
    Reported,
    /// Quantities that deviate from those of the market's equilibrium by at most this share.
    Quantity(f64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    pub(crate) algorithm: &'static str,
    pub(crate) world: &'static str,
    /// Steps of all copies together.
    pub(crate) steps: u64,
    pub(crate) goal: Goal,
    /// The percentage of the seeds that have to reach it.
    pub(crate) percent: u64,
    /// Whether it is quick.
    pub(crate) is_quick: bool,
}

impl Gate {
    /// How many of some seeds have to reach the goal.
    pub(crate) fn needed(&self, seeds: u64) -> u64 {
        (seeds * self.percent).div_ceil(100)
    }

    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.algorithm, self.world)
    }

    const fn quick(mut self) -> Self {
        self.is_quick = true;
        self
    }
}

const fn gate(
    algorithm: &'static str,
    world: &'static str,
    steps: u64,
    goal: Goal,
    percent: u64,
) -> Gate {
    Gate {
        algorithm,
        world,
        steps,
        goal,
        percent,
        is_quick: false,
    }
}

/// What counts as solved by those who published the environment.
const CARTPOLE: Goal = Goal::Return(475.0);
const ACROBOT: Goal = Goal::Return(-100.0);
const PENDULUM: Goal = Goal::Return(-200.0);
const PENDULUM_PPO: Goal = Goal::Return(-250.0);
const TAXI: Goal = Goal::Return(7.5);
/// Within a hundredth of the shortest walk.
const GRID: Goal = Goal::Return(0.99 * GridWorld::BEST_RETURN as f64);
const PURE: Goal = Goal::Equilibrium;
const COURNOT: Goal = Goal::Quantity(0.05);

pub(crate) const GATES: &[Gate] = &[
    gate("dqn", "cartpole", 150_000, CARTPOLE, 80),
    gate("a2c", "cartpole", 500_000, CARTPOLE, 100),
    gate("ppo", "cartpole", 100_000, CARTPOLE, 100),
    gate("ddpg", "pendulum", 30_000, PENDULUM, 80).quick(),
    gate("ppo", "pendulum", 200_000, PENDULUM_PPO, 100),
    gate("dqn", "acrobot", 100_000, ACROBOT, 100),
    gate("a2c", "acrobot", 500_000, ACROBOT, 100),
    gate("ppo", "acrobot", 500_000, ACROBOT, 100),
    gate("dqn", "taxi", 150_000, TAXI, 100),
    gate("dqn", "gridworld", 12_000, GRID, 100).quick(),
    gate("a2c", "gridworld", 100_000, GRID, 100),
    gate("ppo", "gridworld", 100_000, GRID, 100),
    gate("dqn", "prisoners_dilemma", 20_000, PURE, 100).quick(),
    gate("a2c", "prisoners_dilemma", 20_000, PURE, 100).quick(),
    gate("ppo", "prisoners_dilemma", 20_000, PURE, 100).quick(),
    gate("a2c", "stag_hunt", 100_000, PURE, 95),
    gate("ppo", "stag_hunt", 100_000, PURE, 95),
    gate("a2c", "battle_of_the_sexes", 100_000, PURE, 95),
    gate("ppo", "battle_of_the_sexes", 100_000, PURE, 95),
    gate("a2c", "chicken", 100_000, PURE, 95),
    gate("ppo", "chicken", 100_000, PURE, 95),
    gate("a2c", "congestion", 100_000, PURE, 100),
    gate("ppo", "congestion", 100_000, PURE, 100),
    gate("ppo", "rock_paper_scissors", 20_000, Goal::Reported, 0).quick(),
    gate("ddpg", "cournot_2", 40_000, COURNOT, 80),
    gate("ddpg", "cournot_3", 40_000, COURNOT, 80),
];
