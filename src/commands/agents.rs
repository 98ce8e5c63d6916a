//! `tars agents`: the agents as they are now, and direct changes of their live hyperparameters and weights.

mod versions;

mod calibration;
mod compare;

use super::{
    CommandError, Global,
    advice::{self, Advice},
    listing::{self, short, text},
    mesh::MeshArg,
    presets,
};
use crate::rest::Rest;
use clap::{Args, Subcommand};
use compare::Compare;
use serde_json::{Map, Value, json};
use std::process::ExitCode;
use tars_proto::reason;
use versions::{Promote, Rollback, Versions};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars agents list\n  tars agents show policy\n  tars agents reload policy gamma=0.99 batch_size=32 --reason 'slower discount'\n  tars agents versions policy\n  tars agents rollback policy --reason 'worse at night'\n\nA reload is not governed: it is recorded as drift until a proposal is applied. `tars proposals` changes\nhyperparameters with an assessment, an approval and a verification."
)]
pub(crate) struct Agents {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the agents.
    #[command(
        after_help = "Examples:\n  tars agents list\n  tars agents list --json | jq -r '.[].agent_id'"
    )]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show an agent: its hyperparameters, what was approved, what it observes and does.
    #[command(after_help = "Example:\n  tars agents show policy")]
    Show {
        /// The agent, as `tars agents list` shows it.
        #[arg(value_name = "AGENT")]
        agent_id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how the mesh's model was calibrated to the calls that are served, and how far it was off.
    #[command(
        after_help = "Examples:\n  tars agents calibration\n  tars agents calibration --json | jq -r '.latest.state'\n\nA service measures the calls that it serves itself: those of one replica of orchestration. Simulated worlds\nuse the shipped calibration."
    )]
    Calibration {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Change live hyperparameters directly; those that are left out keep their values.
    #[command(
        after_help = "Examples:\n  tars agents reload policy learning_rate=0.0005\n  tars agents reload policy gamma=0.99 --expect-version 7 --json\n  tars agents reload resource --preset --reason 'as in LEARNING.md'"
    )]
    Reload(Reload),
    /// List the versions of an agent's weights that are retained, the newest first.
    #[command(
        after_help = "Examples:\n  tars agents versions policy\n  tars agents versions policy --json | jq -r '.[] | select(.live).version'"
    )]
    Versions(Versions),
    /// Make an earlier version of an agent's weights live again, or one of its rules, under the next number.
    #[command(
        after_help = "Examples:\n  tars agents promote policy 3 --reason 'the last run forgot'\n  tars agents promote policy --rule aimd\n  tars agents promote policy 3 --expect-version 5 --json\n  tars agents promote policy 3 --stage shadow\n\nStages are for an agent that is bound to the live mesh, and every step from SHADOW on takes a proposal:\n`tars proposals promote`. `tars agents versions` lists the versions.\n\nA training run of the agent that is under way replaces what is live when it ends: wait for it, or cancel it first."
    )]
    Promote(Promote),
    /// Make the version of an agent's weights live again that was live before; a second one undoes it.
    #[command(
        after_help = "Examples:\n  tars agents rollback policy --reason 'worse at night'\n  tars agents rollback policy --expect-version 5 --json"
    )]
    Rollback(Rollback),
    /// Compare a version of an agent with what answers now and with the agent's rules, and store the result.
    #[command(
        after_help = "Examples:\n  tars agents compare policy --version 3\n  tars agents compare policy --stored --json | jq '.rules[].verdict'\n\nEach takes the agent's part in the same episodes of the simulated mesh; the other agents follow their default\nrules. A version of an agent that is bound to the live mesh climbs beyond SHADOW on 30 seeds or more."
    )]
    Compare(Compare),
}

#[derive(Debug, Args)]
struct Reload {
    /// The agent, as `tars agents list` shows it.
    #[arg(value_name = "AGENT")]
    agent_id: String,
    /// Hyperparameters and their new values: numbers, `true` or `false`.
    #[arg(required_unless_present = "preset", value_name = "NAME=VALUE", value_parser = assignment)]
    values: Vec<(String, Value)>,
    /// The values that are known to learn the agent's environment; those that are given replace them.
    #[arg(long)]
    preset: bool,
    /// Refuse unless this version of the hyperparameters is live.
    #[arg(long, value_name = "VERSION")]
    expect_version: Option<u64>,
    /// Why, for the audit trail.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "TEXT"
    )]
    reason: String,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Parses `gamma=0.99`.
fn assignment(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    match serde_json::from_str(value) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) if !name.is_empty() => {
            Ok((name.to_owned(), value))
        }
        _ => Err("the value must be a number, true or false".to_owned()),
    }
}

const HELD: &str = "`tars proposals watch {named}` follows the change that holds it";

/// What helps where an agent is missing.
const AGENTS: Advice = ("agent", "`tars agents list` shows all");

