//! Calibrations as messages.

use super::numbers::unsigned;
use crate::{
    calibration::{
        ApprovalErrors, Approvals, Decided, Finding, Parameter, Quality, SOURCE, Vote, parameters,
    },
    store::CalibrationRow,
};
use tars_proto::{
    Timestamp, fault,
    orchestration::v1::*,
    time::{micros, timestamp},
};
use tars_worlds::mesh::{self, fit::Errors};
use tonic::Status;
use uuid::Uuid;

pub(super) fn measured(row: CalibrationRow) -> Calibration {
    let CalibrationRow { number, finding } = row;
    let Finding {
        uncalibrated,
        from_us,
        to_us,
        windows,
        calls,
        failed,
        rejected,
        tested_to_us,
        tested_calls,
        errors: found,
        parameters,
        approvals: found_of_approvals,
    } = finding;
    let state = match uncalibrated {
        None => CalibrationState::Calibrated,
        Some(_) => CalibrationState::Uncalibrated,
    };
    Calibration {
        name: format!("calls-{}", unsigned(number)),
        state: state.into(),
        reason: uncalibrated.unwrap_or_default(),
        source: SOURCE.to_owned(),
        from: Some(timestamp(from_us)),
        to: Some(timestamp(to_us)),
        windows,
        calls,
        failed,
        rejected,
        tested_to: Some(timestamp(tested_to_us)),
        tested_calls,
        errors: found.map(errors),
        parameters: parameters.into_iter().map(parameter).collect(),
        approvals: found_of_approvals.map(approvals),
    }
}

fn approvals(from: Approvals) -> ApprovalCalibration {
    let state = match from.uncalibrated {
        None => CalibrationState::Calibrated,
        Some(_) => CalibrationState::Uncalibrated,
    };
    let errors = |ApprovalErrors { answers, time }| ApprovalCalibrationErrors { answers, time };
    ApprovalCalibration {
        state: state.into(),
        reason: from.uncalibrated.unwrap_or_default(),
        proposals: from.proposals,
        answers: from.answers,
        tested: from.tested,
        errors: from.errors.map(errors),
    }
}

/// What came of a proposal, as HyperSync reports it.
pub(super) fn decided(from: DecidedProposal) -> Result<(Uuid, Decided), Status> {
    let quality = match from.quality() {
        ProposalQuality::Unspecified => None,
        ProposalQuality::Good => Some(Quality::Good),
        ProposalQuality::Bad => Some(Quality::Bad),
    };
    let id = Uuid::try_parse(&from.proposal_id);
    let id = id.map_err(|_| fault::invalid_field("proposals.proposal_id", "must be a UUID"))?;
    let at = |name: &str, at: Option<Timestamp>| {
        let at = at.as_ref().map(micros);
        at.ok_or_else(|| fault::invalid_field(&format!("proposals.{name}"), "is required"))
    };
    let votes = from.votes.into_iter().map(|vote| {
        Ok(Vote {
            approves: vote.approves,
            at_us: at("votes.at", vote.at)?,
        })
    });
    let decided = Decided {
        votes: votes.collect::<Result<_, Status>>()?,
        proposed_us: at("proposed_at", from.proposed_at)?,
        ended_us: at("ended_at", from.ended_at)?,
        required: from.required,
        quality,
    };
    Ok((id, decided))
}

/// The calibration that simulated worlds use.
pub(super) fn shipped() -> Calibration {
    let shipped = mesh::Calibration::shipped();
    Calibration {
        state: CalibrationState::Assumed.into(),
        source: "assumed".to_owned(),
        parameters: parameters(&shipped, &[], false)
            .into_iter()
            .map(parameter)
            .collect(),
        name: shipped.name,
        ..Calibration::default()
    }
}

fn errors(from: Errors) -> CalibrationErrors {
    let Errors {
        throughput,
        p50,
        p95,
        p99,
    } = from;
    CalibrationErrors {
        throughput,
        p50,
        p95,
        p99,
    }
}

fn parameter(from: Parameter) -> CalibrationParameter {
    let Parameter {
        name,
        unit,
        value,
        fitted,
    } = from;
    CalibrationParameter {
        name,
        unit,
        value,
        fitted,
    }
}
