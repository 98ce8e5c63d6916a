//! `tars proposals`: governed changes of live hyperparameters, from the proposal to the decision and
//! to what came of it.

mod decide;
mod show;

use super::{
    CommandError, Global, advice, block_on, events,
    listing::{self, text, word},
    mesh::MeshArg,
    session::Session,
};
use crate::rest::{Rest, RestError};
use clap::{Args, Subcommand};
use decide::Decision;
use serde_json::{Value, json};
pub(super) use show::measured;
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars proposals list\n  tars proposals show PROPOSAL_ID\n  tars proposals approve PROPOSAL_ID --reason 'better on every seed'\n  tars proposals apply PROPOSAL_ID\n\nWho proposes does not decide: approve and reject need another user than the proposer."
)]
pub(crate) struct Proposals {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the proposals that wait for a decision, newest first.
    #[command(
        after_help = "Examples:\n  tars proposals list\n  tars proposals list --all --limit 10 --json"
    )]
    List {
        /// List those that have been decided, too.
        #[arg(long)]
        all: bool,
        /// How many proposals at most.
        #[arg(long, default_value_t = 50, value_name = "PROPOSALS")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a proposal: what it changes, what was measured, and what can be done next.
    #[command(after_help = "Example:\n  tars proposals show 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d")]
    Show {
        /// The proposal's id, as `tars proposals list` shows it.
        update_id: Uuid,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Propose the best trial of a study for the agent that it searched for.
    #[command(
        after_help = "Example:\n  tars proposals propose 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --note 'new reward'"
    )]
    Propose {
        /// The study's id, as `tars studies list` shows it.
        study_id: Uuid,
        /// A note for the approver.
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            value_name = "TEXT"
        )]
        note: String,
    },
    /// Follow a proposal until it ends or needs a person. Exits with 1 unless it completes.
    #[command(after_help = "Example:\n  tars proposals watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d")]
    Watch {
        /// The proposal's id.
        update_id: Uuid,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Apply an approved proposal and follow it. Exits with 1 unless it completes.
    #[command(
        after_help = "Examples:\n  tars proposals apply 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars proposals apply 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --json | jq .proposal.state"
    )]
    Apply {
        /// The proposal's id.
        update_id: Uuid,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Decide(Decision),
}

impl Proposals {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        block_on(async { self.command.run(&mut mesh.session().await?).await })?
    }
}

impl Command {
    async fn run(self, session: &mut Session) -> Result<ExitCode, CommandError> {
        let rest = session.rest();
        match self {
            Self::List { all, limit, json } => list(&rest, all, limit, json).await,
            Self::Show { update_id, json } => show::show(&rest, update_id, json).await,
            Self::Propose { study_id, note } => propose(&rest, study_id, &note).await,
            Self::Watch { update_id, json } => watch(session, update_id, json).await,
            Self::Apply { update_id, json } => {
                let apply = format!("/api/v1/sync/apply/{update_id}");
                change(&rest, &update_id, &apply, json!({})).await?;
                watch(session, update_id, json).await
            }
            Self::Decide(decision) => decision.run(&rest).await,
        }
    }
}

fn path(id: Uuid) -> String {
    format!("/api/v1/sync/proposals/{id}")
}

fn state(proposal: &Value) -> String {
    word(&proposal["state"], "PROPOSAL_STATE_")
}

/// What helps against each refusal of a call about a proposal.
fn advised(error: RestError, id: &Uuid) -> CommandError {
    let show = format!("`tars proposals show {id}` shows how it stands");
    let advice = [
        (
            "NOT_FOUND",
            "`tars proposals list --all` shows all".to_owned(),
        ),
        ("WRONG_STATE", show.clone()),
        ("CONFLICT", show),
        (
            "FOUR_EYES",
            "log in as another user with the role admin, and decide as that one".to_owned(),
        ),
        (
            "NOT_YOURS",
            "log in as its proposer, or as a user with the role admin".to_owned(),
        ),
        (
            "ASSESSMENT_PENDING",
            format!(
                "`tars proposals watch {id}` tells when it is there; --without-assessment goes without"
            ),
        ),
        (
            "ASSESSMENT_FAILED",
            format!(
                "--without-assessment approves nevertheless; `tars proposals withdraw {id}` takes it back"
            ),
        ),
        (
            "STALE",
            format!(
                "take it back with `tars proposals withdraw {id}`, then propose its study anew"
            ),
        ),
        (
            "CHANGE_IN_PROGRESS",
            "`tars proposals watch` with the id of that change tells when it ends".to_owned(),
        ),
    ];
    advice::add(error, &advice)
}

