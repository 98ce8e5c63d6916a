//! `tars certs inspect`: the certificates in a file.

use super::term::left;
use crate::commands::{CommandError, output};
use std::{path::Path, process::ExitCode};
use tars_certs::{
    files::certificates,
    inspect::{Summary, summarise},
};
use tars_runtime::clock::Clock;

/// Shows the certificates in a PEM file. Exits with 1 when one of them has expired.
pub(super) fn inspect(file: &Path, json: bool) -> Result<ExitCode, CommandError> {
    let summaries = read(file)?;
    let now = i64::try_from(Clock::system().now_s()).unwrap_or(i64::MAX);
    if json {
        let text = serde_json::to_string_pretty(&summaries);
        say!("{}", text.unwrap_or_default());
    } else {
        print(&summaries, now);
    }
    let mut expired = false;
    for summary in &summaries {
        let name = name(summary);
        match Life::of(summary, now) {
            Life::Expired => {
                expired = true;
                note!("warning: {name} has expired");
            }
            Life::Late => note!("warning: {name} is in the last third of its life"),
            Life::Fresh => {}
        }
    }
    Ok(ExitCode::from(u8::from(expired)))
}

fn read(file: &Path) -> Result<Vec<Summary>, CommandError> {
    let certs = certificates(file).map_err(|e| CommandError::Failed(e.to_string()))?;
    let summaries: Option<Vec<Summary>> = certs.iter().map(|c| summarise(c)).collect();
    summaries.ok_or_else(|| {
        let file = file.display();
        CommandError::Failed(format!("{file}: one of its certificates does not parse"))
    })
}

fn name(summary: &Summary) -> &str {
    summary.spiffe_id.as_deref().unwrap_or(&summary.subject)
}

fn print(summaries: &[Summary], now: i64) {
    let rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|s| {
            vec![
                name(s).to_owned(),
                s.issuer.clone(),
                s.serial.clone(),
                if s.is_ca { "yes" } else { "no" }.to_owned(),
                left(s.not_after, now),
                Life::of(s, now).as_str().to_owned(),
            ]
        })
        .collect();
    let head = [
        "identity",
        "issuer",
        "serial",
        "ca",
        "expires in",
        "standing",
    ];
    output::table(&head, &rows);
}

/// How near its end a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Fresh,
    /// In the last third, where a renewal is late.
    Late,
    Expired,
}

impl Life {
    fn of(summary: &Summary, now: i64) -> Self {
        let life = summary.not_after - summary.not_before;
        match summary.not_after - now {
            left if left <= 0 => Self::Expired,
            left if left < life / 3 => Self::Late,
            _ => Self::Fresh,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "ok",
            Self::Late => "soon",
            Self::Expired => "EXPIRED",
        }
    }
}
