//! Soaks: the real binary, in release mode, under what takes too long for a test. Each ends by itself
//! and fails at the first thing that is wrong; how far it is, standard error tells.

use crate::{Outcome, postgres, redis, tools};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Soak {
    /// Administrators race one another; every process must end with what the database says.
    Races,
    /// Redis, PostgreSQL and replicas fail during load; nothing acknowledged may be lost or done twice.
    Faults,
}

impl Soak {
    fn example(self) -> &'static str {
        match self {
            Self::Races => "soak_races",
            Self::Faults => "soak_faults",
        }
    }
}

pub(crate) fn run(soak: Soak, json: bool, rounds: Option<usize>) -> Outcome {
    tools::build_binary()?;
    let mut command = tools::example("tars-tests", soak.example());
    if matches!(soak, Soak::Faults) {
        command.env(postgres::PROGRAMS, postgres::programs()?);
        command.env(redis::VARIABLE, redis::program()?);
    }
    if let Some(rounds) = rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    if json {
        command.arg("--json");
    }
    tools::run(&mut command)
}
