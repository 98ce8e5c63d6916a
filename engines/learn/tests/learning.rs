//! What learning must come to where the truth is known: the shortest walk, and equilibria of games whose players
//! all learn at the same time, each for itself.

use std::sync::Arc;
use tars_learn::{
    Policy, algorithm,
    policy::Scratch,
    presets::preset,
    training::{Control, Member, Outcome, Progress, Training},
};
use tars_worlds::{
    Action, Cournot, Generator, GridWorld, Observations, TimeStep, World,
    egta::{self, Plan},
    make_world,
};

struct Quiet;

impl Control for Quiet {
    fn report(&mut self, _: Progress) {}
}

/// All agents of a world learn by an algorithm with its preset.
fn learn(algorithm: &str, world: &'static str, steps: u64, seed: u64) -> Outcome {
    let member = Member::Learns {
        algorithm: algorithm.to_owned(),
        values: preset(algorithm, world),
        start: None,
    };
    let agents = make_world(world)
        .expect("a built-in world")
        .spec()
        .agents
        .len();
    let training = Training {
        world: Arc::new(move || make_world(world).expect("a built-in world")),
        members: vec![member; agents],
        copies: algorithm::find(algorithm)
            .expect("a built-in algorithm")
            .copies,
        seed,
        steps,
        reports: 1,
        evaluate_every: 0,
        evaluation_episodes: 1,
    };
    training
        .execute(None, &mut Quiet)
        .expect("it learns")
        .expect("nobody stops it")
}

/// The last joint action of an episode.
fn last_round(world: &mut dyn World, policies: &[Policy]) -> Vec<Action> {
    let mut rng = <Generator as rand::SeedableRng>::seed_from_u64(0);
    let mut seen = Observations::new(world.spec());
    let mut steps = vec![TimeStep::default(); policies.len()];
    let mut scratch = Scratch::default();
    world.reset(&mut rng, &mut seen);
    loop {
        let each = policies.iter().enumerate();
        let joint: Vec<Action> = each
            .map(|(at, policy)| policy.act(seen.of(at), &[], &mut scratch).action)
            .collect();
        world.step(&joint, &mut rng, &mut seen, &mut steps);
        if steps.iter().all(TimeStep::is_last) {
            return joint;
        }
    }
}

/// What the players would gain by other actions in one round.
fn nash_conv(world: &mut dyn World, joint: &[Action]) -> f64 {
    let agents = &world.spec().agents;
    let all = |agent: &tars_worlds::AgentSpace| -> Vec<Action> {
        (0..agent.action.len()).map(Action::Discrete).collect()
    };
    let choices: Vec<Vec<Action>> = agents.iter().map(all).collect();
    let chance = |choice: &Action, taken: &Action| f64::from(u8::from(choice == taken));
    let mix = |(choices, taken): (&Vec<Action>, &Action)| {
        choices.iter().map(|choice| chance(choice, taken)).collect()
    };
    let mixes: Vec<Vec<f64>> = choices.iter().zip(joint).map(mix).collect();
    let plan = Plan {
        rollouts: 1,
        steps: 1,
        repeat: 1,
        ..Plan::default()
    };
    let mut rng = <Generator as rand::SeedableRng>::seed_from_u64(0);
    let mut seen = Observations::new(world.spec());
    world.reset(&mut rng, &mut seen);
    let game = egta::measure(world, &choices, &mut egta::always(joint), &plan).expect("a game");
    game.nash_conv(&mixes)
}

/// Self-play of an algorithm in a game: the last round and its distance from an equilibrium.
fn self_play(algorithm: &str, game: &'static str, steps: u64, seed: u64) -> (Vec<Action>, f64) {
    let learned = learn(algorithm, game, steps, seed).learned;
    let policies: Vec<Policy> = learned.into_iter().map(|one| one.policy).collect();
    let mut world = make_world(game).expect("a built-in world");
    let joint = last_round(world.as_mut(), &policies);
    let distance = nash_conv(world.as_mut(), &joint);
    (joint, distance)
}

#[test]
fn dqn_finds_a_shortest_walk() {
    for seed in 1..=2 {
        let outcome = learn("dqn", "gridworld", 12_000, seed);
        let best = outcome.learned[0].best_mean_return;
        let shortest = f64::from(GridWorld::BEST_RETURN);
        assert!((best - shortest).abs() < 1e-5, "seed {seed}: {best}");
    }
}

#[test]
fn players_of_the_prisoners_dilemma_learn_to_defect() {
    for (algorithm, seeds) in [("dqn", 1), ("a2c", 2), ("ppo", 2)] {
        for seed in 1..=seeds {
            let (joint, distance) = self_play(algorithm, "prisoners_dilemma", 20_000, seed);
            let defect = vec![Action::Discrete(1); 2];
            assert_eq!((joint, distance), (defect, 0.0), "{algorithm}, seed {seed}");
        }
    }
}

#[test]
fn players_of_games_with_pure_equilibria_learn_one_of_them() {
    for game in ["stag_hunt", "battle_of_the_sexes", "chicken", "congestion"] {
        for seed in 1..=2 {
            let (joint, distance) = self_play("a2c", game, 100_000, seed);
            assert!(
                distance < 1e-6,
                "{game}, seed {seed}: {joint:?}, {distance}"
            );
        }
    }
}

#[test]
fn firms_learn_the_quantities_of_the_equilibrium() {
    let best = Cournot::new(2).equilibrium_quantity();
    for seed in 1..=2 {
        let learned = learn("ddpg", "cournot_2", 12_000, seed).learned;
        let policies: Vec<Policy> = learned.into_iter().map(|one| one.policy).collect();
        let joint = last_round(&mut Cournot::new(2), &policies);
        let near = |quantity: &Action| (quantity.number() / best - 1.0).abs() <= 0.05;
        assert!(joint.iter().all(near), "seed {seed}: {joint:?}");
    }
}

/// Greedy players cannot play the only equilibrium, which mixes. That must show.
#[test]
fn the_distance_of_rock_paper_scissors_is_not_hidden() {
    let (joint, distance) = self_play("ppo", "rock_paper_scissors", 10_000, 1);
    assert!(distance >= 1.0, "{joint:?}, {distance}");
}
