//! What a contributor runs: `cargo xtask test | lint | bench NAME | soak NAME | shape | docs`.

mod bench;
mod breaking;
mod docs;
mod lint;
mod postgres;
mod redis;
mod shape;
mod soak;
mod test;
mod tools;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "What a contributor runs")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the tests need, then run every check and every test.
    Test,
    /// Formatting, clippy, the dependency graph, the protos, the generated docs.
    Lint,
    /// Run a benchmark against its baseline.
    Bench {
        name: bench::Bench,
        /// Print one JSON object on standard output.
        #[arg(long)]
        json: bool,
        #[arg(long)]
        quick: bool,
        /// Other games than usual (nash).
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Do something for long, until it is done or wrong.
    Soak {
        name: soak::Soak,
        /// Print one JSON object on standard output.
        #[arg(long)]
        json: bool,
        /// Other than 1,000.
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// Measure functions and files, and say which files import each other.
    Shape,
    /// Write the generated parts of the documentation anew.
    Docs,
}

/// What went wrong, for people.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test => test::run(),
        Command::Lint => lint::run(),
        Command::Bench {
            name,
            json,
            quick,
            seed,
        } => bench::run(name, json, quick, seed),
        Command::Soak { name, json, rounds } => soak::run(name, json, rounds),
        Command::Shape => shape::run(),
        Command::Docs => docs::write(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}
