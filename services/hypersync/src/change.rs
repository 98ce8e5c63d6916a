//! What a proposal changes. The states, the decisions and the leases of a proposal are the same for every
//! kind of change; what differs is here, and in the saga's file of each kind.

mod promotion;
mod tuning;

pub(crate) use promotion::{
    Against, Comparison, Incumbent, Placement, Promotion, Stage, Standing, Watched,
};
pub(crate) use tuning::{Tuning, Verification};

use serde::{Deserialize, Serialize};

/// A change of an agent. In the document of a proposal the fields of a tuning stand among those of the proposal,
/// where they were while there was no other kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Change {
    Promotion { promotion: Promotion },
    Tuning(Tuning),
}

impl Change {
    /// What only one open proposal may be about.
    pub(crate) fn claim(&self, agent: &str) -> String {
        match self {
            Self::Tuning(tuning) => tuning.trial(),
            Self::Promotion { promotion } => format!("version/{agent}/{}", promotion.version),
        }
    }

    /// Whether it was measured for the person who decides.
    pub(crate) fn is_assessed(&self) -> bool {
        match self {
            Self::Tuning(tuning) => tuning.assessment.is_some(),
            Self::Promotion { promotion } => promotion.comparison.is_some(),
        }
    }

    /// What could not be done where a roll-back failed.
    pub(crate) fn not_rolled_back(&self) -> &'static str {
        match self {
            Self::Tuning(_) => "the old values could not be restored",
            Self::Promotion { .. } => "the step up could not be taken back",
        }
    }
}
