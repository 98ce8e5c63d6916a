//! `tars studies`: searches for hyperparameters, as they run and as they ended.

mod create;

use super::{
    CommandError, Global,
    advice::{self, Advice},
    confirm::Confirm,
    events,
    listing::{self, id, number, short, text, word},
    mesh::MeshArg,
    session::Session,
};
use crate::rest::{Rest, RestError};
use clap::{Args, Subcommand};
use create::Create;
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_proto::reason;
use uuid::Uuid;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars studies create --trials 30 --watch\n  tars studies list\n  tars studies watch STUDY_ID"
)]
pub(crate) struct Studies {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a search that the server runs by training agents.
    Create(Create),
    /// List studies, newest first.
    #[command(after_help = "Examples:\n  tars studies list\n  tars studies list --limit 5 --json")]
    List {
        /// How many studies at most.
        #[arg(long, default_value_t = 50, value_name = "STUDIES")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a study with its trials.
    #[command(after_help = "Example:\n  tars studies show 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d")]
    Show {
        /// The study's id, as `tars studies list` shows it.
        #[arg(value_parser = id)]
        study_id: Uuid,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Follow a study's trials until it ends; Ctrl-C stops nothing. Exits with 1 unless it completes.
    #[command(
        after_help = "Examples:\n  tars studies watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars studies watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --json | jq .trial.score"
    )]
    Watch {
        /// The study's id.
        #[arg(value_parser = id)]
        study_id: Uuid,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Stop a study; trials that have ended stay.
    #[command(
        after_help = "Example:\n  tars studies cancel 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --yes"
    )]
    Cancel {
        /// The study's id.
        #[arg(value_parser = id)]
        study_id: Uuid,
        #[command(flatten)]
        confirm: Confirm,
        /// Print the study as JSON.
        #[arg(long)]
        json: bool,
    },
}

const ADVICE: &[Advice] = &[(reason::NOT_FOUND, "`tars studies list` shows all")];

fn advised(error: RestError, id: &Uuid) -> CommandError {
    advice::add(error, ADVICE, id)
}

fn path(id: Uuid) -> String {
    format!("/api/v1/studies/{id}")
}

impl Studies {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| match self.command {
            Command::Create(create) => create.run(session).await,
            Command::List { limit, json } => list(&session.rest(), limit, json).await,
            Command::Show { study_id, json } => show(&session.rest(), study_id, json).await,
            Command::Watch { study_id, json } => watch(session, study_id, json).await,
            Command::Cancel {
                study_id,
                confirm,
                json,
            } => cancel(&session.rest(), study_id, &confirm, json).await,
        })
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::Create(create) => create.json,
            Self::List { json, .. }
            | Self::Show { json, .. }
            | Self::Watch { json, .. }
            | Self::Cancel { json, .. } => *json,
        }
    }
}

