//! `tars training`: the runs of the mesh that train its agents.

use super::{
    CommandError, Global,
    advice::{self, Advice},
    causes,
    confirm::Confirm,
    listing::{self, id, number, text, word},
    mesh::MeshArg,
    presets,
    train::watch,
};
use crate::rest::{Rest, RestError};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::{fmt::Display, process::ExitCode};
use tars_proto::reason;
use uuid::Uuid;

const PATH: &str = "/api/v1/orchestration/training";

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars training start --preset\n  tars training start --agents ethical --others live --steps 50000\n  tars training list\n  tars train watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars training pause 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n\nThe runs of a mesh train its agents, and what they learn is served. `tars train --env ENV --algo ALGO` trains\nwithout a mesh."
)]
pub(crate) struct Training {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train agents together, each with its live hyperparameters.
    #[command(
        after_help = "Examples:\n  tars training start --preset --steps 300000\n  tars training start --agents policy,resource --steps 100000 --seed 1\n  tars training start --agents ethical --others live --json\n  tars training start --agents policy --environment external/cartpole-v1\n\nA run goes on from the live weights, and those that it ends with become live together, also where they are\nworse: `tars agents rollback AGENT` undoes it. A mesh starts with the default hyperparameters of the\nalgorithms; --preset is what is known to learn the environment. 20000 steps show how it works, and are not all\nthat can be learned."
    )]
    Start(Start),
    /// Follow a run until it ends, as `tars train watch` does. Exits with 1 unless it completes.
    #[command(after_help = watch::HELP)]
    Watch(watch::Watched),
    /// List runs, newest first.
    #[command(
        after_help = "Examples:\n  tars training list\n  tars training list --limit 5 --json | jq -r '.[].run_id'"
    )]
    List {
        /// How many runs at most.
        #[arg(long, default_value_t = 50, value_name = "RUNS")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Pause a run: it frees its learner and its agents, and can be resumed.
    #[command(after_help = "Example:\n  tars training pause 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d")]
    Pause(One),
    /// Resume a paused run where it was.
    #[command(after_help = "Example:\n  tars training resume 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d")]
    Resume(One),
    /// Stop a run; its agents keep the weights that they have.
    #[command(
        visible_alias = "stop",
        after_help = "Example:\n  tars training cancel 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d --yes"
    )]
    Cancel {
        #[command(flatten)]
        run: One,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Args)]
struct Start {
    /// The agents, separated by commas; all of the mesh when left out.
    #[arg(long, value_delimiter = ',', value_name = "AGENTS")]
    agents: Vec<String>,
    /// Where they learn: built in, or lent by you, as `external/NAME`; where they live when left out. An agent must
    /// observe and do there what it does where it lives, since what it learns is served.
    #[arg(long, value_name = "ENV")]
    environment: Option<String>,
    /// How the other agents of the environment act.
    #[arg(long, value_enum, default_value_t = Others::Rules, value_name = "HOW")]
    others: Others,
    /// Environment steps [default: 20000].
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// The seed, which determines everything that is random; drawn when left out.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Make the hyperparameters live first that are known to learn the environment, as `tars agents reload
    /// AGENT --preset` does.
    #[arg(long)]
    preset: bool,
    /// Print the run as JSON.
    #[arg(long)]
    json: bool,
}

/// How agents act that do not learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Others {
    /// By fixed rules.
    Rules,
    /// By their live policies, which do not change during the run.
    Live,
}

/// A run.
#[derive(Debug, Args)]
struct One {
    /// The run's id, as `tars training list` shows it.
    #[arg(value_name = "RUN", value_parser = id)]
    run_id: Uuid,
    /// Print the run as JSON.
    #[arg(long)]
    json: bool,
}

const HELD: &str = "`tars proposals watch {named}` follows the change that holds it";
const LISTED: &str = "`tars training list` shows the states of all";

const ADVICE: &[Advice] = &[
    (reason::NOT_FOUND, "`tars training list` shows all"),
    (reason::WRONG_STATE, LISTED),
    (
        reason::NOT_SAVED,
        "`tars training cancel {id}` stops it, and it can be started anew",
    ),
    (
        reason::TRAINING_RUNS,
        "`tars training list` shows the run that trains it: wait for its end, pause it or cancel it",
    ),
    (
        reason::TOO_MANY_PAUSED,
        "resume or cancel one of them: `tars training list` shows which",
    ),
    (reason::CHANGE_IN_PROGRESS, HELD),
    (
        reason::NEEDS_ATTENTION,
        "`tars proposals show {named}` shows it",
    ),
];
/// Those that differ where a run is started.
const START: &[Advice] = &[
    (reason::NOT_FOUND, "`tars agents list` shows all"),
    (reason::AGENT_NOT_BUILT, "`tars agents list` shows all"),
    (
        reason::HOSTS_BUSY,
        "`tars_env.py --copies` lends more, or wait for the run that uses them",
    ),
    (
        reason::NOT_TOGETHER,
        "`tars agents list` shows where each lives: name agents of one environment with --agents",
    ),
];

