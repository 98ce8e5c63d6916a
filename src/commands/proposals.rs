//! `tars proposals`: governed changes of live hyperparameters and of the stages of versions, from the proposal to
//! the decision and to what came of it.

mod decide;
mod promote;
mod promotion;
mod propose;
mod show;
mod until;
mod watch;

use super::{
    CommandError, Global,
    advice::{self, Advice},
    listing::{self, id, text, word},
    mesh::MeshArg,
    session::Session,
};
use crate::rest::{Rest, RestError};
use clap::{Args, Subcommand};
use decide::Decision;
use promote::Promote;
use propose::Propose;
use serde_json::{Value, json};
pub(super) use show::measured;
use std::{ops::RangeInclusive, process::ExitCode};
use tars_proto::reason;
pub(super) use until::Until;
use uuid::Uuid;
use watch::watch;
pub(super) use watch::{follow_until, training_runs};

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
    /// List the open proposals: first those that need attention, then those that wait for a decision or
    /// to be applied, then those that are being applied.
    #[command(
        after_help = "Examples:\n  tars proposals list\n  tars proposals list --all --limit 10 --json"
    )]
    List {
        /// List those that have ended, too, newest first.
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
        #[arg(value_parser = id)]
        update_id: Uuid,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Propose the best trial of a study for the agent that it searched for.
    #[command(
        after_help = "Examples:\n  tars proposals propose 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --note 'new reward'\n  tars proposals propose 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --verification-seeds 16"
    )]
    Propose(Propose),
    /// Propose one step of a version up the ladder of an agent that is bound to the live mesh.
    #[command(
        after_help = "Examples:\n  tars proposals promote policy 7\n  tars proposals promote policy 7 --stage active --note 'held for a day'"
    )]
    Promote(Promote),
    /// Follow a proposal until what is awaited, until it ends, or until it needs a person. Exits with 1
    /// unless its assessment was made, it was approved, or it completed, whichever was awaited.
    #[command(
        after_help = "Examples:\n  tars proposals watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars proposals watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --until ended"
    )]
    Watch {
        /// The proposal's id.
        #[arg(value_parser = id)]
        update_id: Uuid,
        /// What to wait for [default: `assessed` while it is being assessed, `decided` while it waits
        /// for a decision, then `ended`].
        #[arg(long)]
        until: Option<Until>,
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
        #[arg(value_parser = id)]
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
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| {
            self.command.run(session).await
        })
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::List { json, .. }
            | Self::Show { json, .. }
            | Self::Watch { json, .. }
            | Self::Apply { json, .. } => *json,
            Self::Propose(propose) => propose.json,
            Self::Promote(promote) => promote.json,
            Self::Decide(decision) => decision.is_in_json(),
        }
    }

    async fn run(self, session: &mut Session) -> Result<ExitCode, CommandError> {
        let rest = session.rest();
        match self {
            Self::List { all, limit, json } => list(&rest, all, limit, json).await,
            Self::Show { update_id, json } => show::show(&rest, update_id, json).await,
            Self::Propose(propose) => propose.run(&rest).await,
            Self::Promote(promote) => promote.run(&rest).await,
            Self::Watch {
                update_id,
                until,
                json,
            } => watch(session, update_id, until, json).await,
            Self::Apply { update_id, json } => {
                let apply = format!("/api/v1/sync/apply/{update_id}");
                change(&rest, &update_id, &apply, json!({})).await?;
                watch(session, update_id, Some(Until::Ended), json).await
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

/// What helps against the refusals of a call about a proposal.
const ABOUT_PROPOSAL: &[Advice] = &[
    (reason::NOT_FOUND, "`tars proposals list --all` shows all"),
    (reason::WRONG_STATE, SHOWN),
    (reason::CONFLICT, SHOWN),
    (reason::NOT_HELD, SHOWN),
    (
        reason::FOUR_EYES,
        "log in as another user with the role admin, and decide as that one",
    ),
    (
        reason::NOT_YOURS,
        "log in as its proposer, or as a user with the role admin",
    ),
    (
        reason::ASSESSMENT_PENDING,
        "`tars proposals watch {id}` tells when it is there; --without-assessment goes without",
    ),
    (
        reason::ASSESSMENT_FAILED,
        "--without-assessment approves nevertheless; `tars proposals withdraw {id}` takes it back",
    ),
    (
        reason::STALE,
        "take it back with `tars proposals withdraw {id}`, then propose it anew",
    ),
    (reason::CHANGE_IN_PROGRESS, OTHER_CHANGE),
];

/// How many seeds a measurement may have.
const SEEDS: RangeInclusive<i64> = 2..=64;

const SHOWN: &str = "`tars proposals show {id}` shows its state";

const OTHER_CHANGE: &str = "`tars proposals watch {named}` follows it; if it needs attention, `tars proposals resolve {named} roll-back --reason TEXT` (or `keep-live`) ends it";

fn advised(error: RestError, id: &Uuid) -> CommandError {
    advice::add(error, ABOUT_PROPOSAL, id)
}

async fn change(rest: &Rest, id: &Uuid, route: &str, body: Value) -> Result<Value, CommandError> {
    let answer = rest.post(route, body).await;
    Ok(answer.map_err(|e| advised(e, id))?["proposal"].take())
}

async fn list(rest: &Rest, all: bool, limit: usize, json: bool) -> Result<ExitCode, CommandError> {
    let history = "/api/v1/sync/history";
    let proposals = if all {
        listing::first(rest, history, "proposals", limit).await?
    } else {
        let open = format!("{history}?open_only=true");
        let mut open = listing::all(rest, &open, "proposals").await?;
        open.sort_by_key(urgency);
        open.truncate(limit);
        open
    };
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
        "next",
    ];
    listing::table(&head, &proposals, row);
    if proposals.is_empty() && !all {
        note!("no proposal is open; `tars proposals list --all` lists those that have ended");
    }
    for proposal in proposals.iter().filter(|p| state(p) == "needs_attention") {
        note!("the agent {} is held", text(&proposal["agent_id"]));
        show::next_step(proposal);
    }
    Ok(ExitCode::SUCCESS)
}

/// The order of the open proposals: what only a person can continue comes first.
fn urgency(proposal: &Value) -> u8 {
    match state(proposal).as_str() {
        "needs_attention" => 0,
        "pending_approval" => 1,
        "approved" => 2,
        _ => 3,
    }
}

/// The command that continues a proposal, in a word or two.
fn next(proposal: &Value) -> &'static str {
    let stale = proposal["stale"] == true;
    match state(proposal).as_str() {
        "needs_attention" => "resolve",
        "pending_approval" | "approved" if stale => "withdraw, propose again",
        "pending_approval" if assessment_state(proposal) == "pending" => "watch",
        "pending_approval" => "approve or reject",
        "approved" => "apply",
        "applying" | "giving_up" | "verifying" | "rolling_back" => "watch",
        _ => "",
    }
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
        next(proposal).to_owned(),
    ]
}

