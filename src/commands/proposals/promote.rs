//! `tars proposals promote`: a step of a version up the ladder, as a proposal.

use super::{OTHER_CHANGE, promotion::STAGE, show};
use crate::{
    commands::{
        CommandError,
        advice::{self, Advice},
    },
    rest::Rest,
};
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_proto::reason;

const VERSIONS: &str = "`tars agents versions {id}` shows where each version stands";

const ADVICE: &[Advice] = &[
    (reason::NOT_FOUND, VERSIONS),
    (reason::STAGE_ORDER, VERSIONS),
    (reason::CANARY_UNPROVEN, VERSIONS),
    (
        reason::NOT_BETTER,
        "`tars agents compare {id} --version N --stored` shows the comparison",
    ),
    (
        reason::UNCALIBRATED,
        "`tars agents calibration` shows what was measured",
    ),
    (
        reason::NOT_BOUND,
        "`tars agents promote {id} VERSION` makes it ACTIVE at once",
    ),
    (
        reason::ALREADY_EXISTS,
        "`tars proposals show {named}` shows it",
    ),
    (reason::CHANGE_IN_PROGRESS, OTHER_CHANGE),
];

/// A version that is to climb.
#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The agent, as `tars agents list` shows it.
    #[arg(value_name = "AGENT")]
    agent_id: String,
    /// The version, as `tars agents versions` shows it.
    #[arg(value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    version: u64,
    /// Where it is to stand, which is one step up; that if none is given.
    #[arg(long, value_name = "STAGE", value_parser = ["shadow", "canary", "active"])]
    stage: Option<String>,
    /// A note for the approver.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "TEXT"
    )]
    note: String,
    /// Print the proposal as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Promote {
    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let answer = rest.post("/api/v1/sync/promotions", self.body()).await;
        let answer = answer.map_err(|e| advice::add(e, ADVICE, &self.agent_id))?;
        show::proposed(&answer["proposal"], self.json);
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        // JSON numbers of clients have 53 bits.
        let version = self.version.to_string();
        let mut body = json!({ "agent_id": self.agent_id, "version": version, "note": self.note });
        if let Some(stage) = &self.stage {
            body["to_stage"] = json!(format!("{STAGE}{}", stage.to_uppercase()));
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proposed_is_sent() {
        let promote = |stage: Option<&str>| Promote {
            agent_id: "policy".to_owned(),
            version: 7,
            stage: stage.map(str::to_owned),
            note: String::new(),
            json: false,
        };
        let body = promote(Some("active")).body();
        assert_eq!(body["version"], "7");
        assert_eq!(body["to_stage"], "AGENT_STAGE_ACTIVE");
        assert!(promote(None).body()["to_stage"].is_null());
    }
}
