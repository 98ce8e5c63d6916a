//! Runs Stable-Baselines3 in a Python of its own.

use crate::cases::Case;
use serde::Deserialize;
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// What the peer measured.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    pub(crate) steps_per_cpu_s: f64,
    pub(crate) predict_us: f64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the peer's Python: {0}")]
    Process(#[from] std::io::Error),
    #[error("the peer's answer: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("the peer failed: {0}")]
    Exit(std::process::ExitStatus),
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/bench_agents/peer.py");

/// Measures a case with one thread. OpenBLAS chooses its kernels by itself.
pub(crate) fn run(python: &str, case: &Case, steps: usize, seed: u64) -> Result<Answer, Failure> {
    let mut child = Command::new(python)
        .arg(SCRIPT)
        .env("OMP_NUM_THREADS", "1")
        .env("OPENBLAS_NUM_THREADS", "1")
        .env_remove("OPENBLAS_CORETYPE")
        .env_remove("OPENBLAS_L2_SIZE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let wanted = case.for_peer(steps, seed).to_string();
    if let Some(mut input) = child.stdin.take() {
        input.write_all(wanted.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(Failure::Exit(output.status));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
