//! `tars agents compare`: whether a version is as good as what answers now, and as the agent's rules.

use super::{AGENTS, path};
use crate::{
    commands::{
        CommandError,
        advice::{self, Advice},
        listing::{self, text, word},
        progress::Progress,
        session::Session,
    },
    rest::{Rest, RestError},
};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::{process::ExitCode, time::Duration};
use tars_proto::reason;
use tokio::{
    signal::ctrl_c,
    time::{Instant, sleep},
};

const ADVICE: &[Advice] = &[(
    reason::UNTRAINED,
    "`tars agents versions {id}` shows the versions, `--version` names one, `tars training start --agents {id}` makes \
     another",
)];
/// How many episodes are played where nobody says it.
const SEEDS: u32 = 30;
/// How long it is waited for a comparison that takes longer than a call, and how often it is looked for.
const WAIT: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(2);
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
    pub(super) async fn run(self, session: &mut Session) -> Result<ExitCode, CommandError> {
        let found = match self.stored {
            true => self.look(&session.rest()).await,
            false => self.followed(session).await,
        }?;
        if self.json {
            say!("{found:#}");
            return Ok(ExitCode::SUCCESS);
        }
        say!("{}", headline(&found));
        say!("");
        let head = [
            "against",
            "reward per step",
            "difference",
            "95 % interval",
            "verdict",
        ];
        listing::table(&head, &rows(&found), row);
        Ok(ExitCode::SUCCESS)
    }

    fn advised(&self, error: RestError) -> CommandError {
        advice::add_by_kind(error, MISSING, ADVICE, &self.agent_id)
    }

    /// The stored comparison.
    async fn look(&self, rest: &Rest) -> Result<Value, CommandError> {
        let answer = rest.get(&self.stored_at(&path(&self.agent_id))).await;
        Ok(answer.map_err(|e| self.advised(e))?["comparison"].take())
    }

    /// The stored comparison, if there is one.
    async fn stored(&self, rest: &Rest) -> Result<Value, CommandError> {
        match rest.get(&self.stored_at(&path(&self.agent_id))).await {
            Ok(mut answer) => Ok(answer["comparison"].take()),
            // Whatever else is missing, the comparison is refused for it.
            Err(e) if e.reason() == Some(reason::NOT_FOUND) => Ok(Value::Null),
            Err(e) if e.reason() == Some(reason::UNTRAINED) => Ok(Value::Null),
            Err(e) => Err(self.advised(e)),
        }
    }

    /// Makes a comparison, and shows meanwhile that it is being made.
    async fn followed(&self, session: &mut Session) -> Result<Value, CommandError> {
        let before = self.stored(&session.rest()).await?;
        let bar = Progress::new(self.json).spinner("comparing");
        let seeds = self.seeds.unwrap_or(SEEDS);
        bar.set_message(format!("{seeds} episodes against each rule"));
        let found = tokio::select! {
            found = self.made(session, &before, &bar) => found,
            interrupted = ctrl_c() => {
                interrupted.map_err(CommandError::Runtime)?;
                let shows = self.shows();
                let goes_on = format!("the comparison, which {shows} shows once it is made,");
                Err(CommandError::Unfollowed { goes_on })
            }
        };
        bar.finish_and_clear();
        found
    }

    /// A comparison that takes longer than a call goes on in the mesh.
    async fn made(
        &self,
        session: &mut Session,
        before: &Value,
        bar: &ProgressBar,
    ) -> Result<Value, CommandError> {
        let compare = format!("{}/compare", path(&self.agent_id));
        match session.rest().post(&compare, self.body()).await {
            Ok(mut answer) => Ok(answer["comparison"].take()),
            Err(e) if e.reason() == Some(reason::DEADLINE_EXCEEDED) => {
                let message = bar.message();
                bar.set_message(format!("{message}, longer than a call may take:"));
                self.waited_for(session, before).await
            }
            Err(e) => Err(self.advised(e)),
        }
    }

    /// Looks until another comparison is stored than before.
    async fn waited_for(
        &self,
        session: &mut Session,
        before: &Value,
    ) -> Result<Value, CommandError> {
        let until = Instant::now() + WAIT;
        let keeps = self.is_kept(before);
        while !keeps && Instant::now() < until {
            sleep(LOOK).await;
            session.freshen(None).await?;
            let found = self.stored(&session.rest()).await?;
            if found["compared_at"] != before["compared_at"] {
                return Ok(found);
            }
        }
        let shows = self.shows();
        Err(CommandError::Failed(match keeps {
            true => format!(
                "the comparison takes longer than a call may, and one on more seeds is stored, which it does not replace: {shows} shows that"
            ),
            false => format!(
                "the comparison is not made yet, and goes on: {shows} shows it once it is, or the log of Orchestration why it failed"
            ),
        }))
    }

    /// Whether a stored comparison on more seeds stays, unless something else answers by now.
    fn is_kept(&self, stored: &Value) -> bool {
        let seeds = listing::number(&stored["seeds"]).unwrap_or_default();
        seeds > f64::from(self.seeds.unwrap_or(SEEDS))
    }

    /// The command that shows the stored comparison.
    fn shows(&self) -> String {
        let version = self.version.map(|version| format!(" --version {version}"));
        let version = version.unwrap_or_default();
        format!("`tars agents compare {}{version} --stored`", self.agent_id)
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

/// What the version earns, on what, and when that was measured.
fn headline(found: &Value) -> String {
    let at = match text(&found["compared_at"]) {
        unknown if unknown.is_empty() => unknown,
        at => format!(", at {at}"),
    };
    format!(
        "version {} earns {} reward per step on {} seeds of the calibration {}{at}{}",
        text(&found["version"]),
        number(&found["mean"]),
        found["seeds"],
        text(&found["calibration"]),
        if is_live(found) { "; it is live" } else { "" },
    )
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
        assert_eq!(
            all.shows(),
            "`tars agents compare policy --version 3 --stored`"
        );
    }

    #[test]
    fn a_comparison_on_more_seeds_is_not_waited_for() {
        let compare = Compare {
            agent_id: "policy".to_owned(),
            version: None,
            seeds: None,
            stored: false,
            json: false,
        };
        for (seeds, kept) in [(30, false), (31, true), (2, false)] {
            assert_eq!(compare.is_kept(&json!({ "seeds": seeds })), kept);
        }
        assert!(!compare.is_kept(&Value::Null));
    }

    #[test]
    fn what_is_shown_says_when_it_was_measured() {
        let mut found = json!({
            "version": "4", "incumbent_version": "4", "mean": 0.5, "seeds": 30, "calibration": "shipped",
            "compared_at": "2026-11-01T00:00:00Z",
        });
        assert_eq!(
            headline(&found),
            "version 4 earns +0.5000 reward per step on 30 seeds of the calibration shipped, \
             at 2026-11-01T00:00:00Z; it is live"
        );
        found["compared_at"] = Value::Null;
        found["incumbent_version"] = json!("3");
        assert!(headline(&found).ends_with("calibration shipped"));
    }
}
