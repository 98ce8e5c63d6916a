//! What is waited for of a proposal, and whether it came.

use super::{assessment_state, state};
use clap::ValueEnum;
use serde_json::Value;

/// What to wait for. A proposal that ends or needs a person is followed no further in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::commands) enum Until {
    /// Until it is measured against the live values, or cannot be.
    Assessed,
    /// Until it is approved, rejected or withdrawn.
    Decided,
    /// Until it is applied and verified, or ends otherwise.
    Ended,
}

impl Until {
    /// What a proposal waits for now.
    pub(super) fn next(proposal: &Value) -> Self {
        match state(proposal).as_str() {
            "pending_approval" if assessment_state(proposal) == "pending" => Self::Assessed,
            "pending_approval" => Self::Decided,
            _ => Self::Ended,
        }
    }

    pub(super) fn is_reached(self, proposal: &Value) -> bool {
        match state(proposal).as_str() {
            "pending_approval" => self == Self::Assessed && assessment_state(proposal) != "pending",
            "approved" if self == Self::Assessed => assessment_state(proposal) != "pending",
            "approved" | "applying" | "giving_up" | "verifying" | "rolling_back" => {
                self != Self::Ended
            }
            _ => true,
        }
    }

    pub(super) fn is_good(self, proposal: &Value) -> bool {
        let state = state(proposal);
        match self {
            Self::Assessed => assessment_state(proposal) == "completed",
            Self::Decided => !["pending_approval", "rejected", "withdrawn"].contains(&&*state),
            Self::Ended => state == "completed",
        }
    }
}
