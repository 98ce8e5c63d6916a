//! Trains the four agents of the mesh together and compares them with the controllers that do not learn, on
//! seeds that nothing was tuned on; writes the report that shows whether learning pays.
//!
//! ```text
//! cargo xtask bench learning [--quick] [--json]
//! ```
//!
//! Presets are to be tuned on other seeds, and by other values, for which there are the arguments
//! `--training-seed N`, `--trainings N`, `--steps N`, `--first-seed N`, `--seeds N` and `ALGORITHM.NAME=VALUE`.

mod contest;
mod equilibrium;
mod options;
mod report;
mod spread;
mod training;

use contest::Contest;
use options::Options;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    let mut contests = Vec::new();
    for seed in options.training_seeds() {
        eprintln!("training {seed}");
        contests.push(Contest::new(training::train(&options, seed)?, &options));
    }
    let report = report::measure(&mut contests, &options);
    if options.json {
        println!("{:#}", report.json());
    } else {
        println!("{}", report.markdown());
    }
    if let Some(path) = &options.report {
        std::fs::write(path, report.markdown())?;
    }
    Ok(())
}
