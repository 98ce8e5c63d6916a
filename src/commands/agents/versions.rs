//! The versions of an agent's weights: `tars agents versions`, `promote` and `rollback`.

use super::{AGENTS, HELD, path};
use crate::{
    commands::{
        CommandError,
        advice::{self, Advice},
        listing::{self, number, short, text, word},
    },
    rest::Rest,
};
use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_proto::reason;

const ADVICE: &[Advice] = &[
    (reason::CHANGE_IN_PROGRESS, HELD),
    (
        reason::NEEDS_ATTENTION,
        "`tars proposals show {named}` shows it",
    ),
    (reason::VERSION_CHANGED, RETAINED),
    (reason::UNUSABLE_VERSION, RETAINED),
    (
        reason::NOT_COMPARED,
        "`tars agents compare {id} --version {version}` compares it",
    ),
    (
        reason::GOVERNED,
        "`tars proposals promote {id} {version}` proposes it",
    ),
    (
        reason::STAGE_ORDER,
        "`tars agents versions {id}` shows where each version stands; one step up is \
         `tars agents promote {id} {version}` to SHADOW, and `tars proposals promote {id} {version}` from there",
    ),
    (
        reason::NOT_BOUND,
        "without --stage, `tars agents promote {id} {version}` makes it live",
    ),
    (
        reason::NOT_BETTER,
        "`tars agents compare {id} --version {version} --stored` shows the comparison: train it further, or promote the rule that is better",
    ),
    (
        reason::CANARY_UNPROVEN,
        "`tars agents versions {id} --json` has the steps of each version",
    ),
    (
        reason::UNCALIBRATED,
        "`tars agents calibration` shows what was measured",
    ),
    (
        reason::NO_EARLIER_VERSION,
        "`tars agents versions {id}` shows those that are retained",
    ),
];
const STAGE: &str = "AGENT_STAGE_";
const RETAINED: &str =
    "`tars agents versions {id}` shows those that are retained, and the live one";
/// What helps where something that is named does not exist.
const MISSING: &[Advice] = &[
    AGENTS,
    ("rule", "`tars agents show {id}` lists its rules"),
    ("version", RETAINED),
];
/// How far back it is looked for what the live version is a copy of.
const RECENT: usize = 10;

/// An agent whose versions are listed.
#[derive(Debug, Args)]
pub(super) struct Versions {
    /// The agent, as `tars agents list` shows it.
    #[arg(value_name = "AGENT")]
    agent_id: String,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// What is to be live: a version, or a rule.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("what").required(true).args(["version", "rule"])),
    // The one that is made of the group has it before the agent.
    override_usage = "tars agents promote [OPTIONS] <AGENT> <VERSION|--rule <NAME>>"
)]
pub(super) struct Promote {
    /// The agent, as `tars agents list` shows it.
    #[arg(value_name = "AGENT")]
    agent_id: String,
    /// The version, as `tars agents versions` shows it.
    #[arg(
        value_name = "VERSION",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    version: Option<u64>,
    /// A rule of the agent instead, as `tars agents show` lists them.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// Where the version of an agent that is bound to the live mesh is to stand; one step up if none is given.
    #[arg(long, value_name = "STAGE", value_parser = ["sim", "shadow", "canary", "active"])]
    stage: Option<String>,
    #[command(flatten)]
    how: How,
}

/// An agent to roll back.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The agent, as `tars agents list` shows it.
    #[arg(value_name = "AGENT")]
    agent_id: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Refuse unless this version of the weights is live.
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

impl Versions {
    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let path = format!("{}/versions", path(&self.agent_id));
        let versions = listing::all(rest, &path, "versions").await;
        let versions =
            versions.map_err(|e| advice::add_by_kind(e, MISSING, &[], &self.agent_id))?;
        if self.json {
            say!("{:#}", Value::Array(versions));
            return Ok(ExitCode::SUCCESS);
        }
        let head = [
            "version",
            "live since",
            "type",
            "mean return",
            "from",
            "run",
            "state",
            "last fall",
        ];
        listing::table(&head, &versions, row);
        Ok(ExitCode::SUCCESS)
    }
}

