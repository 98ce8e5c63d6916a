//! A gate in a game: all its players learn at once by the same algorithm, each for itself.

use crate::{
    report::Seed,
    table::{Gate, Goal},
};
use rand::SeedableRng;
use std::sync::Arc;
use tars_learn::{
    Policy, algorithm,
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
/// A distance that is none, up to rounding.
const NONE: f64 = 1e-6;

struct Quiet;

impl Control for Quiet {
    fn report(&mut self, _: Progress) {}
}

fn learn(gate: &Gate, seed: u64) -> Vec<Policy> {
    let world = gate.world;
    let make = move || make_world(world).expect("a built-in world");
    let member = Member::Learns {
        algorithm: gate.algorithm.to_owned(),
        values: preset(gate.algorithm, gate.world),
        start: None,
    };
    let training = Training {
        members: vec![member; make().spec().agents.len()],
        world: Arc::new(make),
        copies: algorithm::find(gate.algorithm)
            .expect("an algorithm")
            .copies,
        seed,
        steps: gate.steps,
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
    let first: Vec<Action> = spec.agents.iter().map(|a| a.action.first()).collect();
    world.reset(
        &mut Generator::seed_from_u64(0),
        &mut Observations::new(&spec),
    );
    let game = egta::measure(world, &choices, &mut egta::always(&first), &plan).expect("a game");
    (game, choices)
}

/// How far a joint action is from an equilibrium of one round.
fn nash_conv(game: &EmpiricalGame, choices: &[Vec<Action>], joint: &[Action]) -> f64 {
    let mix = |(choices, taken): (&Vec<Action>, &Action)| {
        let chance = |choice: &Action| f64::from(u8::from(choice == taken));
        choices.iter().map(chance).collect()
    };
    let mixes: Vec<Vec<f64>> = choices.iter().zip(joint).map(mix).collect();
    game.nash_conv(&mixes)
}

/// The largest distance of some rounds from an equilibrium of one round. Players who see the last round may take
/// turns between two equilibria.
fn distance(world: &mut dyn World, rounds: &[Vec<Action>]) -> f64 {
    let (game, choices) = one_round(world);
    let each = rounds.iter().map(|one| nash_conv(&game, &choices, one));
    each.fold(0.0, f64::max)
}

/// By how much the quantities of firms deviate at most from that of the equilibrium, as a share of it.
fn deviation(rounds: &[Vec<Action>]) -> f64 {
    let best = f64::from(Cournot::new(rounds[0].len()).equilibrium_quantity());
    let quantities = rounds.iter().flatten();
    quantities
        .map(|quantity| (f64::from(quantity.number()) / best - 1.0).abs())
        .fold(0.0, f64::max)
}

/// Plays with each seed. What is measured is a distance from an equilibrium, so the least is the best.
pub(crate) fn measure(gate: &Gate, seeds: u64) -> Vec<Seed> {
    let play = |seed| {
        let mut world = make_world(gate.world).expect("a built-in world");
        let rounds = rounds(world.as_mut(), &learn(gate, seed));
        let last = &rounds[rounds.len() - LAST..];
        let (measured, most) = match gate.goal {
            Goal::Quantity(most) => (deviation(last), most),
            Goal::Equilibrium | Goal::Return(_) => (distance(world.as_mut(), last), NONE),
        };
        Seed {
            seed,
            reached: measured <= most,
            measured,
            reached_at_the_end: measured <= most,
            curve: Vec::new(),
        }
    };
    (1..=seeds).map(play).collect()
}
