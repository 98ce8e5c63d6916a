//! `tars certs root`.

use crate::{
    app::connect_failure::issue_command,
    commands::{CommandError, confirm::Confirm, mesh::Mesh, output, session::Session},
    rest::Rest,
};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal},
    time::Duration,
};
use tars_certs::SpiffeId;

#[derive(Debug, Subcommand)]
pub(crate) enum Root {
    /// Show the roots, the next step, and who is not ready for it.
    #[command(after_help = "Examples:\n  tars certs root status\n  tars certs root status --json")]
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Create a new root: every peer trusts it, and it signs nothing yet.
    #[command(after_help = "Example:\n  tars certs root prepare")]
    Prepare,
    /// Let the prepared root sign; refused before every peer trusts it.
    #[command(after_help = "Example:\n  tars certs root activate")]
    Activate,
    /// Renew everything that the old root signed.
    #[command(after_help = "Example:\n  tars certs root taint --yes")]
    Taint {
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Stop trusting the old root; refused before every peer has left it.
    #[command(
        after_help = "Examples:\n  tars certs root remove --yes\n  tars certs root remove --cut-off --yes"
    )]
    Remove {
        /// Also when people or outside clients hold certificates below it, which ends them.
        #[arg(long)]
        cut_off: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Take all four steps, waiting for the peers before each. Can be interrupted and run again.
    #[command(
        after_help = "Examples:\n  tars certs root rotate --yes\n  tars certs root rotate --yes --timeout 60 --json"
    )]
    Rotate {
        /// Also when people or outside clients hold certificates below the old root, which ends them.
        #[arg(long)]
        cut_off: bool,
        /// How long to wait for the peers before a step.
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        timeout: u64,
        /// Print one JSON object a line: the peers waited for, those not waited for, and each step.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// What a rotation means for clients that no push reaches.
/// The time between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const BEFORE: &str = "clients outside keep copies of the roots (ca.crt of operators and CI), which no rotation reaches: once the new root is prepared, each needs `tars certs bundle --out DIR/ca.crt --force`, and once it is active, what the mesh issued needs `tars certs renew DIR` after that; to hand them out in time take the steps one by one, with `tars certs root prepare` first";
const AFTER: &str = "copies of the roots from before this trust the mesh no more: replace each by `tars certs bundle --out DIR/ca.crt --force`; what stood below the removed root cannot renew itself any more: have another issued by `tars certs client NAME --out DIR --force` or `tars certs issue PATH --out DIR --force`";

impl Root {
    pub(super) async fn run(self, mesh: &Mesh) -> Result<(), CommandError> {
        let session = &mut mesh.session().await?;
        self.ask()?;
        match self {
            Self::Status { json } => status(&session.rest(), json).await,
            Self::Prepare => {
                step(session, "PREPARE", false).await?;
                note!("{BEFORE}");
                Ok(())
            }
            Self::Activate => step(session, "ACTIVATE", false).await,
            Self::Taint { .. } => step(session, "TAINT", false).await,
            Self::Remove { cut_off, .. } => {
                let ended = cut_off_now(&session.rest()).await?;
                step(session, "REMOVE", cut_off).await?;
                note_ended(&ended);
                Ok(())
            }
            Self::Rotate {
                cut_off,
                timeout,
                json,
                ..
            } => {
                note!("{BEFORE}");
                let progress = Progress::new(json)?;
                let limit = Duration::from_secs(timeout);
                let ended = rotate(session, cut_off, limit, progress).await?;
                note_ended(&ended);
                Ok(())
            }
        }
    }

    /// Asks before steps that no other takes back.
    fn ask(&self) -> Result<(), CommandError> {
        match self {
            Self::Status { .. } | Self::Prepare | Self::Activate => Ok(()),
            Self::Taint { confirm } => {
                confirm.ask("everything that the old root signed is renewed at once")
            }
            Self::Remove { confirm, .. } => confirm
                .ask("the old root is no longer trusted, and certificates below it stop working"),
            Self::Rotate { confirm, .. } => confirm.ask(
                "the mesh gets a new root, and peers that have only the old one no longer trust it",
            ),
        }
    }
}

fn word(value: &Value, prefix: &str) -> String {
    let text = value.as_str().unwrap_or_default();
    text.trim_start_matches(prefix).to_lowercase()
}

fn names(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|v| Some(v.as_str()?.to_owned())).collect()
}

