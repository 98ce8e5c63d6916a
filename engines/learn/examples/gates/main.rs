//! Whether each algorithm learns what it has to: the gates, with some seeds each. A world of one agent is learned
//! by the real binary (`tars train`), which writes the learning curves, and games by players who all learn at the
//! same time.
//!
//! ```text
//! cargo xtask bench gates [--quick] [--seeds N] [--json]
//! ```
//!
//! Further arguments: `--only ALGORITHM:WORLD` for a single gate; `--out DIR` for the curves, in place of
//! `target/gates`; `--resume`, by which results that are in that folder, of as many seeds, are not measured again.
//! It fails when a gate is missed.

mod games;
mod options;
mod report;
mod single;
mod table;

use options::Options;
use report::{Report, Row};
use table::Goal;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let options = Options::read(std::env::args().skip(1))?;
    std::fs::create_dir_all(&options.out)?;
    let mut rows = Vec::new();
    for gate in table::GATES.iter().filter(|gate| options.takes(gate)) {
        let results = match gate.goal {
            Goal::Return(_) => single::measure(gate, &options)?,
            Goal::Equilibrium | Goal::Reported | Goal::Quantity(_) => {
                games::measure(gate, options.seeds)
            }
        };
        let row = Row::new(gate, results);
        eprintln!("{}", row.describe());
        rows.push(row);
    }
    let report = Report {
        rows,
        seeds: options.seeds,
    };
    match options.json {
        true => println!("{:#}", report.json()),
        false => println!("{}", report.markdown()),
    }
    if let Some(folder) = &options.report {
        report.write(folder, &options.out)?;
    }
    match report.missed() {
        missed if missed.is_empty() => Ok(()),
        missed => Err(format!("missed: {}", missed.join(", ")).into()),
    }
}