/// A refusal with the advice of the first table that knows its reason.
fn advised(error: RestError, first: &[Advice], id: &dyn Display) -> CommandError {
    let is_known = |reason| first.iter().any(|(known, _)| *known == reason);
    match error.reason().is_some_and(is_known) {
        true => advice::add(error, first, id),
        false => advice::add(error, ADVICE, id),
    }
}

impl Training {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| {
            let rest = session.rest();
            match self.command {
                Command::Start(start) => start.run(&rest).await,
                Command::Watch(watched) => watched.follow(session).await,
                Command::List { limit, json } => list(&rest, limit, json).await,
                Command::Pause(run) => run.change(&rest, "pause").await,
                Command::Resume(run) => run.change(&rest, "resume").await,
                Command::Cancel { run, confirm } => cancel(&rest, run, &confirm).await,
            }
        })
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::Start(start) => start.json,
            Self::Watch(watched) => watched.json,
            Self::List { json, .. } => *json,
            Self::Pause(run) | Self::Resume(run) | Self::Cancel { run, .. } => run.json,
        }
    }
}

impl Start {
    async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        if self.preset {
            presets::make_live(rest, &self.agents, ADVICE).await?;
        }
        let answer = rest.post(PATH, self.body()).await;
        let mut answer = answer.map_err(|e| advised(e, START, &self.agents.join(", ")))?;
        show(&answer["run"].take(), self.json);
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        let mut body = json!({ "agents": self.agents, "others": self.others.name() });
        for (name, given) in [("steps", self.steps), ("seed", self.seed)] {
            if let Some(number) = given {
                body[name] = json!(number.to_string());
            }
        }
        if let Some(environment) = &self.environment {
            body["environment"] = json!(environment);
        }
        body
    }
}

impl Others {
    fn name(self) -> &'static str {
        match self {
            Self::Rules => "OTHERS_RULES",
            Self::Live => "OTHERS_LIVE",
        }
    }
}

impl One {
    async fn change(self, rest: &Rest, what: &str) -> Result<ExitCode, CommandError> {
        let path = format!("{PATH}/{}/{what}", self.run_id);
        let answer = rest.post(&path, json!({})).await;
        let mut answer = answer.map_err(|e| advised(e, ADVICE, &self.run_id))?;
        show(&answer["run"].take(), self.json);
        Ok(ExitCode::SUCCESS)
    }
}

async fn cancel(rest: &Rest, run: One, confirm: &Confirm) -> Result<ExitCode, CommandError> {
    let id = run.run_id;
    let answer = rest.get(&format!("{PATH}/{id}")).await;
    let shown = answer.map_err(|e| advised(e, ADVICE, &id))?["run"].take();
    if !shown["ended_at"].is_null() {
        return Err(CommandError::Failed(format!(
            "run {id} has ended already: it is {}; `tars training list` shows the others",
            state(&shown)
        )));
    }
    confirm.ask(&format!(
        "run {id} ({} steps) stops, and what it has learned is lost",
        steps(&shown)
    ))?;
    run.change(rest, "cancel").await
}

async fn list(rest: &Rest, limit: usize, json: bool) -> Result<ExitCode, CommandError> {
    let runs = listing::first(rest, PATH, "runs", limit).await?;
    if json {
        say!("{:#}", Value::from(runs));
        return Ok(ExitCode::SUCCESS);
    }
    let head = [
        "run",
        "agents",
        "environment",
        "state",
        "steps",
        "steps/s",
        "mean return",
        "requested",
    ];
    listing::table(&head, &runs, row);
    Ok(ExitCode::SUCCESS)
}

fn row(run: &Value) -> Vec<String> {
    vec![
        text(&run["run_id"]),
        agents(run),
        listing::world_of(run),
        state_with_reason(run),
        steps(run),
        rate(run),
        returns(run),
        text(&run["queued_at"]),
    ]
}

fn members(run: &Value) -> impl Iterator<Item = &Value> {
    run["members"].as_array().into_iter().flatten()
}

/// `policy,resource`.
fn agents(run: &Value) -> String {
    let names: Vec<String> = members(run).map(|m| text(&m["agent_id"])).collect();
    names.join(",")
}

fn state(run: &Value) -> String {
    word(&run["state"], "TRAINING_STATE_")
}

