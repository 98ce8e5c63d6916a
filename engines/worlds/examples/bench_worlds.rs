//! How long a step of each world takes on one core, with random actions.
//!
//! ```text
//! cargo run --release -p tars-worlds --example bench_worlds
//! ```

use rand::{RngExt, SeedableRng};
use std::{hint::black_box, iter::repeat_with};
use tars_worlds::{Action, ActionSpace, Copies, Generator, make_world, world_names};

const COPIES: usize = 16;
const JOINTS: usize = 64;
const STEPS: usize = 20_000;

/// An action of a space, drawn evenly.
fn draw(space: &ActionSpace, rng: &mut Generator) -> Action {
    match space {
        ActionSpace::Discrete(names) => Action::Discrete(rng.random_range(0..names.len())),
        ActionSpace::Continuous(components) => {
            let number = |c: &tars_worlds::Component| rng.random_range(c.low..=c.high);
            Action::Continuous(components.iter().map(number).collect())
        }
    }
}

fn main() {
    for name in world_names() {
        let make = || make_world(name).expect("the registry made this name");
        let mut copies = Copies::new(make, COPIES, 1);
        let mut rng = Generator::seed_from_u64(2);
        let spaces: Vec<ActionSpace> = copies
            .spec()
            .agents
            .iter()
            .map(|a| a.action.clone())
            .collect();
        let joint = || {
            (0..COPIES)
                .flat_map(|_| &spaces)
                .map(|space| draw(space, &mut rng))
                .collect()
        };
        let joints: Vec<Vec<Action>> = repeat_with(joint).take(JOINTS).collect();
        #[expect(
            clippy::disallowed_types,
            reason = "a program without a clock to pass on"
        )]
        let start = std::time::Instant::now();
        for at in 0..STEPS {
            copies.step(black_box(&joints[at % JOINTS]));
        }
        let each = start.elapsed().as_secs_f64() / (STEPS * COPIES) as f64;
        println!(
            "{name:22} {:7.0} ns a step, {:12.0} steps/s",
            each * 1e9,
            1.0 / each
        );
    }
}
