//! h2spec against a mesh port. It cannot show a client certificate: a bridge on loopback does that for it.

use crate::Failure;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::{net::SocketAddr, process::Command};
use tars_tests::{process::Running, test_ca};
use tokio::net::{TcpListener, TcpStream};

/// The program, where the machine has it.
const H2SPEC: &str = "TARS_PEER_H2SPEC";

/// What the service may answer otherwise: these expect DATA, and an error of gRPC is trailers only.
const EXPECTED: [&str; 2] = [
    "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
    "Sends a PRIORITY frame on half-closed (remote) stream",
];

pub(crate) async fn run(mesh: &Running) -> Result<Value, Failure> {
    let Ok(program) = std::env::var(H2SPEC) else {
        eprintln!("h2spec is left out: {H2SPEC} names no program");
        return Ok(json!("left out"));
    };
    let port = bridge(mesh).await?;
    let report = mesh.data.join("h2spec.xml");
    let mut command = Command::new(program);
    command.args(["--strict", "--timeout", "5", "--port", &port.to_string()]);
    command.arg("--junit-report").arg(&report);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary = text.lines().rev().find(|line| line.contains("passed"));
    let failed = failures(&std::fs::read_to_string(&report)?);
    let unexpected: Vec<_> = failed
        .iter()
        .filter(|case| !EXPECTED.iter().any(|text| case.ends_with(text)))
        .collect();
    let summary = summary.ok_or("h2spec printed no summary")?;
    if !summary.ends_with(&format!(" {} failed", failed.len())) {
        return Err(format!("the report has {} failures: {summary}", failed.len()).into());
    }
    eprintln!("h2spec: {summary}");
    Ok(json!({ "summary": summary, "failed": failed, "unexpected": unexpected }))
}

/// The packages and texts of the cases that failed, from the report.
fn failures(report: &str) -> Vec<String> {
    let attribute = |text: &str, name: &str| {
        let (_, rest) = text.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let cases = report.split("<testcase").skip(1);
    let mut failed = Vec::new();
    for case in cases.filter(|case| case.contains("<failure") || case.contains("<error")) {
        let package = attribute(case, "package").unwrap_or_default();
        let name = attribute(case, "classname").unwrap_or_default();
        failed.push(format!("{package}: {name}"));
    }
    failed
}

/// A port that speaks plaintext, and mutual TLS to Orchestration.
async fn bridge(mesh: &Running) -> Result<u16, Failure> {
    let target: SocketAddr = mesh
        .ready
        .orchestration
        .trim_start_matches("https://")
        .parse()?;
    let chain = CertificateDer::pem_file_iter(&mesh.ready.client_cert)?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>()?;
    let key = std::fs::read(&mesh.ready.client_key)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(key) = PrivateKeyDer::from_pem_slice(&key) else {
                return;
            };
            let config = test_ca::client(Some((chain.clone(), key)));
            tokio::spawn(carry(near, target, config));
        }
    });
    Ok(port)
}

async fn carry(mut near: TcpStream, target: SocketAddr, config: rustls::ClientConfig) {
    // What cannot be carried on ends both sides, which is what the other one sees.
    if let Ok(mut far) = test_ca::connect(target, config).await {
        tokio::io::copy_bidirectional(&mut near, &mut far)
            .await
            .ok();
    }
}
