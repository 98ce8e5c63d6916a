//! `tars config`.

use super::{CommandError, Global};
use crate::app::files::RuleFiles;
use clap::Args;
use std::process::ExitCode;
use tars_runtime::config::{Config, docs};
use toml::Table;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars config\n  tars config --docs > tars.toml\n  TARS__LIMITS__USER_PER_MINUTE=6000 tars config --json\n\nExits with 64 when the configuration has mistakes, all of them listed."
)]
pub(crate) struct ConfigCommand {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Show every key with its meaning, its default and its range: a file to begin with.
    #[arg(long)]
    docs: bool,
}

impl ConfigCommand {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        if self.docs {
            return Ok(self.show_docs());
        }
        let config = global.load(Table::new())?;
        RuleFiles::read(&config)?;
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

    /// Needs no configuration, so that a faulty one can be corrected by it.
    fn show_docs(&self) -> ExitCode {
        let docs = Config::docs();
        if self.json {
            say!(
                "{}",
                serde_json::to_string_pretty(&docs).unwrap_or_default()
            );
        } else {
            super::output::print(format_args!("{}", docs::to_toml(&docs)));
        }
        ExitCode::SUCCESS
    }
}
