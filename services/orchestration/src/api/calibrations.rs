//! Calibrations as messages.

use super::numbers::unsigned;
use crate::{
    calibration::{Finding, Parameter, SOURCE, parameters},
    store::CalibrationRow,
};
use tars_proto::{orchestration::v1::*, time::timestamp};
use tars_worlds::mesh::{self, fit::Errors};

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
    }
}

/// The calibration that simulated worlds use.
pub(super) fn shipped() -> Calibration {
    let shipped = mesh::Calibration::shipped();
    Calibration {
        state: CalibrationState::Assumed.into(),
        source: "assumed".to_owned(),
        parameters: parameters(&shipped, &[])
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
