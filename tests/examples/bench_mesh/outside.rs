//! Load generators that others wrote, against the same servers: ghz and k6, both with the client's certificate.

use crate::{
    Failure,
    credentials::{CLIENT, Credentials},
};
use serde_json::Value;
use std::{path::PathBuf, process::Command, time::Duration};

/// The programs, where the machine has them.
pub(crate) const GHZ: &str = "TARS_PEER_GHZ";
pub(crate) const K6: &str = "TARS_PEER_K6";

/// Callers of one connection.
const CALLERS: &str = "64";

/// What an outside client did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) calls: u64,
    pub(crate) p99_ms: Option<f64>,
}

/// The folder of a part of this repository.
fn repository(part: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(part)
}

/// Calls for a while with ghz.
pub(crate) fn ghz(
    program: &str,
    address: &str,
    credentials: &Credentials,
    length: Duration,
) -> Result<Done, Failure> {
    let files = credentials.files(CLIENT);
    let metadata = serde_json::json!({
        "authorization": format!("Bearer {}", credentials.read("token")?)
    });
    // Read from a file: what is on a command line is seen by all of the machine.
    let token = credentials.path("metadata.json");
    std::fs::write(&token, metadata.to_string())?;
    let mut command = Command::new(program);
    command
        .arg("--proto")
        .arg(repository("proto/tars/orchestration/v1/metrics.proto"));
    command.arg("--import-paths").arg(repository("proto"));
    command.args([
        "--call",
        "tars.orchestration.v1.TrainingMetricsService.GetTrainingSummary",
        "--data",
        r#"{"agent_id":"policy"}"#,
    ]);
    command.arg("--metadata-file").arg(&token);
    command.arg("--cacert").arg(&files.ca);
    command.arg("--cert").arg(&files.cert);
    command.arg("--key").arg(&files.key);
    command.args(["--cname", "localhost", "--concurrency", CALLERS]);
    command.args(["--duration", &format!("{}ms", length.as_millis())]);
    command.args(["--duration-stop", "wait", "--format", "json", address]);
    let report = json(&mut command)?;
    let codes = &report["statusCodeDistribution"];
    let calls = codes["OK"].as_u64().unwrap_or(0);
    if calls == 0 || report["count"].as_u64() != Some(calls) {
        return Err(format!("ghz had calls that failed: {codes}").into());
    }
    let spread = report["latencyDistribution"].as_array();
    let p99 = spread.and_then(|all| all.iter().find(|one| one["percentage"] == 99));
    Ok(Done {
        calls,
        p99_ms: p99
            .and_then(|one| one["latency"].as_f64())
            .map(|ns| ns / 1e6),
    })
}

/// Calls for a while with k6.
pub(crate) fn k6(
    program: &str,
    address: &str,
    credentials: &Credentials,
    length: Duration,
) -> Result<Done, Failure> {
    let mut command = Command::new(program);
    command.args(["run", "--no-usage-report", "--quiet"]);
    command.arg(repository("tests/peers/k6.js"));
    command.env("FOLDER", credentials.path(CLIENT));
    command.env("TOKEN", credentials.read("token")?);
    command.env("PROTO", repository("proto"));
    command.env("ADDRESS", address);
    command.env("SECONDS", format!("{:.1}", length.as_secs_f64()));
    command.env("CALLERS", CALLERS);
    let report = json(&mut command)?;
    let calls = report["calls"].as_u64().unwrap_or(0);
    if calls == 0 || report["failed"].as_u64() != Some(0) {
        return Err(format!("k6 had calls that failed: {report}").into());
    }
    Ok(Done {
        calls,
        p99_ms: None,
    })
}

fn json(command: &mut Command) -> Result<Value, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    serde_json::from_slice(&output.stdout).map_err(|e| {
        let text = String::from_utf8_lossy(&output.stderr);
        format!("{program}: {e}: {text}").into()
    })
}
