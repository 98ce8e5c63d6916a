//! How far profiles are from an equilibrium, in two ways: by what each agent would gain in the next intervals
//! by another action, and by what it would gain in whole episodes if something else acted for it.

use crate::contest::{Contest, Player, Profile, with};
use rand::SeedableRng;
use tars_learn::comparison::Difference;
use tars_worlds::{
    Action, ActionSpace, AgentSpace, Controller, Generator, MeshEnv, Observations, TimeStep, World,
    egta::{self, Plan},
};

/// After so many steps the initial disorder of an episode is gone.
const WARM_UP: usize = 60;
/// How many actions of each agent make up an empirical game.
const CHOICES: usize = 5;
/// Discrete actions besides holding and the agent's own, the first of which complete the choices.
const NOTABLE: [&[&str]; 4] = [
    &[
        "switch_retries",
        "limit_up_20",
        "limit_down_20",
        "limit_up_5",
    ],
    &[
        "quorum_up",
        "quorum_down",
        "timeout_double",
        "timeout_halve",
    ],
    &["boost_worst", "alpha_infinite", "alpha_one", "alpha_half"],
    &[],
];
const SHARES: [f32; 4] = [0.2, 0.4, 0.6, 0.8];

/// What agents would gain by their best action in empirical games of the states that a profile reaches, summed
/// over the agents: one number for each of the first `states` seeds.
pub(crate) fn nash_convs(contest: &Contest, profile: Profile, states: usize) -> Vec<f64> {
    let seeds = contest.seeds.clone().take(states);
    seeds
        .map(|seed| nash_conv(&contest.mesh, &mut contest.seats(profile), seed))
        .collect()
}

fn nash_conv(mesh: &MeshEnv, seats: &mut [Box<dyn Controller>], seed: u64) -> f64 {
    let mut mesh = mesh.clone();
    let own = reach(&mut mesh, seats, seed);
    let spec = mesh.spec().clone();
    let share = mesh.controls().share as f32;
    let hold = |space: &AgentSpace| match space.action.first() {
        Action::Continuous(_) => Action::Continuous(vec![share]),
        first @ Action::Discrete(_) => first,
    };
    let agents = spec.agents.iter().enumerate();
    let choices: Vec<Vec<Action>> = agents
        .map(|(at, space)| choices(space, at, &own[at], &hold(space)))
        .collect();
    let mut then = |seen: &Observations, joint: &mut [Action]| {
        for (at, (seat, action)) in seats.iter_mut().zip(joint).enumerate() {
            seat.act_once(seen.of(at), action);
        }
    };
    let plan = Plan {
        seed,
        ..Plan::default()
    };
    let game = egta::measure(&mut mesh, &choices, &mut then, &plan).expect("the actions are valid");
    let mix = |(choices, own): (&Vec<Action>, &Action)| {
        let chance = |choice: &Action| f64::from(u8::from(choice == own));
        choices.iter().map(chance).collect()
    };
    let mixes: Vec<Vec<f64>> = choices.iter().zip(&own).map(mix).collect();
    game.nash_conv(&mixes)
}

/// Plays the first steps of an episode and returns what the players would do next.
fn reach(mesh: &mut MeshEnv, seats: &mut [Box<dyn Controller>], seed: u64) -> Vec<Action> {
    let spec = mesh.spec().clone();
    let mut rng = Generator::seed_from_u64(seed);
    let mut seen = Observations::new(&spec);
    let mut steps = vec![TimeStep::default(); seats.len()];
    let mut joint: Vec<Action> = spec.agents.iter().map(|a| a.action.first()).collect();
    mesh.reset(&mut rng, &mut seen);
    for step in 0..=WARM_UP {
        for (at, seat) in seats.iter_mut().enumerate() {
            seat.act(seen.of(at), &mut joint[at]);
        }
        if step < WARM_UP {
            mesh.step(&joint, &mut rng, &mut seen, &mut steps);
        }
    }
    joint
}

/// The agent's own action, holding, and others; no action twice.
fn choices(space: &AgentSpace, at: usize, own: &Action, hold: &Action) -> Vec<Action> {
    let mut choices = vec![own.clone()];
    for action in [hold].into_iter().chain(&notable(space, at)) {
        if choices.len() < CHOICES && !choices.contains(action) {
            choices.push(action.clone());
        }
    }
    choices
}

fn notable(space: &AgentSpace, at: usize) -> Vec<Action> {
    match &space.action {
        ActionSpace::Discrete(names) => {
            let named = NOTABLE[at].iter();
            let positions = named.filter_map(|name| names.iter().position(|n| n == name));
            positions.map(Action::Discrete).collect()
        }
        ActionSpace::Continuous(_) => SHARES.map(|s| Action::Continuous(vec![s])).to_vec(),
    }
}

/// The best that something else would do for an agent while the others play on.
pub(crate) struct Deviation {
    pub(crate) player: Player,
    pub(crate) gain: Difference,
}

/// By agent the best deviation from a profile, among everything that can act for the agent. A gain below
/// zero says that there is none.
pub(crate) fn deviations(contest: &mut Contest, profile: Profile) -> Vec<Deviation> {
    (0..profile.len())
        .map(|agent| best_deviation(contest, profile, agent))
        .collect()
}

fn best_deviation(contest: &mut Contest, profile: Profile, agent: usize) -> Deviation {
    let mut players = contest.controllers(agent);
    players.extend([Player::Trained, Player::Untrained]);
    players.retain(|player| *player != profile[agent]);
    let mut deviation = |player| Deviation {
        player,
        gain: contest.difference(with(profile, agent, player), profile, agent),
    };
    let all: Vec<Deviation> = players.into_iter().map(&mut deviation).collect();
    let best = all
        .into_iter()
        .max_by(|a, b| a.gain.mean.total_cmp(&b.gain.mean));
    best.expect("an agent has controllers")
}

/// The sum of what the agents would gain.
pub(crate) fn regret(deviations: &[Deviation]) -> f64 {
    deviations.iter().map(|one| one.gain.mean.max(0.0)).sum()
}
