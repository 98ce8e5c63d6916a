//! Benchmarks: built in release mode, each against its baseline in the same run.

use crate::{Outcome, tools};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Bench {
    /// What an honest client notices while a stranger attacks the real binary.
    Abuse,
    /// A small unary call through the full stack, against bare tonic over its own mTLS.
    Call,
    /// One change of one API key among 100,000, in CPU time, against copying the table.
    Delta,
    /// A mutual TLS handshake, in CPU time, against bare rustls with the same certificates.
    Handshake,
    /// Leaves and roots rotate under load, one process a service: failed calls, broken streams.
    Rotation,
    /// Equilibria of seeded games of every class, against nashpy and Gambit.
    Nash,
    /// How long a revoked certificate still works in other processes.
    Revocation,
}

impl Bench {
    fn example(self) -> &'static str {
        match self {
            Self::Abuse => "bench_abuse",
            Self::Call => "bench_call",
            Self::Delta => "bench_delta",
            Self::Handshake => "bench_handshake",
            Self::Rotation => "bench_rotation",
            Self::Revocation => "bench_revocation",
            Self::Nash => "bench_nash",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Nash => "tars-games",
            _ => "tars-tests",
        }
    }

    /// Whether it starts the real binary.
    fn needs_binary(self) -> bool {
        matches!(self, Self::Abuse | Self::Rotation | Self::Revocation)
    }
}

pub(crate) fn run(bench: Bench, json: bool, quick: bool, seed: Option<u64>) -> Outcome {
    if bench.needs_binary() {
        tools::build_binary()?;
    }
    let mut command = tools::example(bench.package(), bench.example());
    if matches!(bench, Bench::Nash) {
        command.env("TARS_PEERS_PYTHON", tools::peers()?);
        if let Some(seed) = seed {
            command.args(["--seed", &seed.to_string()]);
        }
    }
    if json {
        command.arg("--json");
    }
    if quick {
        command.arg("--quick");
    }
    tools::run(&mut command)
}