const ADVICE: &[Advice] = &[
    (reason::NOT_FOUND, "`tars agents list` shows all"),
    (reason::CHANGE_IN_PROGRESS, HELD),
    (
        reason::NEEDS_ATTENTION,
        "`tars proposals show {named}` shows it",
    ),
    (
        reason::VERSION_CHANGED,
        "`tars agents show {id}` shows the live version",
    ),
];

fn path(agent: &str) -> String {
    format!("/api/v1/orchestration/agents/{agent}")
}

impl Agents {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| {
            let rest = session.rest();
            match self.command {
                Command::List { json } => list(&rest, json).await,
                Command::Show { agent_id, json } => show(&rest, &agent_id, json).await,
                Command::Calibration { json } => calibration::show(&rest, json).await,
                Command::Reload(reload) => reload.run(&rest).await,
                Command::Versions(versions) => versions.run(&rest).await,
                Command::Promote(promote) => promote.run(&rest).await,
                Command::Rollback(rollback) => rollback.run(&rest).await,
                Command::Compare(compare) => compare.run(session).await,
            }
        })
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::List { json } | Self::Show { json, .. } | Self::Calibration { json } => *json,
            Self::Reload(reload) => reload.json,
            Self::Versions(versions) => versions.json,
            Self::Promote(promote) => promote.is_in_json(),
            Self::Rollback(rollback) => rollback.is_in_json(),
            Self::Compare(compare) => compare.json,
        }
    }
}

async fn list(rest: &Rest, json: bool) -> Result<ExitCode, CommandError> {
    let mut answer = rest.get("/api/v1/orchestration/agents/state").await?;
    let agents = answer["agents"].take();
    if json {
        say!("{agents:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let head = [
        "agent",
        "type",
        "environment",
        "hyperparameters",
        "answers by",
        "mean return",
        "steps",
        "state",
    ];
    let agents = agents.as_array().cloned().unwrap_or_default();
    listing::table(&head, &agents, row);
    Ok(ExitCode::SUCCESS)
}

fn row(agent: &Value) -> Vec<String> {
    vec![
        text(&agent["agent_id"]),
        text(&agent["agent_type"]),
        listing::world_of(agent),
        version(&agent["version"]),
        answers_by(agent),
        listing::rounded(&agent["last_return"]),
        short(&agent["total_steps"]),
        state(agent).to_owned(),
    ]
}

/// A version of the hyperparameters; those of the weights are counted by themselves.
fn version(number: &Value) -> String {
    format!("version {}", short(number))
}

/// What answers for an agent: weights, a rule, or what acts for it as long as nothing was made live.
fn answers_by(agent: &Value) -> String {
    let (rule, version) = (text(&agent["rule"]), short(&agent["weights_version"]));
    let default = text(&agent["default_rule"]);
    match (rule.as_str(), version.as_str(), default.as_str()) {
        ("", "0", "") => "nothing yet".to_owned(),
        ("", "0", default) => format!("default rule {default}"),
        ("", version, _) => format!("weights version {version}"),
        (rule, version, _) => format!("rule {rule} (weights version {version})"),
    }
}

/// What keeps an agent from being as it was approved.
fn state(agent: &Value) -> &'static str {
    if agent["hold"].is_object() {
        "held"
    } else if agent["drift"].is_object() {
        "drifted"
    } else {
        "approved"
    }
}

async fn agent(rest: &Rest, id: &str) -> Result<Value, CommandError> {
    let answer = rest.get(&path(id)).await;
    Ok(answer.map_err(|e| advice::add(e, ADVICE, &id))?["agent"].take())
}

