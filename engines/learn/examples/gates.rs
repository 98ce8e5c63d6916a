//! Trains an algorithm in a world with some seeds and says how well each learned, and how fast.
//!
//! `cargo run --release -p tars-learn --example gates -- dqn cartpole 150000 5 [name=value ...]`

#![allow(
    clippy::disallowed_types,
    reason = "a measurement of this process alone"
)]

use std::{sync::Arc, time::Instant};
use tars_learn::{
    hyper::{Value, Values},
    policy::Scratch,
    presets::preset,
    training::{Control, Evaluation, Member, Outcome, Player, Progress, Training, evaluate},
};
use tars_worlds::make_world;

/// Says what each evaluation brought.
struct Print;

impl Control for Print {
    fn report(&mut self, progress: Progress) {
        let agent = &progress.agents[0];
        println!(
            "{} return {:.1?} loss {:.3?} q {:.2?} exploration {:.3}",
            progress.step, agent.mean_return, agent.update.loss, agent.update.q, agent.exploration
        );
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        eprint!(" {}:{:.0}", evaluation.step, evaluation.mean(0));
    }
}

/// The CPU time of this process's only thread, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

/// The median time of one decision, in microseconds.
fn predict_us(outcome: &Outcome) -> f64 {
    let policy = &outcome.learned[0].policy;
    let observation = vec![0.1; policy.inputs()];
    let mut scratch = Scratch::default();
    let mut times: Vec<f64> = (0..20_000)
        .map(|_| {
            let started = Instant::now();
            std::hint::black_box(policy.act(&observation, &[], &mut scratch));
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The mean return of the best policy in episodes by which it was not chosen.
fn held_out(training: &Training, outcome: &Outcome, seed: u64) -> f64 {
    let mut world = (training.world)();
    let agents = world.spec().agents.iter();
    let mut players: Vec<Player> = agents.map(Player::baseline).collect();
    players[0] = Player::Policy(outcome.learned[0].best.clone());
    evaluate(world.as_mut(), &players, 100, !seed, outcome.steps).mean(0)
}

fn training(algorithm: &str, world: &str, steps: u64, seed: u64, values: Values) -> Training {
    let name = world.to_owned();
    let spec = make_world(world).expect("a built-in world").spec().clone();
    let found = tars_learn::algorithm::find(algorithm).expect("an algorithm");
    let fixed = |space| Member::Plays(Player::baseline(space));
    let mut members: Vec<Member> = spec.agents.iter().map(fixed).collect();
    members[0] = Member::Learns {
        algorithm: algorithm.to_owned(),
        values,
        start: None,
    };
    Training {
        world: Arc::new(move || make_world(&name).expect("a built-in world")),
        members,
        copies: found.copies,
        seed,
        steps,
        reports: 10,
        evaluate_every: steps / 15,
        evaluation_episodes: 100,
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [algorithm, world, steps, seeds, pairs @ ..] = &arguments[..] else {
        println!("usage: gates ALGORITHM WORLD STEPS SEEDS [NAME=VALUE ...]");
        std::process::exit(2);
    };
    let (steps, seeds): (u64, u64) = (
        steps.parse().expect("a number of steps"),
        seeds.parse().expect("a number of seeds"),
    );
    let mut values = preset(algorithm, world);
    for pair in pairs {
        let (name, value) = pair.split_once('=').expect("name=value");
        let value = match value.parse() {
            Ok(flag) => Value::Flag(flag),
            Err(_) => Value::Number(value.parse().expect("a number")),
        };
        values.insert(name.to_owned(), value);
    }
    for seed in 1..=seeds {
        let training = training(algorithm, world, steps, seed, values.clone());
        let quiet = Training {
            evaluate_every: 0,
            evaluation_episodes: 1,
            steps: (steps / 5).max(1),
            ..training.clone()
        };
        let started = cpu_seconds();
        quiet.execute(None, &mut Print).expect("it learns");
        let speed = quiet.steps as f64 / (cpu_seconds() - started);
        let outcome = training.execute(None, &mut Print).expect("it learns");
        let outcome = outcome.expect("nobody stopped it");
        let best = outcome.learned[0].best_mean_return;
        let fresh = held_out(&training, &outcome, seed);
        let us = predict_us(&outcome);
        println!(
            "\nseed {seed}: best {best:.3}, held out {fresh:.3}, {speed:.0} steps per CPU second, predict {us:.2} us"
        );
    }
}
