//! What other people would run, and the clients with which they would try and measure it: built or found here, for
//! the benchmark of the mesh and the soak of its traffic. None of them is needed; what the machine cannot build is
//! left out, and said.

use crate::{Outcome, tools};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The module of k6, which is built as a part of another one: its own is not where its name says.
const K6: &str = "go.k6.io/k6/v2@v2.2.0";
/// The last tag that fits its module's path.
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";
const GHZ: &str = "github.com/bojand/ghz/cmd/ghz@v0.121.0";

/// The programs that there are, by the environment variable that names each to the benchmark.
pub(crate) fn all(quick: bool) -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    let mut add = |variable, name: &str, program: Result<PathBuf, String>| match program {
        Ok(program) => found.push((variable, program)),
        Err(why) => eprintln!("{name} is left out: {why}"),
    };
    add("TARS_PEER_GRPC_GO", "grpc-go", grpc_go());
    add("TARS_PEER_GHZ", "ghz", installed("ghz", GHZ));
    // It takes minutes to build.
    let k6 = match quick {
        true => built("k6").ok_or("--quick does not build it".to_owned()),
        false => k6(),
    };
    add("TARS_PEER_K6", "k6", k6);
    let missing = "on Debian: apt-get install nginx".to_owned();
    add("TARS_PEER_NGINX", "nginx", on_path("nginx").ok_or(missing));
    found
}

/// h2spec, by the environment variable that names it to the soak of traffic.
pub(crate) fn h2spec() -> Option<(&'static str, PathBuf)> {
    match installed("h2spec", H2SPEC) {
        Ok(program) => Some(("TARS_PEER_H2SPEC", program)),
        Err(why) => {
            eprintln!("h2spec is left out: {why}");
            None
        }
    }
}

fn folder() -> PathBuf {
    tools::dir().join("go")
}

/// A program that was built before.
fn built(name: &str) -> Option<PathBuf> {
    Some(folder().join(name)).filter(|program| program.is_file())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name));
    candidates.find(|candidate| candidate.is_file())
}

fn go(at: &Path, arguments: &[&str]) -> Outcome {
    let go = on_path("go").ok_or("Go is missing")?;
    std::fs::create_dir_all(at).map_err(|e| e.to_string())?;
    let mut command = Command::new(go);
    command.current_dir(at).args(arguments);
    command.env("GOBIN", folder()).env("GOFLAGS", "-mod=mod");
    tools::run(&mut command)
}

/// Go builds again only what has changed.
fn grpc_go() -> Result<PathBuf, String> {
    let program = folder().join("grpc_go");
    let to = program.display().to_string();
    go(
        &tools::root().join("tests/peers/grpc_go"),
        &["build", "-o", &to],
    )?;
    Ok(program)
}

/// A program of a module; installed if it is not there yet.
fn installed(name: &str, module: &str) -> Result<PathBuf, String> {
    if let Some(program) = built(name) {
        return Ok(program);
    }
    go(&folder(), &["install", module])?;
    built(name).ok_or("it was not built".to_owned())
}

fn k6() -> Result<PathBuf, String> {
    if let Some(program) = built("k6") {
        return Ok(program);
    }
    let at = folder().join("k6-module");
    std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    std::fs::write(at.join("go.mod"), "module peers\n\ngo 1.26\n").map_err(|e| e.to_string())?;
    go(&at, &["get", K6])?;
    let to = folder().join("k6").display().to_string();
    let package = K6.split_once('@').map_or(K6, |(package, _)| package);
    go(&at, &["build", "-o", &to, package])?;
    built("k6").ok_or("it was not built".to_owned())
}
