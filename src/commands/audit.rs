//! `tars audit`.

use super::{CommandError, Global, block_on, mesh::MeshArg, output, session::Session};
use crate::rest::escape;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars audit list\n  tars audit list --event-type auth.login.failure --limit 20 --json"
)]
pub(crate) struct Audit {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what happened, newest first.
    List {
        /// Only events of this type, as in `auth.login.failure` or `authz.access.denied`.
        #[arg(long)]
        event_type: Option<String>,
        /// As in `user:ada` or `key:…`.
        #[arg(long)]
        caller: Option<String>,
        /// Only what this service recorded.
        #[arg(long)]
        service: Option<String>,
        /// How many records at most.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Audit {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        let Command::List {
            event_type,
            caller,
            service,
            limit,
            json,
        } = self.command;
        let filters: Vec<String> = [
            ("event_type", event_type),
            ("caller", caller),
            ("service", service),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some(format!("&{name}={}", escape(&value?))))
        .collect();
        let events =
            block_on(async { list(&mesh.session().await?, &filters.concat(), limit).await })??;
        if json {
            say!("{}", Value::from(events));
        } else {
            print(&events);
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(session: &Session, filters: &str, limit: usize) -> Result<Vec<Value>, CommandError> {
    let (rest, mut events, mut token) = (session.rest(), Vec::new(), String::new());
    while events.len() < limit {
        let size = (limit - events.len()).min(500);
        let page = rest
            .get(&format!(
                "/admin/audit/logs?page_size={size}&page_token={token}{filters}"
            ))
            .await?;
        events.extend(page["events"].as_array().cloned().unwrap_or_default());
        token = page["next_page_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            break;
        }
    }
    Ok(events)
}

fn print(events: &[Value]) {
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|e| {
            // Of a record that stands for several refusals.
            let count = e["details"]["count"].as_str().unwrap_or("1");
            let names = [
                "timestamp",
                "severity",
                "service",
                "event_type",
                "caller",
                "resource",
                "method",
                "result",
            ];
            names
                .iter()
                .map(|n| e[*n].as_str().unwrap_or_default().to_owned())
                .chain([count.to_owned()])
                .collect()
        })
        .collect();
    output::table(
        &[
            "time", "severity", "service", "event", "caller", "resource", "method", "result",
            "count",
        ],
        &rows,
    );
}
