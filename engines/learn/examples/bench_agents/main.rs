//! Environment steps per CPU second of every algorithm while it learns, against Stable-Baselines3 with the
//! same environment, network, hyperparameters and number of gradient steps for a step.
//!
//! Rounds of both sides alternate, so that the load of the machine affects both; the medians count. Time is
//! the CPU time of the thread that learns. `predict_us` is the median wall time of one decision in process.
//! The peer's Python is `TARS_PEERS_PYTHON`.
//!
//! ```text
//! cargo xtask bench agents [--quick] [--json]
//! ```

mod cases;
mod peer;

use cases::{CASES, Case};
use rand::SeedableRng;
use serde_json::{Map, Value, json};
use tars_learn::{Learner, Policy, Step, algorithm, policy::Scratch};
use tars_worlds::{Copies, Generator, make_world};

/// The measurements of one case.
#[derive(Default)]
struct Rounds {
    ours: Vec<f64>,
    peer: Vec<f64>,
    predict_us: Vec<f64>,
    peer_predict_us: Vec<f64>,
}

/// The steps of a run: enough that the start does not count, and, for the peer, that a round ends.
struct Lengths {
    rounds: usize,
    ours: usize,
    peer: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let lengths = if has("--quick") {
        Lengths {
            rounds: 1,
            ours: 20_000,
            peer: 4_000,
        }
    } else {
        Lengths {
            rounds: 5,
            ours: 100_000,
            peer: 20_000,
        }
    };
    let python = std::env::var("TARS_PEERS_PYTHON").ok();
    if python.is_none() {
        eprintln!("TARS_PEERS_PYTHON names no Python: there is no peer");
    }
    let mut report = Map::new();
    for case in CASES {
        let measured = measure(case, &lengths, python.as_deref())?;
        measured.add_to(case, &mut report);
    }
    if has("--json") {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report
            .iter()
            .for_each(|(key, value)| println!("{key:<22} {value}"));
    }
    Ok(())
}

fn measure(case: &Case, lengths: &Lengths, python: Option<&str>) -> Result<Rounds, peer::Failure> {
    let mut rounds = Rounds::default();
    for round in 0..lengths.rounds {
        let seed = round as u64 + 1;
        let (steps, predict) = run(case, lengths.ours, seed);
        rounds.ours.push(steps);
        rounds.predict_us.push(predict);
        if let Some(python) = python {
            let answer = peer::run(python, case, lengths.peer, seed)?;
            rounds.peer.push(answer.steps_per_cpu_s);
            rounds.peer_predict_us.push(answer.predict_us);
        }
    }
    Ok(rounds)
}

impl Rounds {
    fn add_to(&self, case: &Case, report: &mut Map<String, Value>) {
        let mut add = |key: &str, value: f64| {
            report.insert(
                format!("{}.{key}", case.algorithm),
                json!((value * 100.0).round() / 100.0),
            );
        };
        let ours = median(&self.ours);
        add("ours", ours);
        add("predict_us", median(&self.predict_us));
        if !self.peer.is_empty() {
            add("peer", median(&self.peer));
            add("ratio", ours / median(&self.peer));
            add("peer_predict_us", median(&self.peer_predict_us));
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The steps per CPU second of a run, and the microseconds of a decision of what it learned.
fn run(case: &Case, steps: usize, seed: u64) -> (f64, f64) {
    let make = || make_world(case.world).expect("a built-in world");
    let mut copies = Copies::new(make, case.copies, seed);
    let space = copies.spec().agents[0].clone();
    let rng = &mut Generator::seed_from_u64(seed);
    let found = algorithm::find(case.algorithm).expect("an algorithm");
    let learner = found.create(&space, &case.values(), case.copies, rng);
    let mut learner = learner.expect("valid hyperparameters");
    let started = cpu_seconds();
    train(&mut *learner, &mut copies, steps, rng);
    let spent = cpu_seconds() - started;
    let observation = copies.agent(0).observations[..space.observation.len()].to_vec();
    (
        steps as f64 / spent,
        predict_us(&learner.policy(), &observation),
    )
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
        learner.update(rng, &|| false);
        observations.copy_from_slice(&copies.agent(0).observations);
    }
}

/// The median time of a decision, which the peer measures in the same way: by the clock, one at a time.
#[allow(clippy::disallowed_types, clippy::disallowed_methods)] // a benchmark measures real time
fn predict_us(policy: &Policy, observation: &[f32]) -> f64 {
    let mut scratch = Scratch::default();
    let mut action = policy.act(observation, &[], &mut scratch).action;
    let mut once = |_| {
        let started = std::time::Instant::now();
        policy.act_into(observation, &[], &mut scratch, &mut action);
        started.elapsed().as_secs_f64() * 1e6
    };
    let times: Vec<f64> = (0..2_000).map(&mut once).collect();
    median(&times)
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
