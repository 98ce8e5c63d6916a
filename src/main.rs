//! `tars`: one binary, a role a subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    tars::commands::run(tars::commands::parse())
}
