//! `tars certs root`.

use crate::{
    commands::{CommandError, output, session::Session},
    rest::Rest,
};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Root {
    /// Show the roots, the next step, and who is not ready for it.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Make a new root; everybody trusts it, and it signs nothing yet.
    Prepare,
    /// Let the prepared root sign; refused before every peer trusts it.
    Activate,
    /// Have everything renewed that the old root signed.
    Taint,
    /// Trust the old root no more; refused before every peer has left it.
    Remove {
        /// Also when people or outside clients hold certificates below it, which ends them.
        #[arg(long)]
        cut_off: bool,
    },
    /// All four steps, waiting for the peers before each. It can be stopped and run again.
    Rotate {
        #[arg(long)]
        cut_off: bool,
        /// How long to wait for the peers before a step.
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        timeout: u64,
    },
}

impl Root {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let rest = Session::open().await?.rest();
        match self {
            Self::Status { json } => status(&rest, json).await,
            Self::Prepare => step(&rest, "PREPARE", false).await,
            Self::Activate => step(&rest, "ACTIVATE", false).await,
            Self::Taint => step(&rest, "TAINT", false).await,
            Self::Remove { cut_off } => step(&rest, "REMOVE", cut_off).await,
            Self::Rotate { cut_off, timeout } => {
                rotate(&rest, cut_off, Duration::from_secs(timeout)).await
            }
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
        println!("{status:#}");
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
    println!("next: {}", word(&status["next"], "ROOT_STEP_"));
    for name in names(&status["waiting_for"]) {
        println!("  waits for {name}");
    }
    for name in names(&status["cut_off"]) {
        println!("  would cut off {name}");
    }
    Ok(())
}

async fn step(rest: &Rest, step: &str, cut_off: bool) -> Result<(), CommandError> {
    let body = json!({ "step": format!("ROOT_STEP_{step}"), "cut_off": cut_off });
    let done = rest.post("/admin/roots/step", body).await?;
    let root = &done["root"]["generation"];
    println!("{}: root {root}", step.to_lowercase());
    Ok(())
}

async fn rotate(rest: &Rest, cut_off: bool, limit: Duration) -> Result<(), CommandError> {
    let style = ProgressStyle::with_template("{spinner} {msg}")
        .map_err(|e| CommandError::Failed(e.to_string()))?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(100));
    loop {
        let next = ready_for(rest, limit, &bar).await?;
        bar.suspend(|| ());
        step(rest, &next.to_uppercase(), cut_off).await?;
        if next == "remove" {
            bar.finish_and_clear();
            return Ok(());
        }
    }
}

/// Waits until everybody is ready for the next step, and tells which that is.
async fn ready_for(
    rest: &Rest,
    limit: Duration,
    bar: &ProgressBar,
) -> Result<String, CommandError> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        let status = rest.get("/admin/roots").await?;
        let next = word(&status["next"], "ROOT_STEP_");
        let waiting = names(&status["waiting_for"]);
        if waiting.is_empty() {
            return Ok(next);
        }
        let who = waiting.join(", ");
        bar.set_message(format!("{next} waits for {who}"));
        if tokio::time::Instant::now() > end {
            return Err(CommandError::Failed(format!(
                "not ready to {next} after {} s: {who}; run it again to go on",
                limit.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
