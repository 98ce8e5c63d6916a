//! h2spec against a mesh port. It cannot show a client certificate: a bridge on loopback does that for it.

use crate::Failure;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{net::SocketAddr, process::Command};
use tars_tests::{h2spec::Conformance, process::Running, test_ca};
use tokio::net::{TcpListener, TcpStream};

/// The program, where the machine has it.
const H2SPEC: &str = "TARS_PEER_H2SPEC";

pub(crate) async fn run(mesh: &Running) -> Result<Conformance, Failure> {
    let Ok(program) = std::env::var(H2SPEC) else {
        eprintln!("h2spec is left out: {H2SPEC} names no program");
        return Ok(Conformance::LeftOut);
    };
    let port = bridge(mesh).await?;
    let report = mesh.data.join("h2spec.xml");
    let mut command = Command::new(program);
    command.args(["--strict", "--timeout", "5", "--port", &port.to_string()]);
    command.arg("--junit-report").arg(&report);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let printed = String::from_utf8_lossy(&output.stdout);
    let seen = Conformance::read(&printed, &std::fs::read_to_string(&report)?)?;
    eprintln!("h2spec: {}", seen.report());
    Ok(seen)
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
