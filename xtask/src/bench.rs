//! Benchmarks: built in release mode, each against its baseline in the same run.

use crate::{Outcome, tools};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Bench {
    /// A small unary call through the full stack, against bare tonic over its own mTLS.
    Call,
}

pub(crate) fn run(bench: Bench, json: bool, quick: bool) -> Outcome {
    let example = match bench {
        Bench::Call => "bench_call",
    };
    let mut command = tools::cargo();
    command.args([
        "run",
        "--release",
        "--quiet",
        "--locked",
        "--package",
        "tars-tests",
        "--example",
        example,
        "--",
    ]);
    if json {
        command.arg("--json");
    }
    if quick {
        command.arg("--quick");
    }
    tools::run(&mut command)
}
