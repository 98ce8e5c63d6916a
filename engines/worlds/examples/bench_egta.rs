//! How long the empirical game of the mesh takes on one core: 5 actions of each of the four agents, 8
//! rollouts of 30 steps, and the interval of its NashConv.
//!
//! ```text
//! cargo run --release -p tars-worlds --example bench_egta
//! ```

use rand::SeedableRng;
use tars_worlds::{
    Action, Generator, MeshEnv, Observations, World,
    egta::{Plan, measure},
};

fn main() {
    let mut mesh = MeshEnv::shipped();
    let mut seen = Observations::new(mesh.spec());
    mesh.reset(&mut Generator::seed_from_u64(1), &mut seen);
    let discrete = |all: [usize; 5]| all.map(Action::Discrete).to_vec();
    let shares = [0.1, 0.3, 0.5, 0.7, 0.9].map(|share| Action::Continuous(vec![share]));
    let choices = [
        discrete([0, 1, 2, 6, 8]),
        discrete([0, 1, 2, 3, 4]),
        discrete([0, 1, 2, 3, 6]),
        shares.to_vec(),
    ];
    let then: Vec<Action> = choices.iter().map(|all| all[0].clone()).collect();
    let mixes = vec![vec![0.2; 5]; 4];
    for _ in 0..5 {
        #[expect(
            clippy::disallowed_types,
            reason = "a program without a clock to pass on"
        )]
        let start = std::time::Instant::now();
        let game = measure(&mut mesh, &choices, &then, &Plan::default());
        let game = game.expect("the choices are in their spaces");
        let rolled = start.elapsed().as_secs_f64();
        let distance = game.nash_conv_interval(&mixes, 200, 0.95, 1);
        let all = start.elapsed().as_secs_f64();
        println!(
            "{:.0} ms for the game, {:.0} ms with the interval of its NashConv: {:.4} ({:.4} to {:.4})",
            rolled * 1e3,
            all * 1e3,
            distance.value,
            distance.low,
            distance.high
        );
    }
}
