//! `tars agents compare`: whether a version is as good as what answers now, and as the agent's rules.

use super::{AGENTS, path};
use crate::{
    commands::{
        CommandError,
        advice::{self, Advice},
        listing::{self, text, word},
    },
    rest::Rest,
};
use clap::Args;
use serde_json::{Value, json};
use std::{io::IsTerminal, process::ExitCode};
use tars_proto::reason;

const ADVICE: &[Advice] = &[
    (
        reason::UNTRAINED,
        "`tars agents versions {id}` shows the versions, `--version` names one, `tars training start --agents {id}` makes \
         another",
    ),
    (
        reason::DEADLINE_EXCEEDED,
        "nothing was stored; fewer `--seeds` take less time, and 10 are a third of the usual ones",
    ),
];
/// How many episodes are played where nobody says it.
const SEEDS: u32 = 30;
/// What helps where something that is named does not exist.
const MISSING: &[Advice] = &[
    AGENTS,
    (
        "version",
        "`tars agents versions {id}` shows those that are retained",
    ),
    (
        "comparison of version",
        "without `--stored`, one is made now",
    ),
];

/// A version to compare.
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// The agent, as `tars agents list` shows it.
    #[arg(value_name = "AGENT")]
    agent_id: String,
    /// The version, as `tars agents versions` shows it; the live one if none is given.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,
    /// How many episodes; 30 if none is given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=200))]
    seeds: Option<u32>,
    /// Show the stored comparison instead.
    #[arg(long, conflicts_with = "seeds")]
    stored: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Compare {
    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let agent = path(&self.agent_id);
        if !self.stored && std::io::stderr().is_terminal() {
            let seeds = self.seeds.unwrap_or(SEEDS);
            note!(
                "playing {seeds} episodes against each rule; ^C ends it, and nothing is stored then"
            );
        }
        let answer = match self.stored {
            true => rest.get(&self.stored_at(&agent)).await,
            false => rest.post(&format!("{agent}/compare"), self.body()).await,
        };
        let answer = answer.map_err(|e| advice::add_by_kind(e, MISSING, ADVICE, &self.agent_id))?;
        let found = &answer["comparison"];
        if self.json {
            say!("{found:#}");
            return Ok(ExitCode::SUCCESS);
        }
        say!(
            "version {} earns a mean reward of {} a step, on {} seeds of the calibration {}{}",
            text(&found["version"]),
            number(&found["mean"]),
            found["seeds"],
            text(&found["calibration"]),
            if is_live(found) { "; it is live" } else { "" },
        );
        say!("");
        let head = [
            "against",
            "reward a step",
            "difference",
            "95 % interval",
            "verdict",
        ];
        listing::table(&head, &rows(found), row);
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        let mut body = json!({});
        if let Some(version) = self.version {
            // JSON numbers of clients have 53 bits.
            body["version"] = json!(version.to_string());
        }
        if let Some(seeds) = self.seeds {
            body["seeds"] = json!(seeds);
        }
        body
    }

    fn stored_at(&self, agent: &str) -> String {
        let version = self.version.map(|version| format!("?version={version}"));
        format!("{agent}/comparison{}", version.unwrap_or_default())
    }
}

/// Whether the version was the live one when it was compared.
fn is_live(found: &Value) -> bool {
    found["incumbent_version"] == found["version"]
}

/// The incumbent, unless it is the version itself or has a row as one of the rules, then the rules.
fn rows(found: &Value) -> Vec<Value> {
    let rules = found["rules"].as_array().into_iter().flatten();
    let mut all_rules = rules.clone();
    let is_among = all_rules.any(|rule| rule["name"] == found["incumbent_rule"]);
    let incumbent = (!is_live(found) && !is_among).then_some(&found["incumbent"]);
    let mark = |against: &Value| {
        let mut against = against.clone();
        if against["name"] == found["incumbent_rule"] {
            against["name"] = format!("{}, which answers", text(&against["name"])).into();
        }
        against
    };
    incumbent.into_iter().chain(rules).map(mark).collect()
}

fn row(against: &Value) -> Vec<String> {
    let (low, high) = (number(&against["low"]), number(&against["high"]));
    vec![
        text(&against["name"]),
        number(&against["mean"]),
        number(&against["difference"]),
        format!("{low} to {high}"),
        word(&against["verdict"], "VERDICT_"),
    ]
}

fn number(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(String::new, |n| format!("{n:+.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incumbent_and_each_rule_have_a_line_whatever_they_say() {
        let against = |name: &str, verdict: &str| {
            json!({
                "name": name, "mean": 0.5, "difference": -0.25, "low": -0.375, "high": 0.125,
                "verdict": format!("VERDICT_{verdict}"),
            })
        };
        let mut found = json!({
            "version": "4", "incumbent_version": "3", "incumbent_rule": "",
            "incumbent": against("version 3", "UNDECIDED"),
            "rules": [against("aimd", "WORSE")],
        });
        let lines: Vec<_> = rows(&found).iter().map(row).collect();
        let numbers = ["+0.5000", "-0.2500", "-0.3750 to +0.1250"];
        assert_eq!(lines[0][0], "version 3");
        assert_eq!(lines[0][1..4], numbers);
        assert_eq!(lines[1][4], "worse");
        assert_eq!(lines.len(), 2);

        let names = |found: &Value| -> Vec<String> {
            let rows = rows(found);
            rows.iter().map(|row| text(&row["name"])).collect()
        };
        found["incumbent_version"] = json!("4");
        assert_eq!(names(&found), ["aimd"], "nothing is compared with itself");
        found["incumbent_version"] = json!("0");
        found["incumbent_rule"] = json!("aimd");
        assert_eq!(names(&found), ["aimd, which answers"], "it has one row");
    }

    #[test]
    fn what_is_not_given_is_left_to_the_mesh() {
        let compare = |version, seeds| Compare {
            agent_id: "policy".to_owned(),
            version,
            seeds,
            stored: false,
            json: false,
        };
        assert_eq!(compare(None, None).body(), json!({}));
        let all = compare(Some(3), Some(40));
        assert_eq!(all.body(), json!({ "version": "3", "seeds": 40 }));
        assert_eq!(all.stored_at("/a"), "/a/comparison?version=3");
        assert_eq!(compare(None, None).stored_at("/a"), "/a/comparison");
    }
}
