//! Promotions as messages.

use crate::{
    change::{Comparison, Promotion as Step, Stage, Watched},
    store::Proposal as Row,
    views::{Live, View},
};
use tars_proto::{
    fault,
    hypersync::v1::*,
    orchestration::v1::{AgentComparison, AgentStage},
};
use tonic::Status;

/// The stage that is asked for, if one is.
pub(super) fn stage(from: i32) -> Result<Option<Stage>, Status> {
    match (from, Stage::named(from)) {
        (asked, None) if asked != i32::from(AgentStage::Unspecified) => {
            Err(fault::invalid_field("to_stage", "there is no such stage"))
        }
        (_, stage) => Ok(stage),
    }
}

pub(super) fn of_promotion(view: &View, step: &Step) -> Proposal {
    let now = match view.live.as_deref() {
        Some(Live::Standing(standing)) => Some(standing.stage.into()),
        _ => None,
    };
    Proposal {
        promotion: Some(Promotion {
            version: step.version,
            from_stage: step.from.into(),
            to_stage: step.to.into(),
            incumbent_version: step.incumbent.version,
            incumbent_rule: step.incumbent.rule.clone(),
            comparison: step
                .comparison
                .clone()
                .map(|found| comparison(&view.proposal, step, found)),
            stage: now,
            applied_version: step.placement.map(|placement| placement.version),
            verification: step.verification.map(verification),
        }),
        ..Proposal::default()
    }
}

fn comparison(row: &Row, step: &Step, from: Comparison) -> AgentComparison {
    AgentComparison {
        agent_id: row.agent_id.clone(),
        version: step.version,
        incumbent_version: from.incumbent.version,
        incumbent_rule: from.incumbent.rule,
        calibration: from.calibration,
        seeds: from.seeds,
        first_seed: from.first_seed,
        mean: from.mean,
        incumbent: from.with_incumbent.map(Into::into),
        rules: from.with_rules.into_iter().map(Into::into).collect(),
        compared_at: None,
    }
}

fn verification(from: Watched) -> PromotionVerification {
    PromotionVerification {
        steps: from.steps,
        blocked: from.blocked,
        seconds: from.micros as f64 / 1e6,
    }
}