fn row(version: &Value) -> Vec<String> {
    let state = match word(&version["stage"], STAGE).as_str() {
        _ if version["live"] == true => "live".to_owned(),
        below @ ("sim" | "shadow" | "canary") => below.to_owned(),
        _ => String::new(),
    };
    vec![
        short(&version["version"]),
        short(&version["live_since"]),
        kind(version),
        listing::rounded(&version["mean_return"]),
        short(&version["restored_from"]),
        text(&version["run_id"]),
        state,
        last_fall(&version["last_fall"]),
    ]
}

/// `2026-11-01T00:00:00Z from CANARY: an action was not finite`; empty where a version never fell.
fn last_fall(fall: &Value) -> String {
    if !fall.is_object() {
        return String::new();
    }
    let at = text(&fall["at"]);
    let from = match word(&fall["from"], STAGE).as_str() {
        "" | "unspecified" => String::new(),
        from => format!("from {}", from.to_uppercase()),
    };
    let known = [at, from];
    let known = known.iter().filter(|part| !part.is_empty());
    let known: Vec<&str> = known.map(String::as_str).collect();
    match known.is_empty() {
        true => text(&fall["reason"]),
        false => format!("{}: {}", known.join(" "), text(&fall["reason"])),
    }
}

/// The newest versions of an agent.
async fn recent(rest: &Rest, id: &str) -> Result<Vec<Value>, CommandError> {
    let versions = format!("{}/versions", path(id));
    Ok(listing::first(rest, &versions, "versions", RECENT).await?)
}

/// What the live version is a copy of, if it is one of these: `, a copy of version 3`.
fn origin(agent: &Value, versions: &[Value]) -> String {
    let is_live = |version: &&Value| version["version"] == agent["weights_version"];
    let live = versions.iter().find(is_live);
    let from = live.map_or(&Value::Null, |version| &version["restored_from"]);
    match from.is_null() || !text(&agent["rule"]).is_empty() {
        true => String::new(),
        false => format!(", a copy of version {}", short(from)),
    }
}

/// What learned the policy, or the rule.
fn kind(version: &Value) -> String {
    match text(&version["rule"]) {
        rule if rule.is_empty() => text(&version["agent_type"]),
        rule => rule,
    }
}

impl Promote {
    pub(super) fn is_in_json(&self) -> bool {
        self.how.json
    }

    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let outcome = |agent: &Value| self.outcome(agent);
        let done = self
            .how
            .change(rest, &self.agent_id, "promote", self.body(), outcome);
        done.await.map_err(|e| of_version(e, self.version))
    }

    /// Where the version stands now, or what is live.
    fn outcome(&self, agent: &Value) -> String {
        let Some(version) = self.version else {
            return live(agent);
        };
        let is_in = |stage: &&str| {
            let there = number(&agent[format!("{stage}_version")]);
            there == Some(version as f64)
        };
        let stage = ["shadow", "canary"].into_iter().find(is_in);
        match stage.or(self.stage.as_deref().filter(|stage| *stage == "sim")) {
            Some(stage) => format!("version {version} is in {}", stage.to_uppercase()),
            None => live(agent),
        }
    }

    fn body(&self) -> Value {
        let mut body = self.how.body();
        match (&self.rule, self.version) {
            (Some(rule), _) => body["rule"] = json!(rule),
            (None, version) => body["version"] = json!(version.unwrap_or(0).to_string()),
        }
        if let Some(stage) = &self.stage {
            body["stage"] = json!(format!("{STAGE}{}", stage.to_uppercase()));
        }
        body
    }
}

