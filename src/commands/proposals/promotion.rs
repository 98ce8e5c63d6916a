//! A proposal of a step up the ladder, as its approver reads it.

use crate::commands::listing::{self, number, short, text, word};
use serde_json::Value;

pub(super) const STAGE: &str = "AGENT_STAGE_";

/// The promotion of a proposal, if it is one.
pub(super) fn of(proposal: &Value) -> Option<&Value> {
    Some(&proposal["promotion"]).filter(|promotion| promotion.is_object())
}

fn stage(value: &Value) -> String {
    word(value, STAGE).to_uppercase()
}

/// A count, of which a zero is left out of JSON.
fn count(value: &Value) -> u64 {
    number(value).unwrap_or_default() as u64
}

/// The step in one line.
pub(super) fn step(promotion: &Value) -> String {
    let (from, to) = (
        stage(&promotion["from_stage"]),
        stage(&promotion["to_stage"]),
    );
    let against = match (
        text(&promotion["incumbent_rule"]),
        count(&promotion["incumbent_version"]),
    ) {
        (rule, _) if !rule.is_empty() => format!("the rule {rule}"),
        (_, version) => format!("version {version}"),
    };
    let version = short(&promotion["version"]);
    format!("version {version} from {from} to {to}, where {against} answers")
}

/// Why a proposal is not about what is live any more.
pub(super) fn stale(promotion: &Value) -> String {
    let (from, now) = (stage(&promotion["from_stage"]), stage(&promotion["stage"]));
    match from == now {
        true => "another version is live by now".to_owned(),
        false => format!("the version stands in {now} by now"),
    }
}

/// How the version compares with what answers, in one line.
pub(super) fn compared(promotion: &Value) -> String {
    let comparison = &promotion["comparison"];
    let with = &comparison["incumbent"];
    if !with.is_object() {
        return String::new();
    }
    let of = |name: &str| with[name].as_f64().unwrap_or_default();
    format!(
        "{:+.4} reward per step against {} on {} seeds, {:.4} to {:.4} (95 %)",
        of("difference"),
        text(&with["name"]),
        count(&comparison["seeds"]),
        of("low"),
        of("high"),
    )
}

/// What the version did after the step, in one line.
pub(super) fn verified(promotion: &Value) -> String {
    let verification = &promotion["verification"];
    if !verification.is_object() {
        return String::new();
    }
    let seconds = verification["seconds"].as_f64().unwrap_or_default();
    format!(
        "answered {} steps in {} within {seconds:.0} s, {} of them blocked",
        count(&verification["steps"]),
        stage(&promotion["to_stage"]),
        count(&verification["blocked"]),
    )
}

/// Prints what the version was compared with.
pub(super) fn print_comparison(promotion: &Value) {
    let rules = promotion["comparison"]["rules"].as_array();
    let rules = rules.cloned().unwrap_or_default();
    if rules.is_empty() {
        return;
    }
    say!("");
    let head = [
        "against",
        "reward per step",
        "difference",
        "low",
        "high",
        "verdict",
    ];
    listing::table(&head, &rules, |rule| {
        let numbers = ["mean", "difference", "low", "high"].map(|name| short(&rule[name]));
        let verdict = word(&rule["verdict"], "VERDICT_");
        std::iter::once(text(&rule["name"]))
            .chain(numbers)
            .chain([verdict])
            .collect()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn promotion() -> Value {
        json!({
            "version": "7", "from_stage": "AGENT_STAGE_SHADOW", "to_stage": "AGENT_STAGE_CANARY",
            "incumbent_version": "3", "incumbent_rule": "aimd", "stage": "AGENT_STAGE_SIM",
            "comparison": { "seeds": 30, "incumbent": {
                "name": "aimd", "difference": 0.2, "low": 0.1, "high": 0.3,
            } },
        })
    }

    #[test]
    fn a_promotion_is_told_in_lines() {
        let mut promotion = promotion();
        assert_eq!(
            step(&promotion),
            "version 7 from SHADOW to CANARY, where the rule aimd answers"
        );
        assert_eq!(stale(&promotion), "the version stands in SIM by now");
        assert_eq!(
            compared(&promotion),
            "+0.2000 reward per step against aimd on 30 seeds, 0.1000 to 0.3000 (95 %)"
        );
        assert_eq!(verified(&promotion), "");
        promotion["incumbent_rule"] = json!("");
        promotion["stage"] = json!("AGENT_STAGE_SHADOW");
        promotion["verification"] = json!({ "steps": "60", "seconds": 12.4 });
        assert_eq!(
            step(&promotion),
            "version 7 from SHADOW to CANARY, where version 3 answers"
        );
        assert_eq!(stale(&promotion), "another version is live by now");
        assert_eq!(
            verified(&promotion),
            "answered 60 steps in CANARY within 12 s, 0 of them blocked"
        );
    }
}
