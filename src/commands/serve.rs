//! `tars serve SERVICE`.

use super::{
    CommandError, Global, block_on, init_log,
    up::{Addresses, Signals},
};
use crate::app::{self, ServiceName};
use clap::Args;
use std::{path::PathBuf, process::ExitCode};
use tars_certs::ca::IdentityFiles;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars certs issue auth --out certs/auth\n  tars serve auth --identity certs/auth\n\nWhere the other services are is in the configuration, section [connect]."
)]
pub(crate) struct Serve {
    service: ServiceName,
    /// A folder with tls.crt, tls.key and ca.crt.
    #[arg(long, value_name = "DIR")]
    identity: PathBuf,
    #[command(flatten)]
    addresses: Addresses,
}

impl Serve {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(self.addresses.flags())?;
        init_log(&config)?;
        block_on(async move {
            let mut signals = Signals::new()?;
            let files = IdentityFiles::in_dir(&self.identity);
            let process = app::serve_one(config, self.service, &files).await?;
            tracing::info!(service = self.service.as_str(), "serving");
            signals.wait().await;
            tokio::select! {
                () = process.stop() => Ok(ExitCode::SUCCESS),
                () = signals.wait() => Ok(ExitCode::from(130)),
            }
        })?
    }
}
