//! What a contributor runs: `cargo xtask test | lint | bench NAME | soak NAME | shape | docs`.

mod bench;
mod breaking;
mod docs;
mod lint;
mod peers;
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
        /// The seed of the games that the nash benchmark solves; a fixed one without it.
        #[arg(long)]
        seed: Option<u64>,
        /// How many replicas of Auth the revocation benchmark has, on PostgreSQL: 1 or 2.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=2))]
        replicas: Option<u16>,
        /// How many seeds each gate is measured with, in place of 10, or how many episodes the mesh's agents are
        /// compared in, in place of 30; the report is not rewritten then.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: Option<u64>,
        /// Take the gates that `target/gates` has results of, measured by an earlier run, from there.
        #[arg(long)]
        resume: bool,
    },
    /// Repeat what goes wrong rarely, and fail at the first wrong outcome.
    Soak {
        name: soak::Soak,
        /// Print one JSON object on standard output.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        length: soak::Length,
    },
    /// Measure functions and files, and list files that import each other.
    Shape,
    /// Write the generated parts of the documentation anew.
    Docs,
}

/// The error is a message for the person who runs it.
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
            replicas,
            seeds,
            resume,
        } => {
            let options = bench::Options {
                json,
                quick,
                seed,
                replicas,
                seeds,
                resume,
            };
            bench::run(name, &options)
        }
        Command::Soak { name, json, length } => soak::run(name, json, length),
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
