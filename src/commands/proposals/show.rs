//! A proposal as its approver reads it.

use super::{SEEDS, Until, advised, assessment_state, path, promotion, state};
use crate::{
    commands::{
        CommandError,
        listing::{self, short, text},
        plain,
    },
    rest::Rest,
};
use serde_json::Value;
use std::process::ExitCode;
use uuid::Uuid;

pub(super) async fn read(rest: &Rest, id: Uuid) -> Result<Value, CommandError> {
    let answer = rest.get(&path(id)).await;
    Ok(answer.map_err(|e| advised(e, &id))?["proposal"].take())
}

pub(super) async fn show(rest: &Rest, id: Uuid, json: bool) -> Result<ExitCode, CommandError> {
    let proposal = read(rest, id).await?;
    if json {
        say!("{proposal:#}");
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in lines(&proposal) {
        say!("{name:<12} {value}");
    }
    if let Some(step) = promotion::of(&proposal) {
        promotion::print_comparison(step);
        next_step(&proposal);
        return Ok(ExitCode::SUCCESS);
    }
    let changes = proposal["changes"].as_array().cloned().unwrap_or_default();
    say!("");
    let head = ["hyperparameter", "when proposed", "live", "proposed"];
    listing::table(&head, &changes, |change| {
        let name = text(&change["name"]);
        let values = ["current", "live", "proposed"].map(|side| short(&change[side]));
        std::iter::once(name).chain(values).collect()
    });
    next_step(&proposal);
    Ok(ExitCode::SUCCESS)
}

/// The fields of a proposal, by their names in the output; empty ones are left out.
fn lines(proposal: &Value) -> Vec<(&'static str, String)> {
    let of = |name: &str| text(&proposal[name]);
    let lines = [
        ("proposal", of("update_id")),
        ("state", state(proposal)),
        ("attention", plain::text(&of("attention"))),
        ("error", plain::text(&of("error_message"))),
        ("stale", stale(proposal)),
        ("agent", of("agent_id")),
        ("study", study(proposal)),
        (
            "promotion",
            promotion::of(proposal)
                .map(promotion::step)
                .unwrap_or_default(),
        ),
        ("proposed by", of("proposed_by")),
        ("note", of("note")),
        ("assessment", assessment(proposal)),
        ("decided by", decided(proposal)),
        ("reason", of("reason")),
        ("applied by", of("applied_by")),
        ("verification", verification(proposal)),
        ("version", version(proposal)),
        ("resolved by", of("resolved_by")),
        ("because", of("resolution_reason")),
        ("created", of("created_at")),
        ("ended", of("ended_at")),
    ];
    lines
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn study(proposal: &Value) -> String {
    match promotion::of(proposal) {
        Some(_) => String::new(),
        None => format!(
            "{}, trial {}",
            text(&proposal["study_id"]),
            short(&proposal["trial_number"])
        ),
    }
}

fn verification(proposal: &Value) -> String {
    match promotion::of(proposal) {
        Some(step) => promotion::verified(step),
        None => measured(&proposal["verification"]),
    }
}

fn stale(proposal: &Value) -> String {
    if proposal["stale"] != true {
        return String::new();
    }
    if let Some(step) = promotion::of(proposal) {
        return promotion::stale(step);
    }
    let (base, live) = (
        short(&proposal["base_version"]),
        short(&proposal["live_version"]),
    );
    format!("made against version {base} of the hyperparameters, and version {live} is live")
}

fn decided(proposal: &Value) -> String {
    let by = text(&proposal["decided_by"]);
    match proposal["approved_without_assessment"] == true {
        true => format!("{by}, without an assessment"),
        false => by,
    }
}

/// The version of the agent that applying made, and whether it stayed.
fn version(proposal: &Value) -> String {
    let (version, of) = match promotion::of(proposal) {
        Some(step) => (&step["applied_version"], "weights"),
        None => (&proposal["applied_version"], "hyperparameters"),
    };
    if version.is_null() {
        return String::new();
    }
    let version = short(version);
    match state(proposal).as_str() {
        "completed" => format!("{version} of the {of}"),
        "rolled_back" => format!("{version} of the {of}, rolled back since"),
        "kept" => format!("{version} of the {of}; what was live then was kept"),
        _ => format!("{version} of the {of}, not verified yet"),
    }
}

fn assessment(proposal: &Value) -> String {
    let state = assessment_state(proposal);
    match state.as_str() {
        "completed" => match promotion::of(proposal) {
            Some(step) => promotion::compared(step),
            None => measured(&proposal["assessment"]),
        },
        "failed" => format!("failed: {}", text(&proposal["assessment_error"])),
        _ => state.replace('_', " "),
    }
}

/// The mean returns of both sides and the interval of their difference, in one line.
pub(crate) fn measured(verification: &Value) -> String {
    if !verification.is_object() {
        return String::new();
    }
    let of = |name: &str| verification[name].as_f64().unwrap_or(f64::NAN);
    format!(
        "mean return {:.1} -> {:.1} on {} seeds, improvement {:.1} to {:.1} (95 %)",
        of("baseline_return"),
        of("candidate_return"),
        verification["seeds"].as_array().map_or(0, Vec::len),
        of("improvement_low"),
        of("improvement_high"),
    )
}

/// What came of a proposal that is no longer followed.
pub(super) fn outcome(proposal: &Value) {
    let mut shown = vec!["attention", "error", "stale", "verification", "version"];
    if ["pending_approval", "approved"].contains(&&*state(proposal)) {
        shown.push("assessment");
    }
    for (name, value) in lines(proposal) {
        if shown.contains(&name) {
            say!("{name:<12} {value}");
        }
    }
}

/// Why a proposal did not come to what was awaited, and the commands that go on.
pub(super) fn shortfall(proposal: &Value, until: Until) -> String {
    let of = |name: &str| plain::text(&text(&proposal[name]));
    let id = of("update_id");
    let (what, why) = match state(proposal).as_str() {
        _ if until == Until::Assessed => ("was not assessed", of("assessment_error")),
        "needs_attention" => ("needs a person", of("attention")),
        "rejected" => ("was rejected", of("reason")),
        "withdrawn" => ("was withdrawn", of("reason")),
        "rolled_back" => ("was rolled back", of("error_message")),
        "kept" => (
            "was not verified, and what was live was kept",
            of("resolution_reason"),
        ),
        _ => ("failed", of("error_message")),
    };
    let why = match why.is_empty() {
        true => why,
        false => format!(": {why}"),
    };
    let next = next_of(proposal).unwrap_or_else(|| look_or_propose_anew(proposal));
    format!("the proposal {id} {what}{why}; {next}")
}

/// What there is to do about a proposal that has ended: where it was verified on few seeds, more may be surer.
fn look_or_propose_anew(proposal: &Value) -> String {
    let look = format!(
        "`tars proposals show {}` shows it",
        text(&proposal["update_id"])
    );
    let seeds = proposal["verification"]["seeds"].as_array();
    let more = seeds.map_or(0, |seeds| 2 * seeds.len() as i64);
    match state(proposal) == "rolled_back" && SEEDS.contains(&more) {
        true => format!(
            "{look}; `tars proposals propose {} --verification-seeds {more}` is measured on more seeds",
            text(&proposal["study_id"])
        ),
        false => look,
    }
}

/// Prints a proposal that was just made, and what comes next.
pub(super) fn proposed(proposal: &Value, json: bool) {
    if json {
        say!("{proposal:#}");
        return;
    }
    say!("{}: {}", text(&proposal["update_id"]), state(proposal));
    next_step(proposal);
}

/// Tells the commands that a proposal waits for.
pub(super) fn next_step(proposal: &Value) {
    if let Some(next) = next_of(proposal) {
        note!("{next}");
    }
}

/// The commands that a proposal waits for.
fn next_of(proposal: &Value) -> Option<String> {
    let id = text(&proposal["update_id"]);
    let again = match promotion::of(proposal) {
        Some(step) => format!(
            "promote {} {}",
            text(&proposal["agent_id"]),
            short(&step["version"])
        ),
        None => format!("propose {}", text(&proposal["study_id"])),
    };
    let next = match state(proposal).as_str() {
        "pending_approval" | "approved" if proposal["stale"] == true => format!(
            "it can no longer be applied: `tars proposals withdraw {id}`, then `tars proposals {again}`"
        ),
        "pending_approval" if assessment_state(proposal) == "pending" => {
            format!("`tars proposals watch {id}` ends once its assessment is there")
        }
        "pending_approval" => format!(
            "another user than its proposer decides: `tars proposals approve {id}` or `tars proposals reject {id} --reason TEXT`"
        ),
        "approved" => format!("`tars proposals apply {id}` applies it"),
        "needs_attention" => format!(
            "a person decides: `tars proposals resolve {id} roll-back --reason TEXT`, or `keep-live`"
        ),
        _ => return None,
    };
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_measurement_is_one_line_and_empty_before_it_exists() {
        let verification = json!({
            "seeds": ["1", "3"], "baseline_return": 20.04, "candidate_return": 190.0,
            "improvement_low": 150.0, "improvement_high": 180.06,
        });
        let line = "mean return 20.0 -> 190.0 on 2 seeds, improvement 150.0 to 180.1 (95 %)";
        assert_eq!(measured(&verification), line);
        assert_eq!(measured(&Value::Null), "");
    }

    #[test]
    fn an_approver_sees_a_failed_assessment_and_a_stale_base() {
        let proposal = json!({
            "state": "PROPOSAL_STATE_PENDING_APPROVAL", "assessment_state": "ASSESSMENT_STATE_FAILED",
            "assessment_error": "diverged", "stale": true, "base_version": "3", "live_version": "5",
        });
        let lines = lines(&proposal);
        let line = |name: &str| lines.iter().find(|l| l.0 == name).map(|l| l.1.as_str());
        assert_eq!(line("assessment"), Some("failed: diverged"));
        let stale = "made against version 3 of the hyperparameters, and version 5 is live";
        assert_eq!(line("stale"), Some(stale));
        assert_eq!(line("note"), None, "what is absent is left out");
    }

    #[test]
    fn what_did_not_come_to_its_end_says_why_and_how_to_go_on() {
        let seeds = |count: usize| json!({ "seeds": vec!["1"; count] });
        let mut proposal = json!({
            "update_id": "p", "study_id": "s", "state": "PROPOSAL_STATE_ROLLED_BACK",
            "error_message": "no better", "verification": seeds(8),
        });
        assert_eq!(
            shortfall(&proposal, Until::Ended),
            "the proposal p was rolled back: no better; `tars proposals show p` shows it; \
             `tars proposals propose s --verification-seeds 16` is measured on more seeds"
        );
        proposal["verification"] = seeds(64);
        let all = shortfall(&proposal, Until::Ended);
        assert!(all.ends_with("`tars proposals show p` shows it"), "{all}");
        for (state, until, part) in [
            ("FAILED", Until::Ended, "p failed: no better; `tars"),
            ("REJECTED", Until::Decided, "was rejected: too few; `tars"),
            ("NEEDS_ATTENTION", Until::Ended, "person: with keep-live; a"),
            ("NEEDS_ATTENTION", Until::Ended, "tars proposals resolve p"),
            ("APPROVED", Until::Assessed, "assessed: diverged; `tars"),
        ] {
            let proposal = json!({
                "update_id": "p", "state": format!("PROPOSAL_STATE_{state}"), "reason": "too few",
                "error_message": "no better", "assessment_error": "diverged",
                "attention": "with RESOLUTION_KEEP_LIVE",
            });
            let told = shortfall(&proposal, until);
            assert!(told.contains(part), "{state}: {told}");
        }
    }

    #[test]
    fn the_outcome_of_a_proposal_is_shown_with_its_decision() {
        let proposal = json!({
            "state": "PROPOSAL_STATE_ROLLED_BACK", "decided_by": "user:ada", "reason": "urgent",
            "approved_without_assessment": true, "applied_version": "4",
            "attention": "resolve with RESOLUTION_ROLL_BACK or RESOLUTION_KEEP_LIVE",
            "resolved_by": "user:eve", "resolution_reason": "the weights were lost",
        });
        let lines = lines(&proposal);
        let line = |name: &str| lines.iter().find(|l| l.0 == name).map(|l| l.1.as_str());
        let decided = "user:ada, without an assessment";
        assert_eq!(line("decided by"), Some(decided));
        assert_eq!(line("reason"), Some("urgent"));
        let attention = "resolve with roll-back or keep-live";
        assert_eq!(line("attention"), Some(attention));
        let version = "4 of the hyperparameters, rolled back since";
        assert_eq!(line("version"), Some(version));
        assert_eq!(line("resolved by"), Some("user:eve"));
        assert_eq!(line("because"), Some("the weights were lost"));
    }
}
