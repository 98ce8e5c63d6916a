//! What a proposal changes. The states, the decisions and the leases of a proposal are the same for every
//! kind of change; what differs is here, and in the saga's file of each kind.

mod tuning;

pub(crate) use tuning::{Tuning, Verification};

use serde::{Deserialize, Serialize};

/// A change of an agent. In the document of a proposal its fields stand among those of the proposal, where the
/// first kind always had them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Change {
    Tuning(Tuning),
}

/// What was measured for the person who decides.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Evidence {
    Trained(Verification),
}

impl Change {
    /// What only one open proposal may be about.
    pub(crate) fn claim(&self) -> String {
        match self {
            Self::Tuning(tuning) => tuning.trial(),
        }
    }

    /// Whether it was measured for the person who decides.
    pub(crate) fn is_assessed(&self) -> bool {
        match self {
            Self::Tuning(tuning) => tuning.assessment.is_some(),
        }
    }

    pub(crate) fn assess(&mut self, evidence: Evidence) {
        match (self, evidence) {
            (Self::Tuning(tuning), Evidence::Trained(measured)) => {
                tuning.assessment = Some(measured);
            }
        }
    }
}
