//! Soaks: the real binary, in release mode, under what takes too long for a test. Each ends by itself
//! and fails at the first thing that is wrong; how far it is, standard error tells.

use crate::{Outcome, peers, postgres, redis, tools};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Soak {
    /// Administrators race one another; every process must end with what the database says.
    Races,
    /// Agents train for hours while their weights change and processes are killed; nothing acknowledged may be
    /// lost, and the memory of a mesh that is not killed may not grow.
    Agents,
    /// Redis, PostgreSQL and replicas fail during load; nothing acknowledged may be lost or done twice.
    Faults,
    /// Traffic of every kind at a steady rate: no call may fail, and memory, file descriptors and tasks may not grow.
    /// Before that, h2spec tries the HTTP/2 of a mesh port.
    Traffic,
}

impl Soak {
    fn example(self) -> &'static str {
        match self {
            Self::Races => "soak_races",
            Self::Agents => "soak_agents",
            Self::Faults => "soak_faults",
            Self::Traffic => "soak_traffic",
        }
    }
}

/// How long a soak takes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Length {
    /// The number of rounds; without it 1,000 of races and 20 of faults.
    #[arg(long)]
    rounds: Option<usize>,
    /// The hours of agents and of traffic; without it 2 of agents, half an hour of traffic.
    #[arg(long, conflicts_with = "rounds")]
    hours: Option<f64>,
}

pub(crate) fn run(soak: Soak, json: bool, length: Length) -> Outcome {
    let is_timed = matches!(soak, Soak::Agents | Soak::Traffic);
    if is_timed && length.rounds.is_some() || !is_timed && length.hours.is_some() {
        return Err("agents and traffic have hours, races and faults have rounds".to_owned());
    }
    tools::build_binary()?;
    let mut command = tools::example("tars-tests", soak.example());
    if matches!(soak, Soak::Faults) {
        command.env(postgres::PROGRAMS, postgres::programs()?);
        command.env(redis::VARIABLE, redis::program()?);
    }
    if matches!(soak, Soak::Traffic) {
        command.envs(peers::h2spec());
    }
    if let Some(rounds) = length.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    if let Some(hours) = length.hours {
        command.args(["--hours", &hours.to_string()]);
    }
    if json {
        command.arg("--json");
    }
    tools::run(&mut command)
}
