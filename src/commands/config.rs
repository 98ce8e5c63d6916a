//! `tars config`.

use super::{CommandError, Global};
use clap::Args;
use std::process::ExitCode;
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars config\n  TARS__LIMITS__USER_PER_MINUTE=6000 tars config --json\n\nExits with 64 when the configuration has mistakes, all of them listed."
)]
pub(crate) struct ConfigCommand {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl ConfigCommand {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let config = global.load(Table::new())?;
        if self.json {
            say!(
                "{}",
                serde_json::to_string_pretty(&config).unwrap_or_default()
            );
        } else {
            super::output::print(format_args!("{}", config.to_toml()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
