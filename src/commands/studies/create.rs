//! `tars studies create`: a search that the server runs.

use super::{next_step, state, study, watch};
use crate::commands::{
    CommandError,
    advice::{self, Advice},
    listing::{required, short, text},
    session::Session,
};
use clap::{Args, builder::PossibleValuesParser};
use serde_json::{Map, Value, json};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tars_proto::reason;
use uuid::Uuid;

/// What helps against the refusals of a new study.
const ADVICE: &[Advice] = &[
    (
        reason::STUDIES_BUSY,
        "`tars studies list` shows those that are running; wait for one, or stop it with `tars studies cancel`",
    ),
    (
        reason::STUDIES_FULL,
        "`tars studies list` shows them, and `tars studies cancel` ends one that is not needed",
    ),
];

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars studies create --trials 30 --watch\n  tars studies create --trials 30 --seed 7 --json | jq -r .study_id\n  tars studies create --space space.json --sampler random\n  tars studies create --environment external/cartpole-v1 --trials 20\n\nA search space is a JSON list of parameters, each with a range or with choices:\n  [ { \"name\": \"gamma\", \"float\": { \"low\": 0.9, \"high\": 0.999 } },\n    { \"name\": \"batch_size\", \"categorical\": { \"values\": [32, 64] } } ]"
)]
pub(super) struct Create {
    /// The agent to search for.
    #[arg(long, default_value = "policy", value_name = "AGENT")]
    agent: String,
    /// Where the trials learn: built in, or lent by you, as `external/NAME`; where the agent lives when left out.
    #[arg(long, value_name = "ENV")]
    environment: Option<String>,
    /// How many trials; 100 when left out.
    #[arg(long, value_name = "TRIALS")]
    trials: Option<u32>,
    /// Environment steps of each trial; 20000 when left out.
    #[arg(long, value_name = "STEPS")]
    steps: Option<u64>,
    /// Determines the trials; drawn, and shown with the study, when left out.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// How the values of a trial are chosen; `tpe` when left out.
    #[arg(long, value_parser = PossibleValuesParser::new(["tpe", "random"]))]
    sampler: Option<String>,
    /// Which trials are stopped early; `median`, those that fall behind, when left out.
    #[arg(long, value_parser = PossibleValuesParser::new(["median", "none"]))]
    pruner: Option<String>,
    /// A JSON file with the parameters to search; the agent's own search space when left out.
    #[arg(long, value_name = "FILE")]
    space: Option<PathBuf>,
    /// Follow the trials until the study ends, as `tars studies watch`: exits with 1 unless it completes,
    /// and Ctrl-C stops nothing.
    #[arg(long)]
    watch: bool,
    /// Print the study as JSON; with --watch, one JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

impl Create {
    pub(super) async fn run(self, session: &mut Session) -> Result<ExitCode, CommandError> {
        let rest = session.rest();
        let answer = rest.post("/api/v1/optimize", self.body()?).await;
        let answer = answer.map_err(|e| advice::add(e, ADVICE, &Uuid::nil()))?;
        let id = required(&answer, "optimization_id")?;
        let id = Uuid::try_parse(&id)
            .map_err(|_| CommandError::Failed(format!("the study's id {id:?} is not a UUID")))?;
        let study = study(&rest, id).await?;
        match (self.json, self.watch) {
            (true, true) => say!("{}", json!({ "study": study })),
            (true, false) => say!("{study:#}"),
            (false, _) => say!("{}", describe(&study)),
        }
        if self.watch {
            return watch(session, id, self.json).await;
        }
        if !self.json {
            next_step(&study);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The request; what was not given is left out, so that the defaults are the service's.
    fn body(&self) -> Result<Value, CommandError> {
        let mut body = Map::from_iter([("agent_id".to_owned(), json!(self.agent))]);
        let settings = [
            ("environment", self.environment.clone().map(Value::from)),
            ("n_trials", self.trials.map(Value::from)),
            // JSON numbers of clients have 53 bits.
            ("steps", self.steps.map(|n| json!(n.to_string()))),
            ("seed", self.seed.map(|n| json!(n.to_string()))),
            ("sampler_type", self.sampler.clone().map(Value::from)),
            ("pruner_type", self.pruner.clone().map(Value::from)),
            (
                "search_space",
                self.space.as_deref().map(read_space).transpose()?,
            ),
        ];
        for (name, value) in settings {
            body.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(body.into())
    }
}

fn read_space(path: &Path) -> Result<Value, CommandError> {
    let text = std::fs::read(path).map_err(|e| CommandError::file(path, e))?;
    let problem = |what: &str| CommandError::Usage(format!("{}: {what}", path.display()));
    let space: Value = serde_json::from_slice(&text).map_err(|e| problem(&e.to_string()))?;
    // The service takes an empty list for the agent's own search space.
    match space.as_array() {
        Some(parameters) if !parameters.is_empty() => Ok(space),
        _ => Err(problem("a search space is a JSON list of parameters")),
    }
}

/// A new study in one line.
fn describe(study: &Value) -> String {
    format!(
        "{}: {}, {} trials of {} steps in {} for the agent {}, seed {}",
        text(&study["study_id"]),
        state(study),
        short(&study["n_trials"]),
        short(&study["steps"]),
        text(&study["environment"]),
        text(&study["agent_id"]),
        text(&study["seed"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn body(args: &[&str]) -> Result<Value, CommandError> {
        let line = Line::parse_from([&["create"], args].concat());
        line.create.body()
    }

    #[test]
    fn what_is_left_out_is_left_to_the_service() {
        assert_eq!(body(&[]).unwrap(), json!({ "agent_id": "policy" }));
    }

    #[test]
    fn every_flag_is_part_of_the_request() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("space.json");
        let space = json!([{ "name": "gamma", "float": { "low": 0.9, "high": 0.99 } }]);
        std::fs::write(&file, space.to_string()).unwrap();
        let seed = u64::MAX.to_string();
        let file = file.to_str().unwrap();
        let args = [
            "--agent",
            "a",
            "--trials",
            "3",
            "--steps",
            "100",
            "--seed",
            &seed,
            "--sampler",
            "random",
            "--pruner",
            "none",
            "--space",
            file,
        ];
        let expected = json!({
            "agent_id": "a", "n_trials": 3, "steps": "100", "seed": seed, "sampler_type": "random",
            "pruner_type": "none", "search_space": space,
        });
        assert_eq!(body(&args).unwrap(), expected);
    }

    #[test]
    fn a_file_without_parameters_is_no_search_space() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("space.json");
        for text in ["", "{", "{}", "[]", "3"] {
            std::fs::write(&file, text).unwrap();
            let refused = body(&["--space", file.to_str().unwrap()]).unwrap_err();
            assert_eq!(refused.exit_code(), 64, "{text:?}: {refused}");
            assert!(refused.to_string().contains("space.json"), "{refused}");
        }
        let missing = body(&["--space", "/nonexistent.json"]).unwrap_err();
        assert!(
            missing.to_string().contains("/nonexistent.json"),
            "{missing}"
        );
    }
}
