//! `tars probe`: a true health check over mTLS, that also proves who answers.

use super::{CommandError, Global, block_on, retry};
use crate::app::{CERTIFICATE, Ready, Service, connect_failure::Attempt};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tars_certs::{IdentityFiles, SpiffeId};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::{Channel, ChannelOptions, Server};
use tars_proto::grpc::health::v1::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tars_runtime::{clock::Clock, config::Config};
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars probe auth\n  tars probe automl --target 10.0.0.7:8097 --identity /var/run/tars --timeout 2\n\nExits with 0 when the service answers, proves its SPIFFE id and says that it serves."
)]
pub(crate) struct Probe {
    /// The service to check; the gateway's health is at its /ready, and at that of the observe port.
    #[arg(value_parser = over_tls())]
    service: Service,
    /// `host:port`; that of the mesh in the data directory when left out, or of [connect].
    #[arg(long)]
    target: Option<String>,
    /// A folder with tls.crt, tls.key and ca.crt; the operator's when left out.
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// How long to wait for an answer.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    timeout: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The services that have a health check over mTLS: all but the gateway, which speaks HTTP.
fn over_tls() -> impl TypedValueParser<Value = Service> {
    PossibleValuesParser::new(Service::over_tls().map(|s| s.as_str()))
        .try_map(|name| Service::parse(&name).ok_or("no service has this name"))
}

/// Whether a service that does not serve reports its certificate as revoked.
async fn is_revoked(client: &mut HealthClient<OutgoingService<Channel>>) -> bool {
    let request = HealthCheckRequest {
        service: CERTIFICATE.to_owned(),
    };
    let answer = client.check(request).await;
    answer.is_ok_and(|a| a.get_ref().status() == ServingStatus::NotServing)
}

/// Where the operator's identity is: what runs on the data directory says so.
fn operator_dir(data: &Path) -> PathBuf {
    let ready = Ready::load(&Ready::default_path(data)).ok();
    let own = ready.and_then(|ready| Some(ready.client_cert.parent()?.to_owned()));
    own.unwrap_or_else(|| data.join("operator"))
}

impl Probe {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(Table::new())?;
        let target = match &self.target {
            Some(target) => target.clone(),
            None => global.target(self.service, "--target")?,
        };
        let limit = Duration::from_secs(self.timeout);
        let late = || {
            let files = self.files(&config)?;
            let attempt = Attempt::new(&target, self.service.as_str(), &files);
            Err(CommandError::on(
                &attempt,
                format!("{target}: no answer in {limit:?}"),
            ))
        };
        let server = block_on(async {
            tokio::time::timeout(limit, retry(async || self.check(&config, &target).await)).await
        })?
        .unwrap_or_else(|_| late())?;
        self.print(&server);
        Ok(ExitCode::SUCCESS)
    }

    /// The identity to probe with: the one that is named, or the operator's.
    fn files(&self, config: &Config) -> Result<IdentityFiles, CommandError> {
        let own = || operator_dir(&config.data.dir);
        let files = IdentityFiles::in_dir(&self.identity.clone().unwrap_or_else(own));
        let parts = [&files.cert, &files.key, &files.ca];
        let missing = parts.into_iter().find(|path| !path.exists()).cloned();
        match missing {
            None => Ok(files),
            Some(missing) => Err(CommandError::Failed(format!(
                "there is no {}: a probe shows an identity of its own; name a folder with tls.crt, tls.key and ca.crt by --identity",
                missing.display()
            ))),
        }
    }

    fn print(&self, server: &Server) {
        let leaf = server.peer.verified.as_ref().map(|v| &v.certificate);
        let left = leaf.map(|l| l.not_after.saturating_sub(Clock::system().now()).as_secs());
        if self.json {
            say!(
                "{:#}",
                json!({ "service": self.service.as_str(), "status": "SERVING", "peer": server.peer.name(),
                        "serial": leaf.map(|l| l.serial.as_str()), "certificate_seconds_left": left,
                        "tls": "1.3", "key_exchange": server.key_exchange })
            );
            return;
        }
        say!("{}: serving", self.service.as_str());
        say!("  proven        {}", server.peer.name());
        if let (Some(leaf), Some(left)) = (leaf, left) {
            say!("  certificate   serial {}, ends in {left} s", leaf.serial);
            if u128::from(left) * 1000 < leaf.lifetime().as_millis() / 6 {
                note!("warning: the server's certificate is near its end, and was not renewed");
            }
        }
        say!("  key exchange  TLS 1.3, {}", server.key_exchange);
    }

    async fn check(&self, config: &Config, target: &str) -> Result<Server, CommandError> {
        let clock = Clock::system();
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(clock.clone());
        let failed = |e: &dyn std::fmt::Display| CommandError::Failed(e.to_string());
        let files = self.files(config)?;
        let path = config.trust.path_of(self.service.as_str());
        let attempt = Attempt::new(target, &path, &files);
        let identity = files
            .load(&time)
            .map_err(|e| CommandError::own(&attempt, &e))?;
        let expected = SpiffeId::new(identity.id().trust_domain(), &path);
        let expected = expected.map_err(|e| failed(&e))?;
        let channel = Channel::new(ChannelOptions::alone(target, expected, identity, clock))
            .map_err(|e| failed(&e))?;
        let server = channel
            .server()
            .await
            .map_err(|e| CommandError::on(&attempt, e))?;
        let mut client = HealthClient::new(outgoing(channel, Credentials::Own));
        let answer = client
            .check(HealthCheckRequest {
                service: String::new(),
            })
            .await;
        let answer = answer.map_err(|e| CommandError::on(&attempt, e.message()))?;
        let why = match answer.get_ref().status() {
            ServingStatus::Serving => return Ok(server),
            _ if is_revoked(&mut client).await => {
                "revoked: its certificate is cut off, and peers reject it".to_owned()
            }
            other => other.as_str_name().to_owned(),
        };
        let service = self.service.as_str();
        Err(CommandError::Failed(format!(
            "{service} at {target}: {why}"
        )))
    }
}