async fn show(rest: &Rest, id: &str, json: bool) -> Result<ExitCode, CommandError> {
    let agent = agent(rest, id).await?;
    if json {
        say!("{agent:#}");
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in [
        ("agent", text(&agent["agent_id"])),
        ("type", text(&agent["agent_type"])),
        ("environment", listing::world_of(&agent)),
        ("state", state(&agent).to_owned()),
        (
            "hyperparameters",
            format!(
                "{}, {} approved",
                version(&agent["version"]),
                version(&agent["approved_version"])
            ),
        ),
        ("answers by", answers_by(&agent)),
        ("rules", words(&agent["rules"])),
        ("shadow", weights(&agent["shadow_version"])),
        ("canary", weights(&agent["canary_version"])),
        ("mean return", listing::rounded(&agent["last_return"])),
        ("steps", short(&agent["total_steps"])),
        ("episodes", short(&agent["total_episodes"])),
        ("updated", text(&agent["updated_at"])),
        ("held by", text(&agent["hold"]["change_id"])),
    ] {
        if !value.is_empty() {
            say!("{name:<15} {value}");
        }
    }
    say!("");
    let rows = hyperparameters(&agent);
    listing::table(&["hyperparameter", "live", "approved"], &rows, |row| {
        let name = text(&row[0]);
        let shown = |value| listing::hyperparameter(&name, value);
        vec![name.clone(), shown(&row[1]), shown(&row[2])]
    });
    if state(&agent) == "held" {
        let change = text(&agent["hold"]["change_id"]);
        note!("`tars proposals watch {change}` follows the change that holds it");
    }
    Ok(ExitCode::SUCCESS)
}

/// A version of the weights; empty where none is there.
fn weights(number: &Value) -> String {
    match text(number) {
        none if none.is_empty() => none,
        number => format!("weights version {number}"),
    }
}

/// A list of words, separated by commas.
fn words(list: &Value) -> String {
    let words = list.as_array().into_iter().flatten();
    words.map(text).collect::<Vec<_>>().join(", ")
}

/// Each hyperparameter with its live and its approved value.
fn hyperparameters(agent: &Value) -> Vec<Value> {
    let drifted = agent["drift"]["parameters"].as_array();
    let approved = |name: &str, live: &Value| {
        let mut drifted = drifted.into_iter().flatten();
        let found = drifted.find(|d| d["name"] == name);
        found.map_or(live, |d| &d["approved"]).clone()
    };
    let live = agent["hyperparameters"].as_object().into_iter().flatten();
    live.map(|(name, value)| json!([name, value, approved(name, value)]))
        .collect()
}

/// Names the replicas that may not serve a change yet.
fn note_pending(answer: &Value) {
    let pending = answer["pending_replicas"].as_array();
    for replica in pending.into_iter().flatten() {
        note!("the replica {} has not reported it yet", short(replica));
    }
}

impl Reload {
    async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let (id, json) = (&self.agent_id, self.json);
        let known = match self.preset {
            true => presets::of(&agent(rest, id).await?)?,
            false => Map::new(),
        };
        let body = self.body(known);
        let answer = rest.post(&format!("{}/reload", path(id)), body).await;
        let answer = answer.map_err(|e| advice::add(e, ADVICE, &id))?;
        if json {
            say!("{answer:#}");
            return Ok(ExitCode::SUCCESS);
        }
        say!(
            "version {} of the hyperparameters is live",
            short(&answer["version"])
        );
        note_pending(&answer);
        Ok(ExitCode::SUCCESS)
    }

    /// The request; what was given replaces what is known.
    fn body(&self, mut values: Map<String, Value>) -> Value {
        values.extend(self.values.iter().cloned());
        let mut body = json!({ "hyperparameters": values, "reason": self.reason });
        if let Some(version) = self.expect_version {
            // JSON numbers of clients have 53 bits.
            body["expected_version"] = json!(version.to_string());
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_a_name_and_a_number_or_a_flag() {
        let parsed = |text| assignment(text).unwrap();
        assert_eq!(parsed("gamma=0.99"), ("gamma".into(), json!(0.99)));
        assert_eq!(
            parsed("double_dqn=false"),
            ("double_dqn".into(), json!(false))
        );
        for wrong in [
            "gamma",
            "gamma=",
            "=1",
            "gamma=x",
            "gamma=\"1\"",
            "gamma=[1]",
            "gamma=null",
        ] {
            assert!(assignment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_given_replaces_what_is_known() {
        let reload = Reload {
            agent_id: "policy".to_owned(),
            values: vec![("gamma".to_owned(), json!(0.5))],
            preset: true,
            expect_version: None,
            reason: String::new(),
            json: false,
        };
        let known = [("gamma", json!(0.9)), ("tau", json!(1.0))];
        let known = known.map(|(name, value)| (name.to_owned(), value));
        let body = reload.body(known.into_iter().collect());
        let expected = json!({ "gamma": 0.5, "tau": 1.0 });
        assert_eq!(body["hyperparameters"], expected);
    }

    #[test]
    fn what_answers_is_weights_or_a_rule() {
        let agent = |version: &str, rule: &str, default: &str| json!({ "weights_version": version, "rule": rule, "default_rule": default });
        for (agent, shown) in [
            (agent("0", "", "aimd"), "default rule aimd"),
            (agent("0", "", ""), "nothing yet"),
            (agent("3", "", "aimd"), "weights version 3"),
            (agent("4", "hold", "aimd"), "rule hold (weights version 4)"),
        ] {
            assert_eq!(answers_by(&agent), shown);
        }
    }

    #[test]
    fn drifted_values_are_shown_beside_the_approved_ones() {
        let agent = json!({
            "hyperparameters": { "gamma": 0.9, "tau": 1 },
            "drift": { "parameters": [{ "name": "gamma", "approved": 0.99, "live": 0.9 }] },
        });
        let rows = [json!(["gamma", 0.9, 0.99]), json!(["tau", 1, 1])];
        assert_eq!(hyperparameters(&agent), rows);
        assert_eq!(state(&agent), "drifted");
        assert_eq!(state(&json!({ "hold": {} })), "held");
        assert_eq!(state(&json!({})), "approved");
    }
}
