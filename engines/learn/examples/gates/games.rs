//! A gate in a game: all its players learn at once by the same algorithm, each for itself. Its learning curve is that of
//! their distance from an equilibrium.

use crate::{
    report::{Point, Seed},
    table::{Gate, Goal},
};
use rand::SeedableRng;
use std::sync::Arc;
use tars_learn::{
    Policy, algorithm,
    policy::Scratch,
    presets::preset,
    training::{Control, Evaluation, Member, Player, Progress, Training},
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

/// The points of a learning curve.
const POINTS: u64 = 15;

/// Measures the players at each evaluation.
struct Curve<'a> {
    gate: &'a Gate,
    points: Vec<Point>,
}

impl Control for Curve<'_> {
    fn report(&mut self, _: Progress) {}

    fn evaluated(&mut self, evaluation: &Evaluation, players: &[Player]) {
        let policy = |player: &Player| match player {
            Player::Policy(policy) => policy.clone(),
            Player::Rule(_) | Player::Hold => unreachable!("all learn"),
        };
        let policies: Vec<Policy> = players.iter().map(policy).collect();
        self.points.push(Point {
            steps: evaluation.step,
            value: judged(self.gate, &policies),
        });
    }
}

/// What was measured while the players learned; the last point is of what they ended with.
fn learn(gate: &Gate, seed: u64) -> Vec<Point> {
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
        evaluate_every: (gate.steps / POINTS).max(1),
        evaluation_episodes: 1,
    };
    let mut curve = Curve {
        gate,
        points: Vec::new(),
    };
    let outcome = training.execute(None, &mut curve).expect("it learns");
    outcome.expect("nobody stopped it");
    curve.points
}

/// What each player does in a round, and what it was chosen by: its probabilities where it is stochastic.
type Round = Vec<(Action, Vec<f32>)>;

/// The rounds of an episode.
fn rounds(world: &mut dyn World, policies: &[Policy]) -> Vec<Round> {
    let mut rng = Generator::seed_from_u64(0);
    let mut seen = Observations::new(world.spec());
    let mut steps = vec![TimeStep::default(); policies.len()];
    let mut scratch = Scratch::default();
    let mut rounds = Vec::new();
    world.reset(&mut rng, &mut seen);
    while rounds.is_empty() || !steps.iter().all(TimeStep::is_last) {
        let each = policies.iter().enumerate();
        let round: Round = each
            .map(|(at, policy)| {
                let decision = policy.act(seen.of(at), &[], &mut scratch);
                (decision.action, decision.values)
            })
            .collect();
        let joint: Vec<Action> = round.iter().map(|(action, _)| action.clone()).collect();
        world.step(&joint, &mut rng, &mut seen, &mut steps);
        rounds.push(round);
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

/// How far a round is from an equilibrium of one round. The best known actions are pure; `is_mixed` takes what a
/// stochastic policy plays by instead.
fn nash_conv(game: &EmpiricalGame, choices: &[Vec<Action>], round: &Round, is_mixed: bool) -> f64 {
    let pure = |choices: &[Action], taken: &Action| {
        let chance = |choice: &Action| f64::from(u8::from(choice == taken));
        choices.iter().map(chance).collect()
    };
    let mix = |(choices, (taken, by)): (&Vec<Action>, &(Action, Vec<f32>))| match is_mixed {
        true => by.iter().copied().map(f64::from).collect(),
        false => pure(choices, taken),
    };
    let mixes: Vec<Vec<f64>> = choices.iter().zip(round).map(mix).collect();
    game.nash_conv(&mixes)
}

/// The largest distance of some rounds from an equilibrium of one round. Players who see the last round may take
/// turns between two equilibria.
fn distance(world: &mut dyn World, rounds: &[Round], is_mixed: bool) -> f64 {
    let (game, choices) = one_round(world);
    let each = rounds.iter();
    let each = each.map(|one| nash_conv(&game, &choices, one, is_mixed));
    each.fold(0.0, f64::max)
}

/// By how much the quantities of firms deviate at most from that of the equilibrium, as a share of it.
fn deviation(rounds: &[Round]) -> f64 {
    let best = f64::from(Cournot::new(rounds[0].len()).equilibrium_quantity());
    let quantities = rounds.iter().flatten();
    quantities
        .map(|(quantity, _)| (f64::from(quantity.number()) / best - 1.0).abs())
        .fold(0.0, f64::max)
}

/// How far players are from what the gate asks for, in the last rounds of an episode.
fn judged(gate: &Gate, policies: &[Policy]) -> f64 {
    let mut world = make_world(gate.world).expect("a built-in world");
    let rounds = rounds(world.as_mut(), policies);
    let last = &rounds[rounds.len() - LAST..];
    match gate.goal {
        Goal::Quantity(_) => deviation(last),
        Goal::Reported => distance(world.as_mut(), last, true),
        Goal::Equilibrium | Goal::Return(_) => distance(world.as_mut(), last, false),
    }
}

/// Plays with each seed. What is measured is a distance from an equilibrium at the end, so the least is the best.
pub(crate) fn measure(gate: &Gate, seeds: u64) -> Vec<Seed> {
    let most = match gate.goal {
        Goal::Quantity(most) => most,
        Goal::Reported => f64::INFINITY,
        Goal::Equilibrium | Goal::Return(_) => NONE,
    };
    let play = |seed| {
        let curve = learn(gate, seed);
        let measured = curve.last().map_or(f64::NAN, |point| point.value);
        Seed {
            seed,
            reached: measured <= most,
            measured,
            reached_at_the_end: measured <= most,
            curve,
        }
    };
    (1..=seeds).map(play).collect()
}