fn assessment_state(proposal: &Value) -> String {
    word(&proposal["assessment_state"], "ASSESSMENT_STATE_")
}

#[cfg(test)]
mod tests {
    use super::{propose::OF_STUDY, *};
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
            "withdraw, propose again",
        ];
        assert_eq!(row(&proposal), cells);
    }

    #[test]
    fn open_proposals_are_listed_by_urgency_each_with_its_next_command() {
        let proposal = |state: &str, assessment: &str| {
            json!({ "state": format!("PROPOSAL_STATE_{state}"),
                    "assessment_state": format!("ASSESSMENT_STATE_{assessment}") })
        };
        let mut open = [
            proposal("VERIFYING", "COMPLETED"),
            proposal("APPROVED", "COMPLETED"),
            proposal("PENDING_APPROVAL", "PENDING"),
            proposal("PENDING_APPROVAL", "FAILED"),
            proposal("NEEDS_ATTENTION", "COMPLETED"),
        ];
        open.sort_by_key(urgency);
        let next = open.each_ref().map(next);
        let expected = ["resolve", "watch", "approve or reject", "apply", "watch"];
        assert_eq!(next, expected);
        assert_eq!(super::next(&proposal("KEPT", "COMPLETED")), "");
    }

    #[test]
    fn a_change_in_progress_is_named_with_the_commands_that_end_it() {
        let refused = || RestError::Refused {
            method: Method::POST,
            path: "/api/v1/sync/propose".to_owned(),
            status: StatusCode::BAD_REQUEST,
            message: "the change 7 of this agent is in progress".to_owned(),
            body: json!({ "details": [
                { "domain": "tars", "reason": "CHANGE_IN_PROGRESS" },
                { "resource_type": "proposal", "resource_name": "7" },
            ] }),
        };
        for table in [OF_STUDY, ABOUT_PROPOSAL] {
            let text = advice::add(refused(), table, &Uuid::nil()).to_string();
            for part in ["tars proposals watch 7", "tars proposals resolve 7"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn each_refusal_that_a_person_can_mend_comes_with_a_command() {
        let id = Uuid::nil();
        for (table, reason, advice) in [
            (ABOUT_PROPOSAL, "NOT_FOUND", "tars proposals list --all"),
            (ABOUT_PROPOSAL, "WRONG_STATE", "tars proposals show 0000"),
            (ABOUT_PROPOSAL, "FOUR_EYES", "another user"),
            (ABOUT_PROPOSAL, "ASSESSMENT_PENDING", "--without-assessment"),
            (
                ABOUT_PROPOSAL,
                "ASSESSMENT_FAILED",
                "tars proposals withdraw 0000",
            ),
            (ABOUT_PROPOSAL, "STALE", "tars proposals withdraw 0000"),
            (OF_STUDY, "NO_AGENT", "for an agent"),
            (OF_STUDY, "NO_CHANGE", "tars studies show 0000"),
            (OF_STUDY, "CHANGE_IN_PROGRESS", "tars proposals watch"),
        ] {
            let refused = RestError::Refused {
                method: Method::POST,
                path: "/api/v1/sync/approve".to_owned(),
                status: StatusCode::BAD_REQUEST,
                message: "no".to_owned(),
                body: json!({ "details": [{ "domain": "tars", "reason": reason }] }),
            };
            let text = advice::add(refused, table, &id).to_string();
            assert!(text.contains(advice), "{reason}: {text}");
        }
    }
}
