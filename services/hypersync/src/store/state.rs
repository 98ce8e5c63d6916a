//! The states of a proposal, and which may follow which.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    PendingApproval,
    Approved,
    Rejected,
    Withdrawn,
    Applying,
    Verifying,
    Completed,
    RollingBack,
    RolledBack,
    Failed,
    NeedsAttention,
    Kept,
}

impl State {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 12] = [
        Self::PendingApproval,
        Self::Approved,
        Self::Rejected,
        Self::Withdrawn,
        Self::Applying,
        Self::Verifying,
        Self::Completed,
        Self::RollingBack,
        Self::RolledBack,
        Self::Failed,
        Self::NeedsAttention,
        Self::Kept,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Withdrawn => "withdrawn",
            Self::Applying => "applying",
            Self::Verifying => "verifying",
            Self::Completed => "completed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::NeedsAttention => "needs_attention",
            Self::Kept => "kept",
        }
    }

    pub(crate) fn is_final(self) -> bool {
        matches!(
            self,
            Self::Rejected
                | Self::Withdrawn
                | Self::Completed
                | Self::RolledBack
                | Self::Failed
                | Self::Kept
        )
    }

    /// Not being applied yet.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::PendingApproval | Self::Approved)
    }

    /// This service goes on with it by itself.
    pub(crate) fn is_driven(self) -> bool {
        matches!(self, Self::Applying | Self::Verifying | Self::RollingBack)
    }

    /// Nothing else may change the agent meanwhile.
    pub(crate) fn changes_agent(self) -> bool {
        self.is_driven() || self == Self::NeedsAttention
    }

    /// Once the change may be live there is no way to `Failed`: it is verified, taken back, or a
    /// person is asked.
    pub(crate) fn may_become(self, next: Self) -> bool {
        match self {
            Self::PendingApproval => {
                matches!(next, Self::Approved | Self::Rejected | Self::Withdrawn)
            }
            Self::Approved => matches!(next, Self::Applying | Self::Withdrawn),
            Self::Applying => matches!(next, Self::Verifying | Self::RollingBack | Self::Failed),
            // To itself: the measurement is written before it is judged.
            Self::Verifying => {
                matches!(next, Self::Verifying | Self::Completed | Self::RollingBack)
            }
            Self::RollingBack => matches!(next, Self::RolledBack | Self::NeedsAttention),
            Self::NeedsAttention => matches!(next, Self::RollingBack | Self::Kept),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_thing_only() {
        for state in State::ALL {
            let kinds = [state.is_final(), state.waits(), state.changes_agent()];
            assert_eq!(kinds.iter().filter(|k| **k).count(), 1, "{state:?}");
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(
                text,
                format!("{:?}", state.as_str()),
                "column and document agree"
            );
        }
    }

    #[test]
    fn what_has_ended_stays_and_everything_else_has_an_end() {
        for state in State::ALL {
            let next = State::ALL.into_iter().filter(|n| state.may_become(*n));
            assert_eq!(next.count() == 0, state.is_final(), "{state:?}");
        }
    }

    #[test]
    fn what_may_be_live_never_fails() {
        for state in [State::Verifying, State::RollingBack, State::NeedsAttention] {
            assert!(!state.may_become(State::Failed), "{state:?}");
        }
    }
}
