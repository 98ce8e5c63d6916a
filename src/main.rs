//! `tars`: one binary, a role a subcommand.

use clap::Parser;
use std::process::ExitCode;
use tars::commands::Cli;

fn main() -> ExitCode {
    tars::commands::run(Cli::parse())
}