/// An error whose advice is about the version that was named.
fn of_version(error: CommandError, version: Option<u64>) -> CommandError {
    let named = version.map_or_else(|| "VERSION".to_owned(), |version| version.to_string());
    match error {
        CommandError::Advised { error, advice } => CommandError::Advised {
            error,
            advice: advice.replace("{version}", &named),
        },
        other => other,
    }
}

impl Rollback {
    pub(super) fn is_in_json(&self) -> bool {
        self.how.json
    }

    pub(super) async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let body = self.how.body();
        self.how
            .change(rest, &self.agent_id, "rollback", body, live)
            .await
            .map_err(|e| of_version(e, None))
    }
}

impl How {
    fn body(&self) -> Value {
        let mut body = json!({ "reason": self.reason });
        if let Some(version) = self.expect_version {
            // JSON numbers of clients have 53 bits.
            body["expected_weights_version"] = json!(version.to_string());
        }
        body
    }

    async fn change(
        &self,
        rest: &Rest,
        id: &str,
        method: &str,
        body: Value,
        outcome: impl Fn(&Value) -> String,
    ) -> Result<ExitCode, CommandError> {
        let answer = rest.post(&format!("{}/{method}", path(id)), body).await;
        let answer = answer.map_err(|e| advice::add_by_kind(e, MISSING, ADVICE, &id))?;
        if self.json {
            say!("{answer:#}");
            return Ok(ExitCode::SUCCESS);
        }
        let (agent, said) = (&answer["agent"], outcome(&answer["agent"]));
        let origin = match said == live(agent) {
            true => self::origin(agent, &recent(rest, id).await?),
            false => String::new(),
        };
        say!("{said}{origin}");
        super::note_pending(&answer);
        Ok(ExitCode::SUCCESS)
    }
}

