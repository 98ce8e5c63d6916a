//! Benchmarks: built in release mode, each against its baseline in the same run.

use crate::{Outcome, peers, postgres, redis, tools};
use std::process::Command;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Bench {
    /// What an honest client notices while a stranger attacks the real binary.
    Abuse,
    /// Environment steps per CPU second of the learners, against Stable-Baselines3.
    Agents,
    /// A small unary call through the full stack, against bare tonic over its own mTLS.
    Call,
    /// One change of one API key among 100,000, in CPU time, against copying the table.
    Delta,
    /// The empirical game of the mesh's four agents, in CPU time: from the rollouts to the certificate.
    Egta,
    /// What callers notice of an endpoint that is dead, hung, slow or flapping, against three healthy ones.
    Endpoints,
    /// Whether each algorithm learns what it has to, with 10 seeds each. In full it rewrites
    /// engines/learn/gates.
    Gates,
    /// A mutual TLS handshake, in CPU time, against bare rustls with the same certificates.
    Handshake,
    /// The rate limiter, in process and over Redis: exactness, decisions a second against PING and the usual
    /// sliding log, and what a server that hangs costs.
    Limits,
    /// A small call and a stream through the full stack, against bare tonic, tonic with the usual interceptor, grpc-go,
    /// and nginx as sidecars; with ghz and k6 as clients, too.
    Mesh,
    /// The four agents of the mesh learn together, against the controllers that do not learn. In full it
    /// rewrites LEARNING.md.
    Learning,
    /// Leaves and roots rotate under load, one process a service: failed calls, broken streams.
    Rotation,
    /// Equilibria of seeded games of every class, against nashpy and Gambit.
    Nash,
    /// How long a revoked certificate still works in other processes.
    Revocation,
    /// Steps while weights and hyperparameters change and while agents train, against the same steps while
    /// nothing else happens.
    Serving,
    /// Writes, reads and pages of a service's own store, against bare sqlx on the same database.
    Store,
}

/// The environment variable by which a benchmark finds PostgreSQL, as in `database.url`.
const POSTGRES: &str = "TARS_BENCH_POSTGRES";

/// Where the comparison of the agents of the mesh is written.
const REPORT: &str = "LEARNING.md";

/// The folder of what the algorithms have to learn, and whether they do.
const GATES: &str = "engines/learn/gates";

/// What the command line says of a run.
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) quick: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) replicas: Option<u16>,
    pub(crate) seeds: Option<u64>,
    pub(crate) resume: bool,
}

impl Bench {
    fn example(self) -> &'static str {
        match self {
            Self::Abuse => "bench_abuse",
            Self::Agents => "bench_agents",
            Self::Call => "bench_call",
            Self::Delta => "bench_delta",
            Self::Egta => "bench_egta",
            Self::Endpoints => "bench_endpoints",
            Self::Gates => "gates",
            Self::Handshake => "bench_handshake",
            Self::Limits => "bench_limits",
            Self::Learning => "bench_learning",
            Self::Mesh => "bench_mesh",
            Self::Rotation => "bench_rotation",
            Self::Revocation => "bench_revocation",
            Self::Nash => "bench_nash",
            Self::Serving => "bench_serving",
            Self::Store => "bench_store",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Agents | Self::Egta | Self::Gates | Self::Learning => "tars-learn",
            Self::Nash => "tars-games",
            Self::Store => "tars-test-db",
            _ => "tars-tests",
        }
    }

    /// What it rewrites in full.
    fn report(self) -> Option<&'static str> {
        match self {
            Self::Gates => Some(GATES),
            Self::Learning => Some(REPORT),
            _ => None,
        }
    }

    /// Whether it starts the real binary.
    fn needs_binary(self) -> bool {
        matches!(
            self,
            Self::Abuse | Self::Gates | Self::Rotation | Self::Revocation | Self::Serving
        )
    }
}

pub(crate) fn run(bench: Bench, options: &Options) -> Outcome {
    if bench.needs_binary() {
        tools::build_binary()?;
    }
    let mut command = tools::example(bench.package(), bench.example());
    add_arguments(&mut command, options);
    if let Some(report) = bench.report().filter(|_| options.is_full()) {
        command.arg("--report").arg(tools::root().join(report));
    }
    let python = match bench {
        Bench::Agents => Some(tools::learners()?),
        Bench::Nash => Some(tools::peers()?),
        _ => None,
    };
    command.envs(python.map(|python| ("TARS_PEERS_PYTHON", python)));
    if matches!(bench, Bench::Mesh) {
        command.envs(peers::all(options.quick));
    }
    let replicas = options.replicas.unwrap_or(1);
    if matches!(bench, Bench::Limits) {
        command.env(redis::VARIABLE, redis::program()?);
    }
    let server = match bench {
        Bench::Store => postgres::Server::start_durable()?,
        Bench::Revocation if replicas > 1 => {
            command.env(redis::VARIABLE, redis::program()?);
            let server = postgres::Server::start_durable()?;
            Some(server.ok_or("replicas need PostgreSQL: apt-get install postgresql")?)
        }
        _ => None,
    };
    if let Some(server) = &server {
        command.env(POSTGRES, server.url());
    }
    tools::run(&mut command)
}

impl Options {
    /// Whether as much is measured as a report is made of.
    fn is_full(&self) -> bool {
        !self.quick && self.seeds.is_none()
    }
}

fn add_arguments(command: &mut Command, options: &Options) {
    for (flag, is_set) in [
        ("--json", options.json),
        ("--quick", options.quick),
        ("--resume", options.resume),
    ] {
        command.args(is_set.then_some(flag));
    }
    if let Some(seeds) = options.seeds {
        command.args(["--seeds", &seeds.to_string()]);
    }
    if let Some(seed) = options.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(replicas) = options.replicas {
        command.args(["--replicas", &replicas.to_string()]);
    }
}