async fn status(rest: &Rest, json: bool) -> Result<(), CommandError> {
    let status = rest.get("/admin/roots").await?;
    if json {
        say!("{status:#}");
        return Ok(());
    }
    let roots = status["roots"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = roots
        .iter()
        .map(|r| {
            let key = r["key_id"].as_str().unwrap_or_default();
            vec![
                r["generation"].to_string(),
                word(&r["state"], "ROOT_STATE_"),
                key.get(..16).unwrap_or(key).to_owned(),
                r["not_after"].as_str().unwrap_or_default().to_owned(),
                if r["online"] == true {
                    "here"
                } else {
                    "offline"
                }
                .to_owned(),
            ]
        })
        .collect();
    output::table(&["root", "state", "key", "ends", "private key"], &rows);
    say!("next: {}", word(&status["next"], "ROOT_STEP_"));
    for name in names(&status["waiting_for"]) {
        say!("  waits for {name}");
    }
    for name in names(&status["departed"]) {
        say!("  does not wait for {name}");
    }
    for name in names(&status["cut_off"]) {
        say!("  would cut off {name}: `{}`", reissue(&name));
    }
    Ok(())
}

/// The identities that the next step cuts off.
async fn cut_off_now(rest: &Rest) -> Result<Vec<String>, CommandError> {
    Ok(names(&rest.get("/admin/roots").await?["cut_off"]))
}

/// The command that issues another certificate for an entry of such a list.
fn reissue(name: &str) -> String {
    let id = name.split(' ').next().unwrap_or_default();
    let path = id.parse::<SpiffeId>().map(|id| id.path().to_owned());
    issue_command(path.as_deref().unwrap_or(id), &"DIR")
}

fn note_ended(ended: &[String]) {
    note!("{AFTER}");
    for name in ended {
        note!("  ended: {name}: `{}`", reissue(name));
    }
}

/// Takes one step; returns the root that it was about.
async fn take(rest: &Rest, step: &str, cut_off: bool) -> Result<Value, CommandError> {
    let body = json!({ "step": format!("ROOT_STEP_{step}"), "cut_off": cut_off });
    let mut done = rest.post("/admin/roots/step", body).await?;
    Ok(done["root"]["generation"].take())
}

async fn step(session: &mut Session, step: &str, cut_off: bool) -> Result<(), CommandError> {
    let root = take(&session.rest(), step, cut_off).await?;
    say!("{}: root {root}", step.to_lowercase());
    session.follow_roots().await
}

/// How the progress of a rotation is shown: a spinner on a terminal, plain lines elsewhere, or JSON.
enum Progress {
    Bar(ProgressBar),
    Plain(Option<String>),
    Json(Option<Value>),
}

impl Progress {
    fn new(json: bool) -> Result<Self, CommandError> {
        if json {
            return Ok(Self::Json(None));
        }
        if !io::stderr().is_terminal() {
            return Ok(Self::Plain(None));
        }
        let style = ProgressStyle::with_template("{spinner} {msg}")
            .map_err(|e| CommandError::Failed(e.to_string()))?;
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Ok(Self::Bar(bar))
    }

    /// Printed only when it has changed.
    fn waits(&mut self, step: &str, who: &[String]) {
        let text = format!("{step} waits for {}", who.join(", "));
        match self {
            Self::Bar(bar) => bar.set_message(text),
            Self::Plain(last) if last.as_ref() == Some(&text) => {}
            Self::Plain(last) => {
                note!("{text}");
                *last = Some(text);
            }
            Self::Json(last) => {
                let now = json!({ "step": step, "waiting_for": who });
                if last.as_ref() != Some(&now) {
                    say!("{now}");
                    *last = Some(now);
                }
            }
        }
    }

    fn report_departed(&self, step: &str, who: &[String]) {
        for name in who {
            let text = format!(
                "{step} does not wait for {name}: should it come back, it needs a join token"
            );
            match self {
                Self::Bar(bar) => bar.suspend(|| note!("{text}")),
                Self::Plain(_) => note!("{text}"),
                Self::Json(_) => say!("{}", json!({ "step": step, "departed": name })),
            }
        }
    }

    fn report_step(&self, step: &str, root: &Value) {
        match self {
            Self::Bar(bar) => bar.suspend(|| say!("{step}: root {root}")),
            Self::Plain(_) => say!("{step}: root {root}"),
            Self::Json(_) => say!("{}", json!({ "step": step, "root": root })),
        }
    }
}

async fn rotate(
    session: &mut Session,
    cut_off: bool,
    limit: Duration,
    mut progress: Progress,
) -> Result<Vec<String>, CommandError> {
    loop {
        let rest = session.rest();
        let end = tokio::time::Instant::now() + limit;
        let (next, ended, root) = loop {
            let next = ready_for(&rest, end, &mut progress).await?;
            let ended = cut_off_now(&rest).await?;
            match take(&rest, &next.to_uppercase(), cut_off).await {
                // Another replica of Auth has not seen yet what the status was made from.
                Err(e) if is_early(&e) && tokio::time::Instant::now() < end => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                taken => break (next, ended, taken?),
            }
        };
        progress.report_step(&next, &root);
        session.follow_roots().await?;
        if next == "remove" {
            return Ok(ended);
        }
    }
}

/// Whether a step was refused because a peer is not ready for it.
fn is_early(error: &CommandError) -> bool {
    let refusal = match error {
        CommandError::Rest(refusal) => refusal,
        CommandError::Advised { error, .. } => error,
        _ => return false,
    };
    refusal.reason() == Some("PEERS_NOT_READY")
}

/// Waits until every peer is ready for the next step, and returns that step.
async fn ready_for(
    rest: &Rest,
    end: tokio::time::Instant,
    progress: &mut Progress,
) -> Result<String, CommandError> {
    let begun = tokio::time::Instant::now();
    loop {
        let status = rest.get("/admin/roots").await?;
        let next = word(&status["next"], "ROOT_STEP_");
        let waiting = names(&status["waiting_for"]);
        if waiting.is_empty() {
            progress.report_departed(&next, &names(&status["departed"]));
            return Ok(next);
        }
        progress.waits(&next, &waiting);
        if tokio::time::Instant::now() > end {
            return Err(CommandError::Failed(format!(
                "not ready to {next} after {} s: {}; run it again to go on",
                begun.elapsed().as_secs(),
                waiting.join(", ")
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_that_is_cut_off_is_named_with_the_command_that_helps() {
        for (name, command) in [
            (
                "spiffe://tars.local/client/c4 (serial 07)",
                "tars certs client c4 --out DIR --force",
            ),
            (
                "spiffe://tars.local/user/ada (serial 07)",
                "tars certs issue /user/ada --out DIR --force",
            ),
        ] {
            assert_eq!(reissue(name), command);
        }
    }

    #[test]
    fn no_advice_is_to_renew_below_a_root_that_is_gone() {
        assert!(!AFTER.contains("certs renew"), "{AFTER}");
        let bundle = BEFORE.find("certs bundle").unwrap();
        assert!(bundle < BEFORE.find("certs renew").unwrap(), "{BEFORE}");
    }
}
