//! The learning gates of PPO and A2C: for each environment the share of seeds whose best evaluation reaches a
//! return within a number of steps.
//!
//! ```text
//! cargo run --release -p tars-learn --example on_policy_gates [seeds] [name ...]
//! ```

use rand::SeedableRng;
use tars_learn::{
    Learner, Policy, Step, algorithm,
    hyper::{Value, Values},
    policy::Scratch,
};
use tars_worlds::{Action, AgentSpace, Copies, Generator, make_world};

/// What is learned, how, and what has to be reached.
struct Gate {
    name: &'static str,
    algorithm: &'static str,
    world: &'static str,
    steps: usize,
    copies: usize,
    /// The mean return of an evaluation.
    goal: f32,
    values: &'static [(&'static str, f64)],
    flags: &'static [(&'static str, bool)],
}

const GATES: &[Gate] = &[
    Gate {
        name: "ppo_cartpole",
        algorithm: "ppo",
        world: "cartpole",
        steps: 100_000,
        copies: 8,
        goal: 475.0,
        values: &[
            ("learning_rate", 1e-3),
            ("gamma", 0.98),
            ("gae_lambda", 0.8),
            ("entropy_coef", 0.0),
            ("n_steps", 32.0),
            ("batch_size", 256.0),
            ("n_epochs", 20.0),
            ("target_kl", 1.0),
            ("anneal_steps", 100_000.0),
        ],
        flags: &[],
    },
    Gate {
        name: "a2c_cartpole",
        algorithm: "a2c",
        world: "cartpole",
        steps: 500_000,
        copies: 8,
        goal: 475.0,
        values: &[("entropy_coef", 0.0), ("hidden_dim", 64.0)],
        flags: &[("normalize_advantage", false)],
    },
    Gate {
        name: "ppo_acrobot",
        algorithm: "ppo",
        world: "acrobot",
        steps: 1_000_000,
        copies: 16,
        goal: -100.0,
        values: &[
            ("gae_lambda", 0.94),
            ("entropy_coef", 0.0),
            ("n_steps", 256.0),
            ("n_epochs", 4.0),
            ("target_kl", 1.0),
        ],
        flags: &[],
    },
    Gate {
        name: "ppo_gridworld",
        algorithm: "ppo",
        world: "gridworld",
        steps: 100_000,
        copies: 8,
        goal: 0.99 * tars_worlds::GridWorld::BEST_RETURN,
        values: &[],
        flags: &[],
    },
    Gate {
        name: "a2c_gridworld",
        algorithm: "a2c",
        world: "gridworld",
        steps: 200_000,
        copies: 8,
        goal: 0.99 * tars_worlds::GridWorld::BEST_RETURN,
        values: &[],
        flags: &[],
    },
    Gate {
        name: "ppo_pendulum",
        algorithm: "ppo",
        world: "pendulum",
        steps: 200_000,
        copies: 4,
        goal: -250.0,
        values: &[
            ("learning_rate", 1e-3),
            ("gamma", 0.9),
            ("gae_lambda", 0.95),
            ("entropy_coef", 0.0),
            ("n_steps", 1024.0),
            ("target_kl", 1.0),
        ],
        flags: &[],
    },
];

/// The evaluations of a run, at equal distances.
const EVALUATIONS: usize = 20;
const EPISODES: usize = 100;

impl Gate {
    fn values(&self) -> Values {
        let numbers = self
            .values
            .iter()
            .map(|(name, n)| (*name, Value::Number(*n)));
        let flags = self.flags.iter().map(|(name, f)| (*name, Value::Flag(*f)));
        numbers
            .chain(flags)
            .map(|(name, v)| (name.to_owned(), v))
            .collect()
    }

    /// The best mean return of a run and its steps per CPU second.
    fn run(&self, seed: u64) -> (f32, f64) {
        let make = || make_world(self.world).expect("a built-in world");
        let mut copies = Copies::new(make, self.copies, seed);
        let space = copies.spec().agents[0].clone();
        let rng = &mut Generator::seed_from_u64(seed);
        let found = algorithm::find(self.algorithm).expect("an algorithm");
        let learner = found.create(&space, &self.values(), self.copies, rng);
        let mut learner = learner.expect("valid hyperparameters");
        let (mut best, mut spent) = (f32::NEG_INFINITY, 0.0);
        for _ in 0..EVALUATIONS {
            let started = cpu_seconds();
            train(&mut *learner, &mut copies, self.steps / EVALUATIONS, rng);
            spent += cpu_seconds() - started;
            best = best.max(evaluate(&learner.policy(), self.world, &space));
        }
        (best, self.steps as f64 / spent)
    }
}

fn train(learner: &mut dyn Learner, copies: &mut Copies, steps: usize, rng: &mut Generator) {
    let space = &copies.spec().agents[0];
    let mut actions = vec![space.action.first(); copies.len()];
    let mut observations = copies.agent(0).observations.clone();
    for _ in 0..steps / copies.len() {
        learner.act(&observations, &[], rng, &mut actions);
        copies.step(&actions);
        let seen = copies.agent(0);
        let step = Step {
            observations: &observations,
            actions: &actions,
            rewards: &seen.rewards,
            next_observations: &seen.observations,
            next_masks: &[],
            final_observations: &seen.final_observations,
            terminated: &seen.terminated,
            truncated: &seen.truncated,
        };
        learner.observe(&step, rng);
        learner.update(rng);
        observations.copy_from_slice(&copies.agent(0).observations);
    }
}

/// The mean return of the best known actions.
fn evaluate(policy: &Policy, world: &str, space: &AgentSpace) -> f32 {
    let mut copies = Copies::new(|| make_world(world).expect("a built-in world"), 1, 12_345);
    let (mut scratch, mut action): (_, Action) = (Scratch::default(), space.action.first());
    let (mut sum, mut episodes) = (0.0, 0);
    while episodes < EPISODES {
        policy.act_into(
            &copies.agent(0).observations,
            &[],
            &mut scratch,
            &mut action,
        );
        copies.step(std::slice::from_ref(&action));
        let seen = copies.agent(0);
        sum += seen.rewards[0];
        episodes += usize::from(seen.terminated[0] || seen.truncated[0]);
    }
    sum / EPISODES as f32
}

/// The CPU time of this thread.
fn cpu_seconds() -> f64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts CPU time");
    let nanoseconds = text
        .split_whitespace()
        .next()
        .and_then(|n| n.parse::<f64>().ok());
    nanoseconds.expect("the first number is nanoseconds") / 1e9
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seeds: u64 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(10);
    let names: Vec<String> = arguments.collect();
    let chosen = |gate: &&Gate| names.is_empty() || names.iter().any(|name| name == gate.name);
    for gate in GATES.iter().filter(chosen) {
        let runs: Vec<(f32, f64)> = (1..=seeds).map(|seed| gate.run(seed)).collect();
        let reached = runs.iter().filter(|(best, _)| *best >= gate.goal).count();
        let speed = runs.iter().map(|(_, speed)| speed).sum::<f64>() / runs.len() as f64;
        let bests: Vec<String> = runs.iter().map(|(best, _)| format!("{best:.1}")).collect();
        println!(
            "{:<14} {reached}/{seeds} seeds reach {} within {} steps, {speed:.0} steps per CPU second: {}",
            gate.name,
            gate.goal,
            gate.steps,
            bests.join(" ")
        );
    }
}
