//! `tars audit`: the record of logins, refusals and changes.

use super::{
    CommandError, Global, block_on,
    listing::{self, number, text},
    mesh::{Mesh, MeshArg},
};
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
    /// List what happened, in the order in which the records arrived, the last first.
    ///
    /// A service delivers its records once it reaches Auth, so that the times of different services can be
    /// out of order.
    #[command(
        after_help = "Examples:\n  tars audit list --caller user:ada\n  tars audit list --event-type auth.login.failure --limit 20 --json"
    )]
    List {
        /// Only events of this type, as in `auth.login.failure` or `authz.access.denied`.
        #[arg(long, value_name = "TYPE")]
        event_type: Option<String>,
        /// As in `user:ada` or `key:…`.
        #[arg(long)]
        caller: Option<String>,
        /// Only what this service recorded.
        #[arg(long)]
        service: Option<String>,
        /// How many records at most.
        #[arg(long, default_value_t = 50, value_name = "RECORDS")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Audit {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        let Command::List { json, .. } = &self.command;
        let json = *json;
        self.print(&mesh).map_err(|e| e.in_json_if(json))
    }

    fn print(self, mesh: &Mesh) -> Result<ExitCode, CommandError> {
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
        .filter_map(|(name, value)| Some(format!("{name}={}", escape(&value?))))
        .enumerate()
        .map(|(n, filter)| format!("{}{filter}", if n == 0 { '?' } else { '&' }))
        .collect();
        let path = format!("/admin/audit/logs{}", filters.concat());
        let events = block_on(async {
            let rest = mesh.session().await?.rest();
            Ok::<_, CommandError>(listing::first(&rest, &path, "events", limit).await?)
        })??;
        if json {
            say!("{}", Value::from(events));
        } else {
            print(&events);
        }
        Ok(ExitCode::SUCCESS)
    }
}

const COLUMNS: [&str; 8] = [
    "timestamp",
    "severity",
    "service",
    "event_type",
    "caller",
    "resource",
    "method",
    "result",
];

fn print(events: &[Value]) {
    let head = [
        "time", "severity", "service", "event", "caller", "resource", "method", "result", "times",
    ];
    listing::table(&head, events, |event| {
        let columns = COLUMNS.map(|name| text(&event[name]));
        columns.into_iter().chain([times(event)]).collect()
    });
}

/// How often it happened: a record can stand for several refusals of a kind, and a failed login for
/// those before it that were not recorded.
fn times(event: &Value) -> String {
    let of = |name: &str| number(&event["details"][name]);
    let times = match (of("count"), of("failures_not_recorded")) {
        (Some(count), _) => count,
        (None, more) => 1.0 + more.unwrap_or(0.0),
    };
    times.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_that_stands_for_several_events_says_how_many() {
        for (details, shown) in [
            (json!({}), "1"),
            (json!({ "count": "17" }), "17"),
            (json!({ "failures_not_recorded": "4" }), "5"),
            (json!({ "failures_not_recorded": "0" }), "1"),
        ] {
            assert_eq!(times(&json!({ "details": details })), shown);
        }
    }
}
