//! `tars proposals propose`: the best trial of a study, as a proposal.

use super::{OTHER_CHANGE, SEEDS, show};
use crate::{
    commands::{
        CommandError,
        advice::{self, Advice},
        listing::id,
    },
    rest::Rest,
};
use clap::{Args, value_parser};
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_proto::reason;
use uuid::Uuid;

/// What helps against the refusals of a proposal of a study's best trial.
pub(super) const OF_STUDY: &[Advice] = &[
    (reason::NOT_FOUND, "`tars studies list` shows all studies"),
    (
        reason::NO_FINISHED_TRIAL,
        "`tars studies show {id}` shows its trials",
    ),
    (
        reason::NO_AGENT,
        "only a study that was created for an agent can be proposed",
    ),
    (
        reason::NO_CHANGE,
        "its best trial is live already; `tars studies show {id}` shows its trials",
    ),
    (
        reason::ALREADY_EXISTS,
        "`tars proposals show {named}` shows it",
    ),
    (reason::CHANGE_IN_PROGRESS, OTHER_CHANGE),
];

/// A study whose best trial is proposed.
#[derive(Debug, Args)]
pub(super) struct Propose {
    /// The study's id, as `tars studies list` shows it.
    #[arg(value_parser = id)]
    study_id: Uuid,
    /// On how many seeds it is assessed, and on how many others it is verified [default: 8]. It is rolled back
    /// unless it surely improves, and on few seeds that is less often sure.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(SEEDS))]
    verification_seeds: Option<u32>,
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

impl Propose {
    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let answer = rest.post("/api/v1/sync/propose", self.body()).await;
        let answer = answer.map_err(|e| advice::add(e, OF_STUDY, &self.study_id))?;
        show::proposed(&answer["proposal"], self.json);
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        let mut body = json!({ "study_id": self.study_id, "note": self.note });
        if let Some(seeds) = self.verification_seeds {
            body["verification_seeds"] = json!(seeds);
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use tars_proto::bounds::Bounds;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        propose: Propose,
    }

    fn parsed(args: &[&str]) -> Result<Propose, clap::Error> {
        let study = "019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d";
        let line = Line::try_parse_from([&["propose", study], args].concat());
        line.map(|line| line.propose)
    }

    #[test]
    fn the_seeds_are_sent_and_left_to_the_mesh_where_they_are_not_given() {
        let body = parsed(&["--verification-seeds", "16"]).unwrap().body();
        assert_eq!(body["verification_seeds"], 16);
        assert_eq!(parsed(&[]).unwrap().body().get("verification_seeds"), None);
    }

    #[test]
    fn seeds_outside_the_bounds_of_the_contract_are_refused_before_a_call() {
        for wrong in ["0", "1", "65", "-2", "2.5", "many"] {
            let line = format!("--verification-seeds={wrong}");
            assert!(parsed(&[&line]).is_err(), "{wrong}");
        }
        for good in ["2", "64"] {
            parsed(&["--verification-seeds", good]).unwrap();
        }
        let request = "tars.hypersync.v1.ProposeUpdateRequest";
        let request = tars_proto::table::pool().get_message_by_name(request);
        let field = request.unwrap().get_field_by_name("verification_seeds");
        let bounds = Bounds::of(&field.unwrap());
        let own = (*SEEDS.start() as f64, *SEEDS.end() as f64);
        assert_eq!((bounds.least, bounds.most), (Some(own.0), Some(own.1)));
    }
}