async fn change(rest: &Rest, id: &Uuid, route: &str, body: Value) -> Result<Value, CommandError> {
    let answer = rest.post(route, body).await;
    Ok(answer.map_err(|e| advised(e, id))?["proposal"].take())
}

async fn list(rest: &Rest, all: bool, limit: usize, json: bool) -> Result<ExitCode, CommandError> {
    let route = if all { "history" } else { "pending" };
    let route = format!("/api/v1/sync/{route}");
    let proposals = listing::first(rest, &route, "proposals", limit).await?;
    if json {
        say!("{:#}", Value::from(proposals));
        return Ok(ExitCode::SUCCESS);
    }
    let head = [
        "proposal",
        "agent",
        "state",
        "assessment",
        "stale",
        "proposed by",
        "created",
    ];
    listing::table(&head, &proposals, row);
    if proposals.is_empty() && !all {
        note!("nothing waits for a decision; `tars proposals list --all` lists what was decided");
    }
    Ok(ExitCode::SUCCESS)
}

fn row(proposal: &Value) -> Vec<String> {
    vec![
        text(&proposal["update_id"]),
        text(&proposal["agent_id"]),
        state(proposal),
        assessment_state(proposal),
        if proposal["stale"] == true {
            "yes"
        } else {
            "no"
        }
        .to_owned(),
        text(&proposal["proposed_by"]),
        text(&proposal["created_at"]),
    ]
}

fn assessment_state(proposal: &Value) -> String {
    word(&proposal["assessment_state"], "ASSESSMENT_STATE_")
}

async fn propose(rest: &Rest, study: Uuid, note: &str) -> Result<ExitCode, CommandError> {
    let body = json!({ "study_id": study, "note": note });
    let answer = rest.post("/api/v1/sync/propose", body).await;
    let show = format!("`tars studies show {study}` shows its trials");
    let advice = [
        (
            "NOT_FOUND",
            "`tars studies list` shows all studies".to_owned(),
        ),
        ("NO_FINISHED_TRIAL", show),
        (
            "ALREADY_EXISTS",
            "`tars proposals list` shows it".to_owned(),
        ),
    ];
    let proposal = answer.map_err(|e| advice::add(e, &advice))?["proposal"].take();
    say!("{}: {}", text(&proposal["update_id"]), state(&proposal));
    show::next_step(&proposal);
    Ok(ExitCode::SUCCESS)
}

async fn watch(session: &mut Session, id: Uuid, json: bool) -> Result<ExitCode, CommandError> {
    // An id that does not exist is refused before the stream.
    let mut last = show::read(&session.rest(), id).await?;
    let mut printed = String::new();
    events::follow(session, &format!("{}/events", path(id)), |item| {
        last = item["proposal"].clone();
        let line = format!("{} (assessment {})", state(&last), assessment_state(&last));
        if json {
            say!("{item}");
        } else if line != printed {
            say!("{line}");
            printed = line;
        }
        state(&last) != "needs_attention"
    })
    .await?;
    if !json {
        show::outcome(&last);
    }
    Ok(ExitCode::from(u8::from(state(&last) != "completed")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};

    #[test]
    fn a_proposal_is_one_row_with_whether_it_can_be_decided() {
        let proposal = json!({
            "update_id": "p", "agent_id": "policy", "state": "PROPOSAL_STATE_PENDING_APPROVAL",
            "assessment_state": "ASSESSMENT_STATE_COMPLETED", "stale": true, "proposed_by": "user:ada",
            "created_at": "now",
        });
        let cells = [
            "p",
            "policy",
            "pending_approval",
            "completed",
            "yes",
            "user:ada",
            "now",
        ];
        assert_eq!(row(&proposal), cells);
    }

    #[test]
    fn each_refusal_that_a_person_can_mend_comes_with_a_command() {
        let id = Uuid::nil();
        for (reason, advice) in [
            ("NOT_FOUND", "tars proposals list --all"),
            ("WRONG_STATE", "tars proposals show 0000"),
            ("FOUR_EYES", "another user"),
            ("ASSESSMENT_PENDING", "--without-assessment"),
            ("ASSESSMENT_FAILED", "tars proposals withdraw 0000"),
            ("STALE", "tars proposals withdraw 0000"),
        ] {
            let refused = RestError::Refused {
                method: Method::POST,
                path: "/api/v1/sync/approve".to_owned(),
                status: StatusCode::BAD_REQUEST,
                message: "no".to_owned(),
                body: json!({ "details": [{ "domain": "tars", "reason": reason }] }),
            };
            let text = advised(refused, &id).to_string();
            assert!(text.contains(advice), "{reason}: {text}");
        }
    }
}