/// `failed (its host is gone)`.
fn state_with_reason(run: &Value) -> String {
    let reason = text(&run["error_reason"]);
    match causes::of(run).map_or(reason.as_str(), |(words, _)| words) {
        "" => state(run),
        why => format!("{} ({why})", state(run)),
    }
}

/// Those that are done, of all: `3000/20000`.
fn steps(run: &Value) -> String {
    let count = |name: &str| number(&run[name]).unwrap_or_default();
    format!("{}/{}", count("steps_done"), count("steps"))
}

/// Steps a second of a run, as last measured.
fn rate(run: &Value) -> String {
    number(&run["rate"]).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"))
}

/// What each agent came to, with its name where there are several.
fn returns(run: &Value) -> String {
    let several = members(run).count() > 1;
    let one = |member: &Value| {
        let came_to = number(&member["final_return"])?;
        let agent = text(&member["agent_id"]);
        Some(match several {
            true => format!("{agent} {came_to:.2}"),
            false => format!("{came_to:.2}"),
        })
    };
    let returns: Vec<String> = members(run).filter_map(one).collect();
    match returns.is_empty() {
        true => "-".to_owned(),
        false => returns.join(", "),
    }
}

/// What is left of a run that was cancelled, and how to begin it anew.
fn after_cancel(run: &Value) -> String {
    let again = match number(&run["steps"]) {
        Some(steps) => format!(" --agents {} --steps {steps}", agents(run)),
        None => String::new(),
    };
    format!(
        "its checkpoint is gone, and its agents keep the weights that they had: `tars training start{again}` begins anew. A run that is to go on later is paused: `tars training pause`"
    )
}

fn show(run: &Value, json: bool) {
    if json {
        say!("{run:#}");
        return;
    }
    let (id, state) = (text(&run["run_id"]), state(run));
    say!("{id} {state}: {} steps of {}", steps(run), agents(run));
    match state.as_str() {
        "queued" | "running" => note!("`tars train watch {id}` follows it"),
        "pausing" | "cancelling" => note!("`tars training list` shows when it is"),
        "paused" => note!("`tars training resume {id}` goes on where it is"),
        "cancelled" => note!("{}", after_cancel(run)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(agents: &[&str], steps: Option<u64>) -> Start {
        Start {
            agents: agents.iter().map(ToString::to_string).collect(),
            environment: None,
            others: Others::Live,
            steps,
            seed: Some(0),
            preset: false,
            json: false,
        }
    }

    #[test]
    fn what_is_left_out_is_for_the_mesh_to_choose() {
        assert_eq!(
            start(&["policy"], None).body(),
            json!({ "agents": ["policy"], "others": "OTHERS_LIVE", "seed": "0" })
        );
        let all = start(&[], Some(5)).body();
        assert_eq!((&all["agents"], &all["steps"]), (&json!([]), &json!("5")));
        let elsewhere = Start {
            environment: Some("external/maze".to_owned()),
            ..start(&["policy"], None)
        };
        assert_eq!(elsewhere.body()["environment"], "external/maze");
    }

    #[test]
    fn who_cancels_is_told_what_is_left_and_how_to_begin_anew() {
        let run = json!({ "steps": "500", "members": [{ "agent_id": "policy" }, { "agent_id": "ethical" }] });
        let told = after_cancel(&run);
        for part in [
            "checkpoint is gone",
            "`tars training start --agents policy,ethical --steps 500`",
            "tars training pause",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_run_is_one_row_with_what_each_agent_came_to() {
        let mut run = json!({
            "run_id": "r", "state": "TRAINING_STATE_RUNNING", "environment": "mesh", "calibration": "shipped",
            "steps": "20000", "steps_done": "3000", "rate": 1234.4, "queued_at": "now",
            "members": [{ "agent_id": "policy" }, { "agent_id": "resource" }],
        });
        let cells = [
            "r",
            "policy,resource",
            "mesh (calibration shipped)",
            "running",
            "3000/20000",
            "1234",
            "-",
            "now",
        ];
        assert_eq!(row(&run), cells);
        run["state"] = json!("TRAINING_STATE_COMPLETED");
        run["members"][0]["final_return"] = json!(1.5);
        run["members"][1]["final_return"] = json!(-2.0);
        assert_eq!(
            row(&run)[3..7],
            [
                "completed",
                "3000/20000",
                "1234",
                "policy 1.50, resource -2.00"
            ]
        );
        run["state"] = json!("TRAINING_STATE_FAILED");
        run["error_reason"] = json!("HOST_GONE");
        assert_eq!(row(&run)[3], "failed (its host is gone)");
        run["error_reason"] = json!("ELSE");
        assert_eq!(row(&run)[3], "failed (ELSE)");
    }
}
