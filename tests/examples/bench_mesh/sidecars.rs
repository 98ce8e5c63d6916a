//! What people put beside a service that speaks plaintext: two proxies, nginx here, that speak mutual TLS to each other.

use crate::{
    Failure,
    credentials::{CLIENT, Credentials, SERVER},
    processes::Process,
};
use std::{net::TcpListener, path::Path, process::Command};

/// The program, where the machine has it.
pub(crate) const NGINX: &str = "TARS_PEER_NGINX";

/// A client's proxy, a server's proxy, and what the client connects to.
#[derive(Debug)]
pub(crate) struct Sidecars {
    pub(crate) processes: [Process; 2],
    pub(crate) address: String,
}

impl Sidecars {
    /// Starts both before a server that listens at `behind`.
    pub(crate) fn start(
        nginx: &str,
        behind: &str,
        credentials: &Credentials,
    ) -> Result<Self, Failure> {
        let (near, far) = (free_port()?, free_port()?);
        let server = credentials.files(SERVER);
        let listen = format!(
            "listen 127.0.0.1:{far} ssl http2;\n\
             ssl_certificate {};\nssl_certificate_key {};\nssl_client_certificate {};\n\
             ssl_verify_client on;\nssl_verify_depth 3;\nssl_protocols TLSv1.3;",
            server.cert.display(),
            server.key.display(),
            server.ca.display()
        );
        let far_conf = configuration("far", &listen, behind, "grpc_pass grpc://upstream;");
        let client = credentials.files(CLIENT);
        let pass = format!(
            "grpc_pass grpcs://upstream;\n\
             grpc_ssl_certificate {};\ngrpc_ssl_certificate_key {};\n\
             grpc_ssl_trusted_certificate {};\ngrpc_ssl_verify on;\ngrpc_ssl_verify_depth 3;\n\
             grpc_ssl_name localhost;\ngrpc_ssl_protocols TLSv1.3;",
            client.cert.display(),
            client.key.display(),
            client.ca.display()
        );
        let to = format!("127.0.0.1:{far}");
        let listen = format!("listen 127.0.0.1:{near} http2;");
        let near_conf = configuration("near", &listen, &to, &pass);
        let folder = &credentials.0;
        let far = run(nginx, folder, "far", &far_conf)?;
        let near_proxy = run(nginx, folder, "near", &near_conf)?;
        Ok(Self {
            processes: [near_proxy, far],
            address: format!("127.0.0.1:{near}"),
        })
    }
}

fn run(nginx: &str, folder: &Path, name: &str, text: &str) -> Result<Process, Failure> {
    let path = folder.join(format!("{name}.conf"));
    std::fs::write(&path, text)?;
    let mut command = Command::new(nginx);
    command.arg("-p").arg(folder).arg("-c").arg(&path);
    command.arg("-e").arg(folder.join(format!("{name}.log")));
    Process::start_quiet(&mut command)
}

/// As one would write it for speed: connections to the next hop are kept, and nothing is logged for a call.
fn configuration(name: &str, listen: &str, to: &str, pass: &str) -> String {
    format!(
        "daemon off;\nworker_processes 1;\npid {name}.pid;\nuser root;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off;\nkeepalive_timeout 1h;\nkeepalive_requests 1000000000;\n\
         http2_max_concurrent_streams 1024;\nhttp2_recv_buffer_size 512k;\n\
         upstream upstream {{ server {to}; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 1h; }}\n\
         server {{\n{listen}\n\
         location / {{\ngrpc_socket_keepalive on;\n{pass}\n}}\n}}\n}}\n"
    )
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
