//! The Redis server of the tests. Each test starts one of its own, on a Unix socket or a free port, and
//! stops it; here the program is found, and installed by apt where that is possible. No instance of the
//! system is used.

use crate::{Outcome, tools};
use std::{path::PathBuf, process::Command};

/// The environment variable by which the tests find the program.
pub(crate) const VARIABLE: &str = "TARS_TEST_REDIS_SERVER";

const PROGRAM: &str = "redis-server";

/// The program; installed if it is not there yet.
pub(crate) fn program() -> Result<PathBuf, String> {
    if let Some(program) = found() {
        return Ok(program);
    }
    install().map_err(|why| missing(&why))?;
    found().ok_or_else(|| missing("it is not on the path"))
}

fn found() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    candidates.find(|candidate| candidate.is_file())
}

fn install() -> Outcome {
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        tools::run(&mut command)
    };
    apt(&["update", "--quiet=2"])?;
    apt(&[
        "install",
        "--quiet=2",
        "--yes",
        "--no-install-recommends",
        PROGRAM,
    ])
}

fn missing(why: &str) -> String {
    format!(
        "{PROGRAM} (6 or newer, with TLS) is missing; on Debian: apt-get install redis-server ({why})"
    )
}