async fn list(rest: &Rest, limit: usize, json: bool) -> Result<ExitCode, CommandError> {
    let studies = listing::first(rest, "/api/v1/studies", "studies", limit).await?;
    if json {
        say!("{:#}", Value::from(studies));
    } else {
        let head = [
            "study", "agent", "state", "trials", "best", "owner", "started",
        ];
        listing::table(&head, &studies, row);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(study: &Value) -> Vec<String> {
    vec![
        text(&study["study_id"]),
        text(&study["agent_id"]),
        state(study),
        trials(study),
        short(&study["best_trial"]["score"]),
        text(&study["owner"]),
        text(&study["started_at"]),
    ]
}

fn state(study: &Value) -> String {
    word(&study["state"], "STUDY_STATE_")
}

/// Those that have ended, of all: `4/6`.
fn trials(study: &Value) -> String {
    let ended = ["n_completed_trials", "n_pruned_trials", "n_failed_trials"];
    let ended: f64 = ended.iter().filter_map(|name| number(&study[*name])).sum();
    format!("{ended}/{}", short(&study["n_trials"]))
}

async fn study(rest: &Rest, id: Uuid) -> Result<Value, CommandError> {
    let mut answer = rest.get(&path(id)).await.map_err(|e| advised(e, &id))?;
    Ok(answer["study"].take())
}

async fn show(rest: &Rest, id: Uuid, json: bool) -> Result<ExitCode, CommandError> {
    let study = study(rest, id).await?;
    let trials = listing::all(rest, &format!("{}/trials", path(id)), "trials").await?;
    if json {
        say!("{:#}", json!({ "study": study, "trials": trials }));
        return Ok(ExitCode::SUCCESS);
    }
    describe(&study);
    say!("");
    let head = ["trial", "state", "score", "parameters"];
    listing::table(&head, &trials, |trial| {
        vec![
            short(&trial["number"]),
            trial_state(trial),
            short(&trial["score"]),
            parameters(trial),
        ]
    });
    next_step(&study);
    Ok(ExitCode::SUCCESS)
}

fn describe(study: &Value) {
    for (name, value) in [
        ("study", text(&study["study_id"])),
        ("state", state(study)),
        ("agent", text(&study["agent_id"])),
        ("sampler", text(&study["sampler_type"])),
        ("pruner", text(&study["pruner_type"])),
        ("trials", trials(study)),
        ("best score", short(&study["best_trial"]["score"])),
        ("owner", text(&study["owner"])),
        ("started", text(&study["started_at"])),
        ("ended", text(&study["completed_at"])),
        ("error", text(&study["error"])),
    ] {
        if !value.is_empty() {
            say!("{name:<12} {value}");
        }
    }
}

/// A trial that its study's end stopped is recorded as failed, with that as its error.
fn trial_state(trial: &Value) -> String {
    match trial["error"].as_str() {
        Some(stopped @ "cancelled") => stopped.to_owned(),
        _ => word(&trial["state"], "TRIAL_STATE_"),
    }
}

/// `gamma=0.99 tau=1`.
fn parameters(trial: &Value) -> String {
    let parameters = trial["parameters"].as_object().into_iter().flatten();
    let pairs: Vec<String> = parameters
        .map(|(name, value)| format!("{name}={}", short(value)))
        .collect();
    pairs.join(" ")
}

/// The command that most people want next.
fn next_step(study: &Value) {
    let id = text(&study["study_id"]);
    match state(study).as_str() {
        "running" => note!("`tars studies watch {id}` follows it"),
        "completed" if !text(&study["agent_id"]).is_empty() => {
            note!("`tars proposals propose {id}` proposes its best trial");
        }
        _ => {}
    }
}

async fn watch(session: &mut Session, id: Uuid, json: bool) -> Result<ExitCode, CommandError> {
    let mut ended = study(&session.rest(), id).await?;
    let goes_on = format!("`tars studies watch {id}`");
    events::follow(session, &format!("{}/events", path(id)), &goes_on, |item| {
        if json {
            say!("{item}");
        } else if item["trial"].is_object() {
            say!("{}", progress(&item["trial"]));
        }
        if item["ended"].is_object() {
            ended = item["ended"].clone();
            return false;
        }
        true
    })
    .await?;
    let state = state(&ended);
    if !json {
        say!(
            "{state}: best score {}",
            short(&ended["best_trial"]["score"])
        );
        next_step(&ended);
    }
    Ok(ExitCode::from(u8::from(state != "completed")))
}

/// A trial in one line: its score once it has ended, before that its last intermediate value.
fn progress(trial: &Value) -> String {
    let name = format!("trial {:<4}", short(&trial["number"]));
    let state = trial_state(trial);
    if !trial["score"].is_null() {
        let score = short(&trial["score"]);
        return format!("{name} {state:<9} score {score}  {}", parameters(trial));
    }
    match trial["intermediate_values"]
        .as_array()
        .and_then(|v| v.last())
    {
        Some(last) => {
            let (step, value) = (short(&last["step"]), short(&last["value"]));
            format!("{name} {state:<9} step {step}  value {value}")
        }
        None if state == "cancelled" => format!("{name} {state}"),
        None => format!("{name} {state:<9} {}", text(&trial["error"]))
            .trim_end()
            .to_owned(),
    }
}

async fn cancel(
    rest: &Rest,
    id: Uuid,
    confirm: &Confirm,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let study = study(rest, id).await?;
    if state(&study) != "running" {
        return Err(CommandError::Failed(format!(
            "study {id} has ended already: it is {}; `tars studies show {id}` shows its trials",
            state(&study)
        )));
    }
    confirm.ask(&format!(
        "study {id} ({} trials ended) stops, and cannot go on afterwards",
        trials(&study)
    ))?;
    let answer = rest.post(&format!("{}/cancel", path(id)), json!({})).await;
    let study = answer.map_err(|e| advised(e, &id))?["study"].take();
    if json {
        say!("{study:#}");
    } else {
        say!("{}: {} trials ended", state(&study), trials(&study));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_is_one_row_with_what_its_trials_came_to() {
        let study = json!({
            "study_id": "s", "agent_id": "policy", "state": "STUDY_STATE_RUNNING", "n_trials": 6,
            "n_completed_trials": 2, "n_pruned_trials": 1, "n_failed_trials": 1, "owner": "user:ada",
            "best_trial": { "score": 174.25 }, "started_at": "now",
        });
        let cells = ["s", "policy", "running", "4/6", "174.25", "user:ada", "now"];
        assert_eq!(row(&study), cells);
    }

    #[test]
    fn a_trial_is_one_line_at_each_point_of_its_life() {
        for (trial, line) in [
            (
                json!({ "number": 1, "state": "TRIAL_STATE_RUNNING" }),
                "trial 1    running",
            ),
            (
                json!({ "number": 1, "state": "TRIAL_STATE_RUNNING",
                        "intermediate_values": [{ "step": "10", "value": 1.5 }, { "step": "20", "value": 2.5 }] }),
                "trial 1    running   step 20  value 2.5",
            ),
            (
                json!({ "number": 12, "state": "TRIAL_STATE_COMPLETE", "score": 7.0,
                        "parameters": { "gamma": 0.99, "tau": 1 } }),
                "trial 12   complete  score 7  gamma=0.99 tau=1",
            ),
            (
                json!({ "number": 1, "state": "TRIAL_STATE_FAILED", "error": "diverged" }),
                "trial 1    failed    diverged",
            ),
            (
                json!({ "number": 1, "state": "TRIAL_STATE_FAILED", "error": "cancelled" }),
                "trial 1    cancelled",
            ),
        ] {
            assert_eq!(progress(&trial), line);
        }
    }
}
