//! How long the empirical game of the mesh takes on one core, in CPU time: 5 actions of each of the four agents, 8
//! rollouts of 30 steps of each joint action, in which the agents go on by nets of the sizes of their presets, the
//! interval of its NashConv, and an equilibrium with its certificate.
//!
//! ```text
//! cargo xtask bench egta [--quick] [--json] [--seed N]
//! ```

use rand::SeedableRng;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::{env, time::Duration};
use tars_games::{Game, NeverStop, Options};
use tars_learn::{Policy, algorithm, policy::Scratch, presets::preset};
use tars_worlds::{
    Action, Generator, MeshEnv, Observations, TimeStep, World,
    egta::{Plan, measure},
};

/// States that are measured, in full and with `--quick`.
const STATES: usize = 20;
const QUICK: usize = 3;
/// The algorithm of each agent: policy, consensus, ethical, resource.
const ALGORITHMS: [&str; 4] = ["dqn", "a2c", "ppo", "ddpg"];
/// The steps of an episode before a state is measured.
const APART: usize = 20;

/// What one state took, in milliseconds.
struct Measured {
    rollouts: f64,
    interval: f64,
    solve: f64,
    regret: f64,
    converged: bool,
}

impl Measured {
    fn total(&self) -> f64 {
        self.rollouts + self.interval + self.solve
    }
}

fn main() {
    let options: Vec<String> = env::args().collect();
    let has = |flag: &str| options.iter().any(|option| option == flag);
    let seed = options.iter().position(|option| option == "--seed");
    let seed = seed.and_then(|at| options.get(at + 1)?.parse().ok());
    let states = if has("--quick") { QUICK } else { STATES };
    let all = measure_states(states, seed.unwrap_or(1));
    let mean = |of: fn(&Measured) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    let worst = |of: fn(&Measured) -> f64| all.iter().map(of).fold(0.0, f64::max);
    let report = json!({
        "egta_ms": round(mean(Measured::total)),
        "egta_ms_max": round(worst(Measured::total)),
        "rollouts_ms": round(mean(|m| m.rollouts)),
        "interval_ms": round(mean(|m| m.interval)),
        "solve_ms": round(mean(|m| m.solve)),
        "solve_ms_max": round(worst(|m| m.solve)),
        "converged": all.iter().filter(|m| m.converged).count(),
        "relative_regret_max": worst(|m| m.regret),
        "states": states,
        "joint_actions": 625,
        "rollouts": Plan::default().rollouts,
        "steps": Plan::default().steps,
    });
    if has("--json") {
        println!("{report:#}");
    } else {
        println!(
            "{} ms of CPU time for a game, {} at most: {} for the rollouts, {} for the interval, {} for the \
             equilibrium; {} of {states} states solved",
            report["egta_ms"],
            report["egta_ms_max"],
            report["rollouts_ms"],
            report["interval_ms"],
            report["solve_ms"],
            report["converged"]
        );
    }
}

fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// Measures states of an episode in which everybody holds.
fn measure_states(states: usize, seed: u64) -> Vec<Measured> {
    let mut mesh = MeshEnv::shipped();
    let mut seen = Observations::new(mesh.spec());
    let mut rng = Generator::seed_from_u64(seed);
    mesh.reset(&mut rng, &mut seen);
    let (choices, policies) = (choices(), policies(&mesh, seed));
    let hold: Vec<Action> = choices.iter().map(|all| all[0].clone()).collect();
    let mut got = [TimeStep::default(); 4];
    let mut next = |state: usize| {
        for _ in 0..APART {
            mesh.step(&hold, &mut rng, &mut seen, &mut got);
            if got.iter().all(TimeStep::is_last) {
                mesh.reset(&mut rng, &mut seen);
            }
        }
        measure_state(
            &mut mesh,
            &choices,
            &policies,
            seed.wrapping_add(state as u64),
        )
    };
    (0..states).map(&mut next).collect()
}

/// Nets of the presets, as they are initialised: how long they take does not depend on what they have learned.
fn policies(mesh: &MeshEnv, seed: u64) -> Vec<Policy> {
    let agents = ALGORITHMS.iter().zip(&mesh.spec().agents);
    let mut rng = Generator::seed_from_u64(seed);
    let create = |(name, space): (&&str, _)| {
        let algorithm = algorithm::find(name).expect("a built-in algorithm");
        let learner = algorithm.create(space, &preset(name, "mesh"), 1, &mut rng);
        learner.expect("a preset suits its agent").policy()
    };
    agents.map(create).collect()
}

/// Five actions of each agent, the first of which holds.
fn choices() -> [Vec<Action>; 4] {
    let discrete = |all: [usize; 5]| all.map(Action::Discrete).to_vec();
    let shares = [0.5, 0.0, 0.25, 0.75, 1.0].map(|share| Action::Continuous(vec![share]));
    [
        discrete([0, 1, 2, 6, 8]),
        discrete([0, 1, 2, 3, 4]),
        discrete([0, 1, 2, 3, 6]),
        shares.to_vec(),
    ]
}

fn measure_state(
    mesh: &mut MeshEnv,
    choices: &[Vec<Action>],
    policies: &[Policy],
    seed: u64,
) -> Measured {
    let mut scratch = Scratch::default();
    let mut then = |seen: &Observations, joint: &mut [Action]| {
        for (at, (policy, action)) in policies.iter().zip(joint).enumerate() {
            policy.act_into(seen.of(at), &[], &mut scratch, action);
        }
    };
    let plan = Plan {
        seed,
        ..Plan::default()
    };
    let begun = cpu_time();
    let found = measure(mesh, choices, &mut then, &plan).expect("the choices are in their spaces");
    let rolled_out = cpu_time();
    let profile = vec![vec![1.0, 0.0, 0.0, 0.0, 0.0]; 4];
    std::hint::black_box(found.nash_conv_interval(&profile, 200, 0.95, seed));
    let bounded = cpu_time();
    let game = Game::new(found.shape().to_vec(), found.payoffs()).expect("the payoffs are finite");
    let solution = game.solve(&Options::default(), &NeverStop);
    let solution = solution.expect("the portfolio suits every game");
    let solved = cpu_time();
    Measured {
        rollouts: ms(rolled_out - begun),
        interval: ms(bounded - rolled_out),
        solve: ms(solved - bounded),
        regret: solution.relative_regret,
        converged: solution.converged(),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or(0),
        u32::try_from(at.tv_nsec).unwrap_or(0),
    )
}