/// What is live now: weights, or a rule.
fn live(agent: &Value) -> String {
    let version = short(&agent["weights_version"]);
    match text(&agent["rule"]) {
        rule if rule.is_empty() => format!("version {version} of the weights is live"),
        rule => format!("version {version}, the rule {rule}, is live"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::RestError;

    fn promote(version: Option<u64>, rule: Option<&str>, stage: Option<&str>) -> Promote {
        Promote {
            agent_id: "policy".to_owned(),
            version,
            rule: rule.map(str::to_owned),
            stage: stage.map(str::to_owned),
            how: How {
                expect_version: None,
                reason: String::new(),
                json: false,
            },
        }
    }

    #[test]
    fn a_promotion_prints_the_stage_of_its_version_and_otherwise_what_is_live() {
        // Untrained, with versions on the ladder.
        let agent = json!({
            "weights_version": "0", "rule": "", "shadow_version": "3", "canary_version": "2",
        });
        for (version, stage, outcome) in [
            (3, None, "version 3 is in SHADOW"),
            (2, None, "version 2 is in CANARY"),
            (1, Some("sim"), "version 1 is in SIM"),
        ] {
            assert_eq!(promote(Some(version), None, stage).outcome(&agent), outcome);
        }
        let agent = json!({ "weights_version": "4", "rule": "", "shadow_version": "3" });
        for stage in [None, Some("active")] {
            let outcome = promote(Some(2), None, stage).outcome(&agent);
            assert_eq!(outcome, "version 4 of the weights is live");
        }
        let agent = json!({ "weights_version": "5", "rule": "aimd", "shadow_version": "3" });
        let outcome = promote(None, Some("aimd"), None).outcome(&agent);
        assert_eq!(outcome, "version 5, the rule aimd, is live");
    }

    #[test]
    fn a_version_is_shown_with_its_origin() {
        let version = json!({
            "version": "3", "live": true, "agent_type": "dqn", "run_id": "r", "mean_return": 21.5,
            "restored_from": "1", "live_since": "2026-01-01T00:00:00Z",
        });
        let cells = [
            "3",
            "2026-01-01T00:00:00Z",
            "dqn",
            "21.50",
            "1",
            "r",
            "live",
            "",
        ];
        assert_eq!(row(&version), cells);
        let trained = json!({ "version": "2", "run_id": "", "mean_return": null });
        assert_eq!(row(&trained), ["2", "-", "", "-", "-", "", "", ""]);
        let rule = json!({ "version": "4", "agent_type": "", "rule": "aimd" });
        assert_eq!(row(&rule)[2], "aimd");
        let state = |stage: &str| row(&json!({ "stage": stage }))[6].clone();
        assert_eq!(state("AGENT_STAGE_CANARY"), "canary");
        assert_eq!(state("AGENT_STAGE_RETIRED"), "");
    }

    #[test]
    fn a_version_that_fell_is_shown_with_when_from_where_and_why() {
        let shown = |fall: Value| row(&json!({ "version": "3", "last_fall": fall })).pop();
        let fall = json!({
            "at": "2026-11-01T00:00:00Z", "from": "AGENT_STAGE_CANARY", "reason": "it was blocked",
        });
        let told = "2026-11-01T00:00:00Z from CANARY: it was blocked";
        assert_eq!(shown(fall).as_deref(), Some(told));
        let old = json!({ "reason": "it was blocked" });
        assert_eq!(shown(old).as_deref(), Some("it was blocked"));
        assert_eq!(shown(Value::Null).as_deref(), Some(""));
    }

    #[test]
    fn a_copy_names_what_it_is_a_copy_of() {
        let versions = [
            json!({ "version": "9", "restored_from": "1" }),
            json!({ "version": "8", "restored_from": "3" }),
            json!({ "version": "7", "restored_from": null }),
        ];
        let of = |version: &str, rule: &str| {
            origin(
                &json!({ "weights_version": version, "rule": rule }),
                &versions,
            )
        };
        assert_eq!(of("8", ""), ", a copy of version 3");
        for (version, rule) in [("8", "aimd"), ("7", ""), ("2", "")] {
            assert_eq!(of(version, rule), "", "{version} {rule}");
        }
    }

    #[test]
    fn a_refused_promotion_names_the_command_that_goes_on() {
        for (reason, part) in [
            ("GOVERNED", "`tars proposals promote policy 3`"),
            ("STAGE_ORDER", "`tars proposals promote policy 3`"),
            ("NOT_COMPARED", "`tars agents compare policy --version 3`"),
            ("NOT_BOUND", "`tars agents promote policy 3`"),
        ] {
            let refused = RestError::Refused {
                method: http::Method::POST,
                path: "/x".to_owned(),
                status: http::StatusCode::BAD_REQUEST,
                message: "it stays in SIM: PromoteAgent leads down".to_owned(),
                body: json!({ "details": [{ "domain": "tars", "reason": reason }] }),
            };
            let advised = advice::add_by_kind(refused, MISSING, ADVICE, &"policy");
            let told = of_version(advised, Some(3)).to_string();
            assert!(told.contains(part), "{reason}: {told}");
            assert!(
                !told.contains("PromoteAgent") && !told.contains('{'),
                "{told}"
            );
        }
    }

    #[test]
    fn a_version_or_a_rule_is_sent() {
        let sent = promote(Some(3), None, Some("canary")).body();
        let staged = json!({ "reason": "", "version": "3", "stage": "AGENT_STAGE_CANARY" });
        assert_eq!(sent, staged);
        let sent = promote(None, Some("aimd"), None).body();
        assert_eq!(sent, json!({ "reason": "", "rule": "aimd" }));
    }

    #[test]
    fn an_expected_version_is_sent_as_a_text() {
        let how = |expect_version| How {
            expect_version,
            reason: "why".to_owned(),
            json: false,
        };
        assert_eq!(how(None).body(), json!({ "reason": "why" }));
        let sent = how(Some(u64::MAX)).body();
        assert_eq!(sent["expected_weights_version"], u64::MAX.to_string());
    }
}
