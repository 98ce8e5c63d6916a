//! Decisions about a proposal: each is one call.

use super::{change, path, show, state};
use crate::{
    commands::{CommandError, listing::id},
    rest::Rest,
};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, Subcommand)]
pub(super) enum Decision {
    /// Approve a proposal that somebody else made.
    #[command(
        after_help = "Examples:\n  tars proposals approve 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars proposals approve 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --without-assessment --reason 'urgent'"
    )]
    Approve {
        /// The proposal's id.
        #[arg(value_parser = id)]
        update_id: Uuid,
        /// Why, for the audit record.
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            value_name = "TEXT"
        )]
        reason: String,
        /// Approve although the assessment is pending or has failed; recorded with the proposal.
        #[arg(long)]
        without_assessment: bool,
        /// Print the proposal as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reject a proposal that somebody else made.
    #[command(
        after_help = "Example:\n  tars proposals reject 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --reason 'too few seeds'"
    )]
    Reject {
        /// The proposal's id.
        #[arg(value_parser = id)]
        update_id: Uuid,
        /// Why, for its proposer and the audit record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Print the proposal as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a proposal back that is not being applied yet.
    #[command(
        after_help = "Example:\n  tars proposals withdraw 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d"
    )]
    Withdraw {
        /// The proposal's id.
        #[arg(value_parser = id)]
        update_id: Uuid,
        /// Why, for the audit record.
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            value_name = "TEXT"
        )]
        reason: String,
        /// Print the proposal as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Decide how a proposal that needs attention goes on.
    #[command(
        after_help = "Example:\n  tars proposals resolve 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d roll-back --reason 'the weights were lost'"
    )]
    Resolve {
        /// The proposal's id.
        #[arg(value_parser = id)]
        update_id: Uuid,
        /// What becomes of the agent.
        resolution: Resolution,
        /// Why, for the audit record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Print the proposal as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Resolution {
    /// The agent gets the values back that it had before, whatever is live.
    RollBack,
    /// What is live stays, as drift from what was approved.
    KeepLive,
}

impl Resolution {
    fn as_str(self) -> &'static str {
        match self {
            Self::RollBack => "RESOLUTION_ROLL_BACK",
            Self::KeepLive => "RESOLUTION_KEEP_LIVE",
        }
    }
}

impl Decision {
    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let json = self.is_in_json();
        let (id, route, body) = self.call();
        let proposal = change(rest, &id, &route, body).await?;
        if json {
            say!("{proposal:#}");
            return Ok(ExitCode::SUCCESS);
        }
        say!("{id}: {}", state(&proposal));
        show::next_step(&proposal);
        Ok(ExitCode::SUCCESS)
    }

    pub(super) fn is_in_json(&self) -> bool {
        match self {
            Self::Approve { json, .. }
            | Self::Reject { json, .. }
            | Self::Withdraw { json, .. }
            | Self::Resolve { json, .. } => *json,
        }
    }

    /// The proposal, the route, and the body of the call.
    fn call(self) -> (Uuid, String, Value) {
        match self {
            Self::Approve {
                update_id: id,
                reason,
                without_assessment,
                json: _,
            } => {
                let body = json!({ "update_id": id, "reason": reason,
                                   "without_assessment": without_assessment });
                (id, "/api/v1/sync/approve".to_owned(), body)
            }
            Self::Reject {
                update_id: id,
                reason,
                json: _,
            } => {
                let body = json!({ "update_id": id, "reason": reason });
                (id, "/api/v1/sync/reject".to_owned(), body)
            }
            Self::Withdraw {
                update_id: id,
                reason,
                json: _,
            } => {
                let route = format!("{}/withdraw", path(id));
                (id, route, json!({ "reason": reason }))
            }
            Self::Resolve {
                update_id: id,
                resolution,
                reason,
                json: _,
            } => {
                let body = json!({ "resolution": resolution.as_str(), "reason": reason });
                (id, format!("{}/resolve", path(id)), body)
            }
        }
    }
}
