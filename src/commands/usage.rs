//! `tars usage`: what users have used in a month, for themselves and for billing.

mod export;

use super::{
    CommandError, Global,
    listing::{self, text},
    mesh::MeshArg,
};
use crate::rest::{Rest, RestError, escape};
use clap::{Args, Subcommand};
use export::Format;
use serde_json::Value;
use std::process::ExitCode;
use tars_runtime::usage::Month;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars usage show\n  tars usage export --month 2026-11 --format csv > usage.csv"
)]
pub(crate) struct UsageCommand {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what you have used, and what your quota allows; with --all or --user what others have.
    #[command(
        after_help = "Examples:\n  tars usage show\n  tars usage show --month 2026-11 --through 2027-01 --json\n  tars usage show --user ada"
    )]
    Show {
        #[command(flatten)]
        months: Months,
        /// Only this user, by name or id; needs the permission usage.read.
        #[arg(long)]
        user: Option<String>,
        /// All users; needs the permission usage.read.
        #[arg(long, conflicts_with = "user")]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write what all users have used, by month and user, for billing; needs the permission usage.read.
    ///
    /// Amounts are exact whole numbers. Those of a month that is not closed yet may still rise.
    #[command(
        after_help = "Examples:\n  tars usage export --month 2026-11 --format csv > usage.csv\n  tars usage export --month 2026-11 --user ada --format jsonl"
    )]
    Export {
        #[command(flatten)]
        months: Months,
        /// Only this user, by name or id.
        #[arg(long)]
        user: Option<String>,
        /// How a row is written.
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// Print refusals as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Months {
    /// The month in UTC, as in 2026-11 [default: the present one].
    #[arg(long)]
    month: Option<Month>,
    /// The last month, where there are several [default: the first].
    #[arg(long, value_name = "MONTH", requires = "month")]
    through: Option<Month>,
}

impl Months {
    fn query(&self) -> String {
        let text = |month: Option<Month>| month.map(|m| m.to_string()).unwrap_or_default();
        let (first, last) = (text(self.month), text(self.through));
        format!("first_month={first}&last_month={last}")
    }
}

impl UsageCommand {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| {
            self.command.run(&session.rest()).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::Show { json, .. } | Self::Export { json, .. } => *json,
        }
    }

    async fn run(self, rest: &Rest) -> Result<(), CommandError> {
        match self {
            Self::Show {
                months,
                user: None,
                all: false,
                json,
            } => {
                let own = rest.get(&format!("/auth/usage?{}", months.query())).await?;
                match json {
                    true => say!("{own:#}"),
                    false => print_own(&own),
                }
            }
            Self::Show {
                months, user, json, ..
            } => {
                let rows = list(rest, &months, user).await?;
                match json {
                    true => say!("{}", Value::from(rows)),
                    false => print(&rows),
                }
            }
            Self::Export {
                months,
                user,
                format,
                ..
            } => {
                // All pages first: a file that ends early must not look whole.
                let rows = list(rest, &months, user).await?;
                for line in export::lines(format, &rows)? {
                    say!("{line}");
                }
            }
        }
        Ok(())
    }
}

async fn list(rest: &Rest, months: &Months, user: Option<String>) -> Result<Vec<Value>, RestError> {
    let user = escape(&user.unwrap_or_default());
    let path = format!("/admin/usage?{}&caller={user}", months.query());
    listing::all(rest, &path, "usage").await
}

fn print(rows: &[Value]) {
    let head = [
        "month",
        "user",
        "calls",
        "training steps",
        "solver seconds",
        "",
    ];
    listing::table(&head, rows, |row| {
        let name = match text(&row["username"]) {
            name if name.is_empty() => text(&row["user_id"]),
            name => name,
        };
        let closed = if row["closed"] == true { "closed" } else { "" };
        vec![
            text(&row["month"]),
            name,
            text(&row["calls"]),
            text(&row["training_steps"]),
            seconds(&row["solver_microseconds"]),
            closed.to_owned(),
        ]
    });
}

fn print_own(own: &Value) {
    print(own["months"].as_array().map_or(&[], Vec::as_slice));
    let quota = &own["quota"];
    let limits = [
        ("calls", "calls"),
        ("training_steps", "training steps"),
        ("solver_seconds", "solver seconds"),
    ];
    let limits = limits.into_iter().filter_map(|(name, shown)| {
        let limit = text(&quota[name]);
        (!limit.is_empty()).then(|| format!("{limit} {shown}"))
    });
    let limits: Vec<String> = limits.collect();
    match limits.is_empty() {
        true => note!("your quota is unlimited"),
        false => note!(
            "your quota of a month: {}; the next one begins at {}",
            limits.join(", "),
            text(&quota["resets_at"])
        ),
    }
}

/// Microseconds as seconds, without the rounding of a floating-point number.
fn seconds(micros: &Value) -> String {
    let Ok(micros) = text(micros).parse::<u64>() else {
        return "-".to_owned();
    };
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn solver_time_is_shown_exactly() {
        for (micros, shown) in [
            ("0", "0.000000"),
            ("1250001", "1.250001"),
            ("18446744073709551615", "18446744073709.551615"),
        ] {
            assert_eq!(seconds(&json!(micros)), shown);
        }
    }
}
