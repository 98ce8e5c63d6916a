//! Trains all agents of a game at once by the same algorithm, each for itself, and says for each seed what
//! they do in the end and how far that is from an equilibrium.
//!
//! ```text
//! cargo run --release -p tars-learn --example self_play -- dqn prisoners_dilemma 20000 10 [name=value ...]
//! ```
//!
//! The last line counts the seeds that ended in pure equilibria of one round: in each of the last ten rounds
//! nobody would have gained by another action. Players who see the last round may take turns between two such
//! equilibria. Quantities have to be within 5 % of those in the equilibrium of the market.

use rand::SeedableRng;
use std::sync::Arc;
use tars_learn::{
    Policy, algorithm,
    hyper::{Value, Values},
    policy::Scratch,
    presets::preset,
    training::{Control, Member, Progress, Training},
};
use tars_worlds::{
    Action, ActionSpace, Cournot, Generator, Observations, TimeStep, World,
    egta::{self, EmpiricalGame, Plan},
    make_world,
};

/// The rounds at the end of an episode that count.
const LAST: usize = 10;

struct Quiet;

impl Control for Quiet {
    fn report(&mut self, _: Progress) {}
}

fn learn(world: &str, algorithm: &str, steps: u64, seed: u64, values: &Values) -> Vec<Policy> {
    let name = world.to_owned();
    let make = move || make_world(&name).expect("a built-in world");
    let member = Member::Learns {
        algorithm: algorithm.to_owned(),
        values: values.clone(),
        start: None,
    };
    let training = Training {
        members: vec![member; make().spec().agents.len()],
        world: Arc::new(make),
        copies: algorithm::find(algorithm).expect("an algorithm").copies,
        seed,
        steps,
        reports: 1,
        evaluate_every: 0,
        evaluation_episodes: 1,
    };
    let outcome = training.execute(None, &mut Quiet).expect("it learns");
    let learned = outcome.expect("nobody stopped it").learned;
    learned.into_iter().map(|one| one.policy).collect()
}

/// The joint actions of an episode.
fn rounds(world: &mut dyn World, policies: &[Policy]) -> Vec<Vec<Action>> {
    let mut rng = Generator::seed_from_u64(0);
    let mut seen = Observations::new(world.spec());
    let mut steps = vec![TimeStep::default(); policies.len()];
    let mut scratch = Scratch::default();
    let mut rounds = Vec::new();
    world.reset(&mut rng, &mut seen);
    while rounds.is_empty() || !steps.iter().all(TimeStep::is_last) {
        let each = policies.iter().enumerate();
        let joint: Vec<Action> = each
            .map(|(at, policy)| policy.act(seen.of(at), &[], &mut scratch).action)
            .collect();
        world.step(&joint, &mut rng, &mut seen, &mut steps);
        rounds.push(joint);
    }
    rounds
}

/// What one round earns, as an empirical game of the actions of each agent.
fn one_round(world: &mut dyn World) -> (EmpiricalGame, Vec<Vec<Action>>) {
    let spec = world.spec().clone();
    let actions = |space: &ActionSpace| (0..space.len()).map(Action::Discrete).collect();
    let choices: Vec<Vec<Action>> = spec.agents.iter().map(|a| actions(&a.action)).collect();
    let plan = Plan {
        rollouts: 1,
        steps: 1,
        repeat: 1,
        ..Plan::default()
    };
    let then: Vec<Action> = spec.agents.iter().map(|a| a.action.first()).collect();
    world.reset(
        &mut Generator::seed_from_u64(0),
        &mut Observations::new(&spec),
    );
    let game = egta::measure(world, &choices, &then, &plan).expect("a game");
    (game, choices)
}

/// How far the frequencies of the actions in some rounds are from an equilibrium of one round.
fn nash_conv(game: &EmpiricalGame, choices: &[Vec<Action>], rounds: &[Vec<Action>]) -> f64 {
    let mix = |(at, choices): (usize, &Vec<Action>)| {
        let times = |choice: &Action| rounds.iter().filter(|joint| joint[at] == *choice).count();
        let share = |choice: &Action| times(choice) as f64 / rounds.len() as f64;
        choices.iter().map(share).collect()
    };
    let mixes: Vec<Vec<f64>> = choices.iter().enumerate().map(mix).collect();
    game.nash_conv(&mixes)
}

/// What a seed ended with.
struct End {
    is_near: bool,
    text: String,
}

impl End {
    fn of(world: &mut dyn World, rounds: &[Vec<Action>]) -> Self {
        let last = &rounds[rounds.len() - LAST..];
        match &last[0][0] {
            Action::Discrete(_) => Self::of_choices(world, rounds, last),
            Action::Continuous(_) => {
                let firms = last[0].len();
                let deviation = deviation(firms, last);
                Self {
                    is_near: deviation <= 0.05,
                    text: format!("deviation {deviation:.4}"),
                }
            }
        }
    }

    fn of_choices(world: &mut dyn World, rounds: &[Vec<Action>], last: &[Vec<Action>]) -> Self {
        let (game, choices) = one_round(world);
        let each = last.chunks(1).map(|one| nash_conv(&game, &choices, one));
        let most = each.fold(0.0, f64::max);
        let mean = nash_conv(&game, &choices, rounds);
        let stays = last.iter().all(|round| *round == last[0]);
        let kind = if stays { "the same" } else { "in turns" };
        Self {
            is_near: most < 1e-6,
            text: format!("NashConv {most:.3} ({kind}), of the episode's frequencies {mean:.3}"),
        }
    }
}

/// By how much the quantities of firms deviate at most from that of the equilibrium, as a share of it.
fn deviation(firms: usize, rounds: &[Vec<Action>]) -> f64 {
    let best = f64::from(Cournot::new(firms).equilibrium_quantity());
    let quantities = rounds
        .iter()
        .flatten()
        .map(|action| f64::from(action.number()));
    quantities
        .map(|q| (q / best - 1.0).abs())
        .fold(0.0, f64::max)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [algorithm, name, steps, seeds, pairs @ ..] = &arguments[..] else {
        println!("usage: self_play ALGORITHM WORLD STEPS SEEDS [NAME=VALUE ...]");
        std::process::exit(2);
    };
    let (steps, seeds): (u64, u64) = (
        steps.parse().expect("a number of steps"),
        seeds.parse().expect("a number of seeds"),
    );
    let mut values = preset(algorithm, name);
    for pair in pairs {
        let (name, value) = pair.split_once('=').expect("name=value");
        let value = match value.parse() {
            Ok(flag) => Value::Flag(flag),
            Err(_) => Value::Number(value.parse().expect("a number")),
        };
        values.insert(name.to_owned(), value);
    }
    let mut reached = 0;
    for seed in 1..=seeds {
        let mut world = make_world(name).expect("a built-in world");
        let policies = learn(name, algorithm, steps, seed, &values);
        let rounds = rounds(world.as_mut(), &policies);
        let end = End::of(world.as_mut(), &rounds);
        reached += u64::from(end.is_near);
        println!("seed {seed}: {:?}, {}", rounds[rounds.len() - 1], end.text);
    }
    println!("{reached} of {seeds} in equilibrium");
}
