//! What the mesh rewards: each agent's mean reward for every constant action, for random play, and for each of
//! the controllers, while the other agents play fixed ones. It shows whether what an agent does matters, and
//! to whom.
//!
//! With the shipped calibration no constant action is best for Policy, Consensus or Ethical: a controller that
//! looks at its observation does better. Resource has much to learn: a constant half of the replicas beats both
//! target tracking, which pays for the busiest service everywhere, and the planner, which does not see bursts
//! coming; following the mean load slowly beats all of these. The agents want different things: a higher quorum
//! helps Policy and costs Consensus, a smaller α helps Policy and costs Ethical, more replicas help everybody
//! and cost Resource.
//!
//! ```text
//! cargo run --release -p tars-worlds --example explore_mesh
//! ```

use rand::{RngExt, SeedableRng};
use tars_worlds::{
    Action, ActionSpace, Controller, Generator, MeshEnv, Observations, TimeStep, World,
    controller_names, make_controller,
};

const EPISODES: u64 = 40;
/// What the others play.
const OTHERS: [&str; 4] = [
    "aimd",
    "majority_quorum",
    "static_quotas",
    "target_tracking",
];

/// How an agent acts.
enum Player {
    Controlled(Box<dyn Controller>),
    Constant(Action),
    Random(Generator),
}

impl Player {
    fn act(&mut self, seen: &[f32], space: &ActionSpace, action: &mut Action) {
        match self {
            Self::Controlled(controller) => controller.act(seen, action),
            Self::Constant(constant) => action.clone_from(constant),
            Self::Random(rng) => {
                *action = match space {
                    ActionSpace::Discrete(names) => {
                        Action::Discrete(rng.random_range(0..names.len()))
                    }
                    ActionSpace::Continuous(_) => Action::Continuous(vec![rng.random()]),
                }
            }
        }
    }

    fn reset(&mut self) {
        if let Self::Controlled(controller) = self {
            controller.reset();
        }
    }
}

/// The mean reward of each agent over the same episodes.
fn play(players: &mut [Player]) -> [f64; 4] {
    let mut mesh = MeshEnv::shipped();
    let spec = mesh.spec().clone();
    let mut seen = Observations::new(&spec);
    let mut steps = vec![TimeStep::default(); 4];
    let mut joint: Vec<Action> = spec
        .agents
        .iter()
        .map(|agent| agent.action.first())
        .collect();
    let (mut sums, mut count) = ([0.0; 4], 0.0);
    for seed in 0..EPISODES {
        let mut rng = Generator::seed_from_u64(seed);
        mesh.reset(&mut rng, &mut seen);
        players.iter_mut().for_each(Player::reset);
        loop {
            for (at, player) in players.iter_mut().enumerate() {
                player.act(seen.of(at), &spec.agents[at].action, &mut joint[at]);
            }
            mesh.step(&joint, &mut rng, &mut seen, &mut steps);
            count += 1.0;
            for (sum, step) in sums.iter_mut().zip(&steps) {
                *sum += f64::from(step.reward);
            }
            if steps[0].is_last() {
                break;
            }
        }
    }
    sums.map(|sum| sum / count)
}

fn controlled(mesh: &MeshEnv, at: usize, name: &str) -> Player {
    let made = make_controller(name, &mesh.spec().agents[at], mesh.calibration());
    Player::Controlled(made.expect("the controller fits its agent"))
}

fn show(name: &str, rewards: [f64; 4]) {
    let columns = rewards.map(|reward| format!("{reward:9.3}")).concat();
    println!("  {name:32}{columns}");
}

fn main() {
    let mesh = MeshEnv::shipped();
    let others = || {
        (0..4)
            .map(|at| controlled(&mesh, at, OTHERS[at]))
            .collect::<Vec<_>>()
    };
    for (at, agent) in mesh.spec().agents.iter().enumerate() {
        println!(
            "{:34}{:>9}{:>9}{:>9}{:>9}",
            agent.name, "policy", "consens.", "ethical", "resource"
        );
        let try_one = |name: &str, player: Player| {
            let mut players = others();
            players[at] = player;
            show(name, play(&mut players));
        };
        for name in controller_names(&agent.name) {
            try_one(name, controlled(&mesh, at, name));
        }
        try_one("random", Player::Random(Generator::seed_from_u64(9)));
        match &agent.action {
            ActionSpace::Discrete(names) => {
                for (action, name) in names.iter().enumerate().skip(1) {
                    try_one(name, Player::Constant(Action::Discrete(action)));
                }
            }
            ActionSpace::Continuous(_) => {
                for tenth in 0..=10u8 {
                    let share = f32::from(tenth) / 10.0;
                    try_one(
                        &format!("share {share}"),
                        Player::Constant(Action::Continuous(vec![share])),
                    );
                }
            }
        }
    }
}
