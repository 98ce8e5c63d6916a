//! Comparisons as messages.

use super::numbers::unsigned;
use crate::stage;
use tars_learn::comparison;
use tars_proto::{orchestration::v1::*, time::timestamp};

pub(super) fn comparison(agent: &str, version: i64, from: stage::Comparison) -> AgentComparison {
    let stage::Comparison {
        incumbent,
        calibration,
        seeds,
        first_seed,
        mean,
        with_incumbent,
        with_rules,
        at_us,
    } = from;
    AgentComparison {
        agent_id: agent.to_owned(),
        version: unsigned(version),
        incumbent_version: unsigned(incumbent.version),
        incumbent_rule: incumbent.rule.unwrap_or_default(),
        calibration,
        seeds,
        first_seed,
        mean,
        incumbent: Some(against(with_incumbent)),
        rules: with_rules.into_iter().map(against).collect(),
        compared_at: Some(timestamp(at_us)),
    }
}

fn against(from: stage::Against) -> Against {
    let verdict = match from.verdict() {
        comparison::Verdict::Better => Verdict::Better,
        comparison::Verdict::Worse => Verdict::Worse,
        comparison::Verdict::Undecided => Verdict::Undecided,
    };
    Against {
        name: from.name,
        mean: from.mean,
        difference: from.difference.mean,
        low: from.difference.low,
        high: from.difference.high,
        verdict: verdict.into(),
    }
}
