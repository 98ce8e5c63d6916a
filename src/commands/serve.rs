//! `tars serve SERVICE`.

use super::{
    CommandError, Global, block_on, init_log,
    up::{Addresses, Signals},
};
use crate::app::{self, Origin, Service};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use std::{path::PathBuf, process::ExitCode};
use tars_certs::IdentityFiles;
use tars_runtime::config::leaf;
use toml::Value;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars serve auth --bootstrap-addr 0.0.0.0:8092\n  tars serve automl --join-token-file automl.token --data-dir /var/lib/tars\n  tars serve automl --identity /var/run/secrets/tls\n\nAuth alone has the certificate authority of its data directory. The others take their identity\nfrom mounted files, which are followed, or join with a token and renew by themselves. Where the\nother services are is in the configuration, section [connect]."
)]
pub(crate) struct Serve {
    /// The service to run.
    #[arg(value_parser = services())]
    service: Service,
    /// A folder with tls.crt, tls.key and ca.crt, which somebody else keeps fresh.
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// A join token, for the first start; see `tars certs join-token`.
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    join_token_file: Option<PathBuf>,
    #[command(flatten)]
    addresses: Addresses,
}

fn services() -> impl TypedValueParser<Value = Service> {
    let value = |service: &Service| PossibleValue::new(service.as_str()).help(service.title());
    PossibleValuesParser::new(Service::ALL.iter().map(value))
        .try_map(|name| Service::parse(&name).ok_or("no service has this name"))
}

impl Serve {
    fn origin(&self) -> Origin {
        match &self.identity {
            Some(dir) => Origin::Files(IdentityFiles::in_dir(dir)),
            None if self.service == Service::Auth => Origin::Authority,
            None => Origin::Join,
        }
    }

    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mut flags = self.addresses.flags();
        if let Some(path) = &self.join_token_file {
            let value = Value::String(path.display().to_string());
            flags.extend(leaf("certificates", "join_token_file", value));
        }
        let config = global.load(flags)?;
        init_log(&config)?;
        block_on(async move {
            let mut signals = Signals::new()?;
            let origin = self.origin();
            let process = tokio::select! {
                started = app::serve_one(config, self.service, &origin) => started?,
                () = signals.wait() => return Ok(ExitCode::from(130)),
            };
            signals.wait().await;
            match signals.unless_again(process.stop()).await {
                true => Ok(ExitCode::SUCCESS),
                false => Ok(ExitCode::from(130)),
            }
        })?
    }
}
