//! Soaks: the real binary, in release mode, under what takes too long for a test. Each ends by itself
//! and fails at the first thing that is wrong; how far it is, standard error tells.

use crate::{Outcome, tools};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Soak {
    /// Administrators race one another; every process must end with what the database says.
    Races,
}

impl Soak {
    fn example(self) -> &'static str {
        match self {
            Self::Races => "soak_races",
        }
    }
}

pub(crate) fn run(soak: Soak, json: bool, rounds: Option<usize>) -> Outcome {
    tools::build_binary()?;
    let mut command = tools::example("tars-tests", soak.example());
    if let Some(rounds) = rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    if json {
        command.arg("--json");
    }
    tools::run(&mut command)
}
