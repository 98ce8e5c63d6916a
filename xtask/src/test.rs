//! `cargo xtask test`: everything; on PostgreSQL again what stores something; and with two replicas of
//! everything what users do and what processes survive.

use crate::{
    Outcome, lint,
    postgres::{PASSWORD, PROGRAMS, Server},
    redis, tools,
};
use std::{path::Path, process::Command};

/// Tests of the whole that run on both engines.
const ON_BOTH: &[&str] = &["governance", "main_job", "kill", "statements", "storage"];

/// Tests of the whole that run with two replicas of everything.
const IN_REPLICAS: &[&str] = &[
    "main_job",
    "refusals",
    "kill",
    "meshes",
    "auth_away",
    "listeners",
    "telemetry",
];

/// It follows the progress of a measurement, which the replica that measures alone knows.
const ALONE: &str = "a_mesh_that_is_killed_while_it_rolls_back_goes_on_rolling_back";

pub(crate) fn run() -> Outcome {
    tools::python()?;
    tools::redocly()?;
    let redis = redis::program()?;
    lint::run()?;
    let server = Server::start()?;
    let mut all = tests(&server, &redis);
    // The benchmarks and soaks are compiled by clippy.
    all.args(["--lib", "--bins", "--tests", "--", "--include-ignored"]);
    tools::run(&mut all)?;
    let mut again = tests(&server, &redis);
    again.arg("--lib");
    again.args(ON_BOTH.iter().flat_map(|test| ["--test", test]));
    again.env("TARS_TEST_ENGINE", "postgres");
    tools::run(&mut again)?;
    let mut replicated = tests(&server, &redis);
    replicated.args(IN_REPLICAS.iter().flat_map(|test| ["--test", test]));
    replicated.env("TARS_TEST_ENGINE", "postgres");
    replicated.env("TARS_TEST_REPLICAS", "2");
    replicated.args(["--", "--skip", ALONE]);
    tools::run(&mut replicated)
}

/// All of the workspace both times: another selection of packages has other features, and would be
/// built anew.
fn tests(server: &Server, redis: &Path) -> Command {
    let mut tests = tools::cargo();
    tests.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    tests.env("TARS_TEST_TOOLS", tools::dir());
    tests.env("TARS_TEST_POSTGRES", server.url());
    tests.env(PROGRAMS, server.programs());
    tests.env(redis::VARIABLE, redis);
    tests.env("TARS_TEST_POSTGRES_TLS", server.tls_url());
    tests.env("TARS_TEST_POSTGRES_ROOT", server.root());
    tests.env("TARS_TEST_POSTGRES_PASSWORD", PASSWORD);
    tests
}
