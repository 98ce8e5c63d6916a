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
        after_help = "Examples:\n  tars usage show\n  tars usage show --month 2026-11 --last-month 2027-01 --json\n  tars usage show --user ada\n\nTables have solver time in seconds. JSON has what was used exactly, in microseconds (solver_microseconds), and the\nquota in seconds (solver_seconds); a quota that is null is unlimited."
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
    /// Amounts are exact whole numbers, of solver time those of microseconds. Those of a month that is not closed yet may still rise.
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
    /// The last month, where there are several [default: only the one].
    #[arg(long, value_name = "MONTH", requires = "month")]
    last_month: Option<Month>,
}

impl Months {
    fn query(&self) -> String {
        let text = |month: Option<Month>| month.map(|m| m.to_string()).unwrap_or_default();
        let (month, last) = (text(self.month), text(self.last_month));
        format!("month={month}&last_month={last}")
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
                let own = with_unlimited(own);
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
    let path = format!("/admin/usage?{}&user={user}", months.query());
    listing::all(rest, &path, "usage").await
}

/// The quotas of a user, as the API names them.
const QUOTAS: [&str; 3] = ["calls", "training_steps", "solver_seconds"];

/// The same with a null for each quota that there is not: an answer leaves it out.
fn with_unlimited(mut own: Value) -> Value {
    for name in QUOTAS {
        let quota = own["quota"][name].take();
        own["quota"][name] = quota;
    }
    own
}

const AMOUNTS: [&str; 3] = ["calls", "training steps", "solver seconds"];

fn print(rows: &[Value]) {
    let head = [&["month", "user"][..], &AMOUNTS, &[""]].concat();
    listing::table(&head, rows, |row| {
        let mut cells = amounts(row);
        cells.push(closed(row));
        cells
    });
}

/// With what is left of the quota beside it.
fn print_own(own: &Value) {
    let head = [&["month", "user"][..], &AMOUNTS, &["left", ""]].concat();
    let rows = own["months"].as_array().map_or(&[][..], Vec::as_slice);
    let quota = &own["quota"];
    listing::table(&head, rows, |row| {
        let mut cells = amounts(row);
        cells.extend([left(row, quota), closed(row)]);
        cells
    });
    print_quota(quota);
}

fn amounts(row: &Value) -> Vec<String> {
    let name = match text(&row["username"]) {
        name if name.is_empty() => text(&row["user_id"]),
        name => name,
    };
    vec![
        text(&row["month"]),
        name,
        text(&row["calls"]),
        text(&row["training_steps"]),
        seconds(&row["solver_microseconds"]),
    ]
}

fn closed(row: &Value) -> String {
    let closed = if row["closed"] == true { "closed" } else { "" };
    closed.to_owned()
}

/// What a month has left of each amount that is limited: quotas are of the present month.
fn left(row: &Value, quota: &Value) -> String {
    let next = text(&row["month"]).parse::<Month>().map(Month::next);
    let is_present =
        next.is_ok_and(|next| text(&quota["resets_at"]).starts_with(&next.to_string()));
    if !is_present {
        return String::new();
    }
    let number = |of: &Value| text(of).parse::<u64>().ok();
    let whole = |limit, used| {
        let left = number(&quota[limit])?.saturating_sub(number(&row[used])?);
        Some(left.to_string())
    };
    let solver = || {
        let limit = number(&quota["solver_seconds"])?.saturating_mul(1_000_000);
        let left = limit.saturating_sub(number(&row["solver_microseconds"])?);
        Some(seconds(&Value::from(left.to_string())))
    };
    let left = [
        whole("calls", "calls"),
        whole("training_steps", "training_steps"),
        solver(),
    ];
    let shown = left.into_iter().zip(AMOUNTS);
    let shown = shown.filter_map(|(left, of)| Some(format!("{} {of}", left?)));
    shown.collect::<Vec<_>>().join(", ")
}

fn print_quota(quota: &Value) {
    let limits = QUOTAS.into_iter().zip(AMOUNTS).filter_map(|(name, shown)| {
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
    fn what_is_left_is_shown_of_what_is_limited_in_the_present_month() {
        let row = json!({
            "month": "2026-11", "calls": "7", "training_steps": "1200", "solver_microseconds": "1250001",
        });
        let of = |quota: Value| left(&row, &quota);
        let resets_at = "2026-12-01T00:00:00Z";
        assert_eq!(of(json!({ "resets_at": resets_at })), "");
        let some = json!({ "calls": "10", "solver_seconds": "2", "resets_at": resets_at });
        assert_eq!(of(some), "3 calls, 0.749999 solver seconds");
        // Work that was under way may have taken more than there was.
        let over = json!({ "training_steps": "1000", "resets_at": resets_at });
        assert_eq!(of(over), "0 training steps");
        for another in ["2027-01-01T00:00:00Z", "2026-11-01T00:00:00Z", ""] {
            assert_eq!(
                of(json!({ "calls": "10", "resets_at": another })),
                "",
                "{another}"
            );
        }
    }

    #[test]
    fn a_quota_that_there_is_not_is_null() {
        let own = json!({ "months": [], "quota": { "calls": "7", "resets_at": "T" } });
        let quota = with_unlimited(own)["quota"].take();
        let expected = json!({
            "calls": "7", "training_steps": null, "solver_seconds": null, "resets_at": "T",
        });
        assert_eq!(quota, expected);
        assert_eq!(left(&json!({ "month": "2026-11" }), &quota), "");
        let none = with_unlimited(json!({}))["quota"].take();
        assert!(none.as_object().unwrap().values().all(Value::is_null));
        assert_eq!(none.as_object().unwrap().len(), QUOTAS.len());
    }

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
